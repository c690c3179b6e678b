"""What the cost model predicts of depth schemes is what the modules hold and keep."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from nn.depth.models import ATTENTION, LAYER, built, some_ids, spec_of
from technique_cases import serving

from worthit.cost.memory import Split, cache_bytes
from worthit.cost.params import count_params
from worthit.nn.decoder import build
from worthit.spec.model import Layer, Precision
from worthit.techniques import Technique, catalogue

LOCAL = replace(LAYER, mixers=(replace(ATTENTION, window=16),))
LAYERS = {
    "plain": LAYER,
    "mixture of depths": replace(LAYER, token_fraction=0.25),
    "mixture of depths, local": replace(LOCAL, token_fraction=0.5),
    "mixture of depths, window not full": replace(LOCAL, token_fraction=0.125),
    "loops": replace(LAYER, n_loops=3),
    "loops, local": replace(LOCAL, n_loops=3),
    "loops with one cache": replace(LAYER, n_loops=3, shares_loop_cache=True),
    "mixture of recursions": replace(LAYER, n_loops=3, token_fraction=2 / 3),
    "mixture of recursions with one cache": replace(
        LAYER, n_loops=3, token_fraction=2 / 3, shares_loop_cache=True
    ),
}


@torch.no_grad()
@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)
def test_cache_bytes_are_as_predicted(layer: Layer) -> None:
    # In training mode routers take exactly their capacity.
    spec = spec_of(LAYER, layer, precision=Precision(cache="fp32"))
    model = built(spec).train()
    cache = model.new_cache()
    model(some_ids(96, batch=2), cache=cache)
    predicted = cache_bytes(spec, Split(), 96)
    assert cache.nbytes == pytest.approx(2 * predicted.per_sequence, rel=1e-12)


DEPTH = [t for t in catalogue().values() if t.family == "depth"]


@pytest.mark.parametrize("technique", DEPTH, ids=lambda t: t.id)
def test_parameters_of_each_technique_are_as_predicted(technique: Technique) -> None:
    spec = technique.apply(serving()).model
    with torch.device("meta"):
        assert sum(p.numel() for p in build(spec).parameters()) == count_params(spec).total
