"""What the cost model predicts of mixtures is what the modules hold."""

from __future__ import annotations

import pytest
import torch
from technique_cases import serving, training

from worthit.cost.params import count_params
from worthit.nn.decoder import build
from worthit.spec.load import load_preset
from worthit.spec.model import ModelSpec
from worthit.techniques import Technique, catalogue

PRESETS = ["mixtral-8x7b", "qwen1.5-moe-a2.7b", "olmoe-1b-7b", "gpt-oss-20b", "llama-4-scout"]
CHANGED = [
    t
    for t in catalogue().values()
    if t.id in ("topk-moe", "switch", "soft-gating", "expert-choice")
]


def n_built(spec: ModelSpec) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in build(spec).parameters())


@pytest.mark.parametrize("name", PRESETS)
def test_parameters_of_published_models_are_as_predicted(name: str) -> None:
    spec = load_preset(name)
    assert n_built(spec) == count_params(spec).total


@pytest.mark.parametrize("technique", CHANGED, ids=lambda t: t.id)
def test_parameters_of_each_technique_are_as_predicted(technique: Technique) -> None:
    case = training() if technique.id == "expert-choice" else serving()
    spec = technique.apply(case).model
    assert n_built(spec) == count_params(spec).total
