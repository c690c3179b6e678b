"""What the experiments on positions build, and what LongRoPE's search may find."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from worthit.lab.experiments import _positions, _rope_scaling
from worthit.train import seeded

SIZES: Any = SimpleNamespace(sizes={"d_model": 16, "seq_len": 8})


@pytest.mark.parametrize(
    "kind", ["rope", "sinusoidal", "learned", "alibi", "relative-bias", "nope"]
)
def test_models_read_as_far_as_they_are_tested(kind: Any) -> None:
    spec = _positions.model(kind, SIZES)
    ids = torch.randint(0, 64, (1, 8 * max(_positions.FACTORS)))
    with torch.no_grad():
        assert seeded(spec)(0)(ids).isfinite().all()


def test_a_stretch_changes_what_is_read() -> None:
    ids = torch.randint(0, 256, (1, 32), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        plain = seeded(_rope_scaling.model(SIZES))(0)(ids)
        for kind in ("linear", "ntk", "yarn"):
            spec = _rope_scaling.model(SIZES, _rope_scaling.scaling(SIZES, kind))
            assert not torch.allclose(seeded(spec)(0)(ids), plain, atol=1e-4)
        longrope = _rope_scaling.model(SIZES, _rope_scaling.longrope(SIZES, (2.0,) * 8))
        model = seeded(longrope)(0)
        assert not torch.allclose(model(ids), plain, atol=1e-4)
        # Within the trained length nothing changes.
        torch.testing.assert_close(model(ids[:, :8]), plain[:, :8])


def test_the_search_never_does_worse_than_where_it_starts(monkeypatch: Any) -> None:
    # A loss that is lowest where every factor is 3.
    def loss_of(model: Any, batches: Any) -> float:
        factors = torch.tensor(model.spec.position.scaling.long_factors)
        return float((factors - 3).square().sum())

    batches = SimpleNamespace(held_out=lambda split: iter([]))
    base = SimpleNamespace(into=lambda model: model)
    budget = SimpleNamespace(sizes={**SIZES.sizes, "searches": 40})
    context: Any = SimpleNamespace(budget=budget, shared={0: base})
    monkeypatch.setattr(_rope_scaling, "loss_of", loss_of)
    monkeypatch.setattr(_rope_scaling, "text", lambda budget, factor: batches)
    found = torch.tensor(_rope_scaling.searched(context, 0).long_factors)
    # Interpolation, the best start, is 1 away in each of eight pairs.
    assert float((found - 3).square().sum()) < 8
    assert (found.diff() >= 0).all()
    assert 1 <= found.min() <= found.max() <= 1.25 * _rope_scaling.FACTOR
