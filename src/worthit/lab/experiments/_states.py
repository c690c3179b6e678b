"""What the experiments on state spaces share: mixers of the same width, and small budgets.

A Mamba layer has no feed-forward and about half the parameters of a transformer's layer: two of
them stand for one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from worthit.lab import models, predict
from worthit.lab.context import Setting
from worthit.lab.experiment import Budget, Prediction
from worthit.lab.metrics import CACHE_BYTES
from worthit.spec.model import S4, Mamba, Mamba2, Mixer, ModelSpec

STATE_BYTES = replace(CACHE_BYTES, name="state or cache")
QUICK = Budget(
    n_seeds=4,
    n_steps=200,
    batch_size=16,
    learning_rates=(3e-3, 1e-2, 3e-2),
    n_tuning_steps=80,
    sizes={"seq_len": 48, "d_model": 32, "windows": 48},
)


def budgets(quick: Budget = QUICK) -> dict[str, Budget]:
    """The three budgets around `quick`."""
    return {
        "smoke": replace(
            quick,
            n_seeds=2,
            n_steps=20,
            n_tuning_steps=5,
            learning_rates=quick.learning_rates[-2:],
        ),
        "quick": quick,
        "full": replace(
            quick, n_seeds=8, n_steps=10 * quick.n_steps, n_tuning_steps=4 * quick.n_steps
        ),
    }


def mamba(d_model: int, d_state: int = 16) -> Mamba:
    """Mamba at its usual proportions."""
    return Mamba(d_inner=2 * d_model, d_state=d_state, d_conv=4, dt_rank=max(1, d_model // 16))


def mamba2(d_model: int, d_state: int = 16) -> Mamba2:
    """Mamba-2 of the same inner width and state."""
    return Mamba2(
        n_heads=2 * d_model // 16, head_dim=16, d_state=d_state, n_groups=1, d_conv=4, chunk=16
    )


def s4(d_model: int) -> S4:
    """S4 with a state of 64 a channel."""
    return S4(d_state=64)


def stack(budget: Budget, mixer: Mixer, n_layers: int, *, has_ffn: bool = False) -> ModelSpec:
    """`n_layers` of one mixer, without positions."""
    return models.decoder(
        budget.sizes["d_model"],
        n_layers=n_layers,
        mixers=mixer,
        has_ffn=has_ffn,
        position="nope",
    )


def unseen(setting: Setting) -> Iterator[Prediction]:
    """Bytes to the unit; what is learned cost cannot see."""
    yield from predict.unseen(setting, setting.experiment.metrics[0].id)
    yield from predict.counted(setting, "cache_bytes", "cache bytes")
