"""Requests in a busy engine get what they get alone, on models of every kind."""

from __future__ import annotations

import pytest
import torch
from nn.test_ragged import MODELS

from worthit.decode.engine import Engine, EngineConfig, Request
from worthit.decode.generate import generate
from worthit.nn.decoder import Decoder, build

# Rotations that change with the length, and choices that look at later tokens, depend on chunks.
WHOLE_PROMPTS = ("expert choice", "capacity", "longrope", "mixture of depths")


def model_of(name: str) -> Decoder:
    torch.manual_seed(0)
    model = build(MODELS[name]).eval()
    for p in model.parameters():
        if p.dim() > 1:
            torch.nn.init.normal_(p, std=0.3)
    return model


def prompts(n: int, seed: int = 0) -> list[list[int]]:
    torch.manual_seed(seed)
    return [torch.randint(40, (int(torch.randint(1, 30, ())),)).tolist() for _ in range(n)]


@pytest.mark.parametrize("name", [n for n in MODELS if n not in WHOLE_PROMPTS])
def test_greedy_tokens_are_those_alone(name: str) -> None:
    model = model_of(name)
    asked = prompts(6)
    want = [generate(model, p, max_tokens=8)[0].ids for p in asked]
    config = EngineConfig(max_batch_tokens=11, max_sequences=4, block_tokens=4, n_blocks=40)
    engine = Engine(model, config=config)
    got = engine.generate([Request(prompt=p, max_tokens=8) for p in asked])
    assert [one.samples[0].error for one in got] == [None] * 6
    assert [one.ids for one in got] == want
    assert engine.stats.n_blocks_held == 0
    assert not engine.has_work
