"""One attention among state spaces: whether it brings recall back, and what it keeps for it."""

from __future__ import annotations

from worthit.lab import models
from worthit.lab.claims import superior
from worthit.lab.experiment import Arm, Budget, Expectation, Experiment
from worthit.lab.experiments._recall import (
    BUDGETS,
    D_CONV,
    MATCHED,
    ON_RECALL,
    RECALLED,
    STATE_BYTES,
    predicted,
)
from worthit.spec.model import Mamba, Mamba2, Mixer, ModelSpec
from worthit.techniques.ssm._sources import WALEFFE_2024

# Too small for the pairs: two numbers a channel.
D_STATE = 2


def layers(budget: Budget, last: Mixer | None) -> ModelSpec:
    """A narrow Mamba with its convolution, a Mamba-2, and another or `last`."""
    d_model = budget.sizes["d_model"]
    first = Mamba(d_inner=d_model, d_state=1, d_conv=D_CONV, dt_rank=1)
    scan = Mamba2(
        n_heads=d_model // 16, head_dim=16, d_state=D_STATE, n_groups=1, d_conv=D_CONV, chunk=16
    )
    return models.decoder(
        d_model, mixers=(first, scan, last or scan), position="nope", has_ffn=False
    )


def with_attention(budget: Budget) -> ModelSpec:
    """The last of the three layers is attention."""
    d_model = budget.sizes["d_model"]
    return layers(budget, models.attention(d_model, head_dim=d_model))


EXPERIMENT = Experiment(
    id="hybrid",
    technique="hybrid",
    question="Does one layer of attention restore the recall that small states lack?",
    expectation=Expectation(
        statement="Pure state spaces fall short where text has to be copied or recalled; with a "
        "few"
        "layers of attention the gap is closed.",
        source=WALEFFE_2024,
        refuted_if="the hybrid recalls no more than the pure stack by five points",
        worth_it=True,
    ),
    how=ON_RECALL,
    matched=MATCHED,
    arms=(
        Arm(id="pure", label="Mamba-2 alone", model=lambda budget: layers(budget, None)),
        Arm(id="hybrid", label="one attention", model=with_attention),
    ),
    metrics=(RECALLED, STATE_BYTES),
    claims=(superior(RECALLED, "hybrid"),),
    budgets=BUDGETS,
    predicted=predicted,
    means={
        "confirmed": "One attention finds what the states have dropped, and keeps a cache for it: "
        "the reason why hybrids are built.",
        "refuted": "The states hold these few pairs by themselves: nothing is left for attention "
        "to restore.",
    },
)
