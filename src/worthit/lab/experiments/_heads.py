"""What the experiments on attention's heads share: a small model of bytes, parameters held equal.

What an arm saves in its projections its feed-forward gets, so that a cache is compared with a
cache and not a small model with a large one (Shazeer 2019, section 4.1, does the same).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from worthit.cost.params import count_params
from worthit.lab import models
from worthit.lab.experiment import Budget, Matched, Training
from worthit.lab.metrics import LOSS as TEST_LOSS
from worthit.lab.tasks import task
from worthit.spec.model import Attention, FeedForward, Layer, Mixer, ModelSpec
from worthit.train.batch import Data

HEADS = 8
# Weights of one channel of a SwiGLU's inner width, a channel of the model: up, gate and down.
MATRICES = 3
LOSS = replace(TEST_LOSS, margin=0.02)


def text(budget: Budget) -> Data:
    """Python's source by bytes."""
    sizes = budget.sizes
    return task("text", seq_len=sizes["seq_len"], max_megabytes=4, n_held_out=sizes["windows"])


def full_heads(budget: Budget) -> ModelSpec:
    """The decoder with a key/value head for each of its eight query heads."""
    return decoder(heads(budget), budget)


def heads(budget: Budget, **changes: Any) -> Attention:
    """Eight heads over the width of the model, or other ones."""
    width = budget.sizes["d_model"]
    return models.attention(width, **{"head_dim": width // HEADS, **changes})


def decoder(mixer: Mixer, budget: Budget, **changes: Any) -> ModelSpec:
    """The decoder with `mixer` in both layers."""
    width = budget.sizes["d_model"]
    return models.decoder(
        width, mixers=mixer, vocab_size=256, embedding_scale=width**0.5, **changes
    )


def as_large_as(other: ModelSpec, spec: ModelSpec) -> ModelSpec:
    """`spec` with feed-forwards so wide that it has as many parameters as `other`."""
    missing = count_params(other).total - count_params(spec).total
    more = round(missing / (MATRICES * spec.d_model * spec.n_layers))

    def widen(layer: Layer) -> Layer:
        assert isinstance(layer.ffn, FeedForward)
        return replace(layer, ffn=replace(layer.ffn, d_ff=layer.ffn.d_ff + more))

    return spec.map_layers(widen)


ON_TEXT = Training(data=text)
MATCHED = Matched(
    what=("parameters", "tokens"),
    because="what the projections save widens the feed-forward; data and steps are the same",
)
QUICK = Budget(
    n_seeds=5,
    n_steps=400,
    batch_size=8,
    learning_rates=(3e-3, 1e-2, 3e-2),
    n_tuning_steps=150,
    sizes={"seq_len": 64, "d_model": 48, "windows": 96},
)
BUDGETS = {
    "smoke": replace(QUICK, n_seeds=3, n_steps=40, n_tuning_steps=15),
    "quick": QUICK,
    "full": replace(
        QUICK,
        n_seeds=8,
        n_steps=4000,
        batch_size=16,
        n_tuning_steps=1000,
        sizes={"seq_len": 128, "d_model": 96, "windows": 256},
    ),
}
# Heads differ by hundredths of a nat, within what few seeds can tell.
MORE_SEEDS = {**BUDGETS, "quick": replace(QUICK, n_seeds=12)}
