"""What the experiments on reading fewer keys share: a needle, nearer or farther than a window.

Streams of 18 and of 64 tokens hold one fact each and ask for it at their end. Two layers with a
window of 18 reach 35 tokens back: what stands in the last two fifths of a long stream is within
reach, what stands in its first two fifths is not, whatever the model learns.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from worthit.lab import models, predict
from worthit.lab.claims import Metric
from worthit.lab.context import Setting
from worthit.lab.experiment import Budget, Matched, Measures, Prediction, Training, Trial
from worthit.lab.tasks import task
from worthit.lab.tasks.scores import Score, evaluate
from worthit.spec.model import Attention, ModelSpec
from worthit.train.batch import Data

KEYS_READ = 18
SEQ_LEN = 64
WITHIN, BEYOND = ("60%", "80%"), ("0%", "20%")
FOUND = Metric(
    id="beyond", name="needles found beyond reach of the window", better="higher", margin=0.1
)
FOUND_NEAR = Metric(id="within", name="needles found within reach", better="higher", margin=0.1)


def needle(budget: Budget) -> Data:
    """One fact in a stream; eight values, so that a guess is right once in eight."""
    return task("needle", seq_len=SEQ_LEN, lengths=(KEYS_READ, SEQ_LEN), n_keys=8, n_fillers=16)


def found(trial: Trial) -> Measures:
    """Needles found in long streams, by where they stand; and by depth as a curve."""
    groups = evaluate(trial.model, trial.data.held_out("test")).by_group

    def share(depths: tuple[str, ...]) -> float:
        return sum((groups[f"{SEQ_LEN}@{d}"] for d in depths), Score()).exact_match

    depths = ("0%", "20%", "40%", "60%", "80%")
    return {
        "beyond": share(BEYOND),
        "within": share(WITHIN),
        "needles found by depth": tuple((float(d[:-1]), share((d,))) for d in depths),
    }


def attention(budget: Budget, **changes: Any) -> Attention:
    """Two heads over the width of the model."""
    width = budget.sizes["d_model"]
    return models.attention(width, head_dim=width // 2, **changes)


def decoder(budget: Budget, *mixers: Attention) -> ModelSpec:
    """A layer for each of `mixers`, rotary positions."""
    return models.decoder(budget.sizes["d_model"], mixers=mixers, n_layers=len(mixers))


def full(budget: Budget) -> ModelSpec:
    """Two layers that see everything."""
    return decoder(budget, attention(budget), attention(budget))


def local(budget: Budget) -> ModelSpec:
    """Two layers that see the last 18 tokens."""
    near = attention(budget, window=KEYS_READ)
    return decoder(budget, near, near)


def predicted(setting: Setting) -> Iterator[Prediction]:
    """Bytes to the unit; what is found cost cannot see."""
    yield from predict.unseen(setting, "beyond", "within")
    yield from predict.counted(setting, "cache_bytes", "cache bytes")


ON_NEEDLE = Training(data=needle, score=found)
MATCHED = Matched(
    what=("parameters", "tokens"),
    because="the arms differ in which keys a query reads, and in nothing that is learned",
)
QUICK = Budget(
    n_seeds=4,
    n_steps=250,
    batch_size=16,
    learning_rates=(3e-3, 1e-2, 2e-2),
    # Seeds find the needle at different steps: one run a rate would choose by luck.
    n_tuning_seeds=2,
    n_tuning_steps=150,
    sizes={"d_model": 32},
)
BUDGETS = {
    "smoke": replace(QUICK, n_seeds=3, n_steps=30, n_tuning_steps=10),
    "quick": QUICK,
    "full": replace(QUICK, n_seeds=10, n_steps=2000, n_tuning_steps=600, sizes={"d_model": 64}),
}
