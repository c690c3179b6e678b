"""What the cost model predicts of mixtures is what the modules hold."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from nn.moe.mixtures import EXPERT, MIXTURE, D, E, built
from technique_cases import serving, training
from torch.utils.flop_counter import FlopCounterMode

from worthit.cost.ledger import Pass
from worthit.cost.ops import ffn_ops
from worthit.cost.params import count_params
from worthit.nn.decoder import build
from worthit.spec.load import load_preset
from worthit.spec.model import ModelSpec, MoE
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


SHARED = replace(MIXTURE, shared=replace(EXPERT, d_ff=24), n_shared_experts=1)
COUNTED = {
    "top-k": MIXTURE,
    "shared": SHARED,
    "latent": replace(MIXTURE, d_latent=16),
    "soft": replace(MIXTURE, routing="soft", n_experts_per_token=E),
    "expert choice": replace(MIXTURE, routing="expert-choice"),
}


@torch.no_grad()
@pytest.mark.parametrize("moe", COUNTED.values(), ids=COUNTED)
def test_flops_are_as_predicted(moe: MoE) -> None:
    # Enough tokens to go expert by expert: torch's counter knows plain products alone.
    n = 1024
    module = built(moe)
    with FlopCounterMode(display=False) as counter:
        module(torch.randn(1, n, D))
    predicted = ffn_ops(moe, float(D), Pass(phase="prefill", batch=1, new=n))
    assert counter.get_total_flops() == sum(float(op.flops) for op in predicted)
