"""What the experiments on recall share: pairs of key and value, and states too small to hold them.

Every model has the same first layer, a narrow Mamba whose short convolution sets each value beside
its key; a second layer, which is what is compared, has to find the value again. Without that first
layer the second would be judged by how it learns to look one token back. There are no positions and
no feed-forwards. Linear layers have a short convolution of their own, as in their papers; attention
has none and does not need it, so that what the extra one gives is given to the weaker side.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from worthit.lab import models, predict
from worthit.lab.claims import Metric
from worthit.lab.context import Setting
from worthit.lab.experiment import Arm, Budget, Matched, Prediction, Training
from worthit.lab.metrics import ACCURACY
from worthit.lab.tasks import task
from worthit.spec.model import LinearAttention, LinearKind, Mamba, Mixer, ModelSpec
from worthit.train.batch import Data

D_CONV = 4
RECALLED = replace(ACCURACY, name="values recalled", margin=0.05)
STATE_BYTES = Metric(
    id="cache_bytes",
    name="state or cache",
    unit="bytes",
    scale="ratio",
    margin=0.03,
    is_exact=True,
)


def recall(budget: Budget) -> Data:
    """Multi-query associative recall, questions anywhere after the pairs."""
    sizes = budget.sizes
    return task(
        "associative-recall",
        n_pairs=sizes["pairs"],
        seq_len=4 * sizes["pairs"],
        vocab_size=5 * sizes["pairs"],
        power=1.0,
    )


def after_convolution(mixer: Mixer, budget: Budget) -> ModelSpec:
    """The narrow Mamba, then `mixer`."""
    d_model = budget.sizes["d_model"]
    first = Mamba(d_inner=d_model, d_state=1, d_conv=D_CONV, dt_rank=1)
    return models.decoder(d_model, mixers=(first, mixer), position="nope", has_ffn=False)


def attention(label: str = "attention") -> Arm:
    """The arm of softmax attention, one head as wide as the model."""

    def model(budget: Budget) -> ModelSpec:
        d_model = budget.sizes["d_model"]
        return after_convolution(models.attention(d_model, head_dim=d_model), budget)

    return Arm(id="attention", label=label, model=model)


def linear(kind: LinearKind, key_dim: int, *, name: str = "", label: str = "") -> Arm:
    """The arm of one head with a state of `key_dim` times the model's width."""

    def model(budget: Budget) -> ModelSpec:
        mixer = LinearAttention(
            kind=kind,
            n_key_heads=1,
            n_value_heads=1,
            key_dim=key_dim,
            value_dim=budget.sizes["d_model"],
            d_conv=D_CONV,
            has_output_gate=False,
        )
        return after_convolution(mixer, budget)

    return Arm(id=name or kind, label=label or f"{kind}, {key_dim} rows", model=model)


def predicted(setting: Setting) -> Iterator[Prediction]:
    """Bytes to the unit; what a state can hold cost cannot see."""
    yield from predict.unseen(setting, "accuracy")
    yield from predict.counted(setting, "cache_bytes", "cache bytes")


ON_RECALL = Training(data=recall)
MATCHED = Matched(
    what=("tokens",),
    because="width, depth, first layer, data and steps are the same; what the arms keep of the "
    "past "
    "is the question, and its bytes are reported",
)
QUICK = Budget(
    n_seeds=6,
    n_steps=700,
    batch_size=32,
    learning_rates=(1e-2, 2e-2, 4e-2),
    n_tuning_steps=250,
    sizes={"pairs": 8, "d_model": 32},
)
BUDGETS = {
    "smoke": replace(QUICK, n_steps=40, n_tuning_steps=10, sizes={"pairs": 4, "d_model": 32}),
    "quick": QUICK,
    "full": replace(
        QUICK,
        n_seeds=8,
        n_steps=3000,
        n_tuning_steps=1000,
        sizes={"pairs": 16, "d_model": 64},
    ),
}
