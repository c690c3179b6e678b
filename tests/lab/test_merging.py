"""What experiments on merging share: the tutor by tenses, merges by tensor, choices, scores."""

from __future__ import annotations

import pytest
import torch

from worthit.lab.experiments import passthrough
from worthit.lab.experiments._merging import (
    KNOWN,
    QUICK,
    TENSES,
    Family,
    by_tense,
    chosen,
    measures,
    merged,
    small,
    tutor_of,
)
from worthit.merge.dare import dare_linear
from worthit.merge.task_arithmetic import task_arithmetic
from worthit.train import seeded


@pytest.fixture(scope="module")
def family() -> Family:
    """Untrained models, which differ."""
    spec = small(QUICK)
    base, one, two, multi = (seeded(spec)(seed).state_dict() for seed in range(4))
    return Family(spec=spec, base=base, experts={"past": one, "future": two}, multi=multi)


def test_the_tutor_in_some_tenses() -> None:
    past = tutor_of(("past",))
    assert set(past.rows["train"].groups) == {"past"}
    # Of each tense and person two verbs of twenty are test, in six questions each.
    assert len(past.rows["test"].groups) <= 3 * 2 * 6
    both = tutor_of((*KNOWN, *TENSES))
    whole = sum(len(tutor_of((t,)).rows["test"].groups) for t in (*KNOWN, *TENSES))
    assert len(both.rows["test"].groups) == whole


def test_every_tensor_is_merged(family: Family) -> None:
    state = merged(family, task_arithmetic, weights=[1.0, 2.0], scale=0.5)
    for name, tensor in family.base.items():
        one, two = family.experts["past"][name], family.experts["future"][name]
        torch.testing.assert_close(
            state[name], tensor + 0.5 * ((one - tensor) + 2 * (two - tensor))
        )


def test_every_tensor_draws_for_itself(family: Family) -> None:
    def thinned(seed: int) -> dict[str, torch.Tensor]:
        return merged(family, dare_linear, seed=seed, weights=[1.0, 0.0], densities=[0.5, 0.5])

    first, again, other = thinned(1), thinned(1), thinned(2)
    names = [f"layers.{i}.mixers.0.q_proj.weight" for i in range(2)]
    kept = [(first[name] != family.base[name]) for name in names]
    assert not torch.equal(*kept)
    assert torch.equal(first[names[0]], again[names[0]])
    assert not torch.equal(first[names[0]], other[names[0]])


def test_the_best_on_validation_is_chosen(family: Family) -> None:
    some = (family.base, family.multi, *family.experts.values())
    states = dict(zip("abcd", some, strict=True))
    found, options = chosen(family, [{"name": n} for n in states], lambda name: states[name])
    scores = {
        n: sum(by_tense(family, s, "validation")[t] for t in family.experts)
        for n, s in states.items()
    }
    assert scores[options["name"]] == max(scores.values())
    assert found is states[options["name"]]


def test_an_expert_keeps_all_of_itself_and_the_base_nothing(family: Family) -> None:
    found = measures(family, family.base)
    assert found["kept"] == 0
    alone = Family(
        spec=family.spec,
        base=family.base,
        experts={"past": family.experts["past"]},
        multi=family.multi,
    )
    found = measures(alone, family.experts["past"])
    gained = by_tense(alone, family.experts["past"], "test")["past"]
    before = by_tense(alone, family.base, "test")["past"]
    assert found["skill"] == gained
    if gained != before:
        assert found["kept"] == pytest.approx(1)


def test_layers_are_stacked_in_order() -> None:
    state = {"embedding.weight": torch.zeros(1)}
    state |= {f"layers.{i}.ffn.up.weight": torch.full((1,), float(i)) for i in range(4)}
    deep = passthrough.stacked(state)
    found = [float(deep[f"layers.{i}.ffn.up.weight"]) for i in range(6)]
    assert found == [0, 1, 2, 1, 2, 3]
    assert len(deep) == 7
    shallow = small(passthrough.EXPERIMENT.budgets["quick"])
    assert (shallow.n_layers, passthrough.deeper(shallow).n_layers) == (4, 6)
