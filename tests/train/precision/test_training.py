"""Narrow models in the training loop: seeds together, apart where they draw, in other processes."""

from __future__ import annotations

import pickle

import pytest
from training_cases import Addition, tiny

from worthit.train.init import seeded
from worthit.train.loop import train
from worthit.train.many import train_many
from worthit.train.precision import NarrowLinear, narrowed
from worthit.train.recipe import Recipe

DATA = Addition()
RECIPE = Recipe(n_steps=10, batch_size=8, lr=1e-2, log_every=1)
SEEDS = (0, 3)


# One fp8 scale for a tensor is of the tokens that are computed: alone, fewer of the last layer's.
@pytest.mark.parametrize(
    ("name", "options"), [("fp8", {"scaling": "row"}), ("mxfp8", {}), ("bitnet", {})]
)
def test_seeds_advance_together_as_they_would_alone(name: str, options: dict[str, str]) -> None:
    build = narrowed(seeded(tiny()), name, **options)
    together = train_many(build, DATA, RECIPE, SEEDS)
    assert together[0].history.how == "batched with seeds 3"
    for run in together:
        model = build(run.seed)
        alone = train(model, DATA, RECIPE, seed=run.seed)
        losses = [[e["loss"] for e in h.steps] for h in (run.history, alone)]
        # A sum in another order may round to the next value: that is as far as they part.
        assert losses[0] == pytest.approx(losses[1], rel=2e-2)
        assert losses[0][0] == pytest.approx(losses[1][0], rel=1e-5)


def test_what_draws_is_trained_apart() -> None:
    build = narrowed(seeded(tiny()), "mxfp4")
    runs = train_many(build, DATA, RECIPE, SEEDS, n_workers=1)
    assert "rounds by chance" in runs[0].history.how
    again = train_many(build, DATA, RECIPE, SEEDS, n_workers=1)
    assert [r.history.loss for r in again] == [r.history.loss for r in runs]


def test_a_builder_is_a_value() -> None:
    build = narrowed(seeded(tiny()), "mxfp4", rule="floor", is_stochastic=False)
    same = pickle.loads(pickle.dumps(build))
    assert same == build
    model = same(1)
    assert any(isinstance(m, NarrowLinear) for m in model.modules())
