"""Settings of single requests: what they choose is what a plain loop over the model chooses."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from typing import Any

import pytest
import torch
import transformers
from decode.engine.test_engine import model_of, prompts
from decode.tiny import byte_level

from worthit.decode.engine import Engine, EngineConfig, Grammar, Request
from worthit.decode.engine.chooser import largest
from worthit.decode.sampling import Sampling, add_bias, adjust, draw, penalise_counts
from worthit.decode.tokenizer import Tokenizer
from worthit.errors import InputError
from worthit.nn.decoder import Decoder, build
from worthit.spec.model import Attention, FeedForward, Layer, ModelSpec, Position

CONFIG = EngineConfig(max_batch_tokens=11, max_sequences=4, block_tokens=4, n_blocks=60)


def logits_after(model: Decoder, ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.tensor([ids]))[0, -1]


def slowly(model: Decoder, request: Request) -> list[int]:
    """Greedy choice with penalties, by the formulas and one whole pass a token."""
    ids, said, s = list(request.prompt), [], request.sampling
    for _ in range(request.max_tokens):
        row = logits_after(model, ids).tolist()
        for t in set(ids):
            row[t] = row[t] / s.repetition_penalty if row[t] > 0 else row[t] * s.repetition_penalty
        for t, n in Counter(said).items():
            row[t] -= s.presence_penalty + s.frequency_penalty * n
        for t, value in s.logit_bias:
            row[t] += value
        said.append(max(range(len(row)), key=row.__getitem__))
        ids.append(said[-1])
    return said


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"repetition_penalty": 1.7},
        {"presence_penalty": 6.0},
        {"frequency_penalty": 2.5},
        {"presence_penalty": -3.0, "frequency_penalty": 1.0, "repetition_penalty": 1.2},
        {"logit_bias": {3: 100.0}},
        {"logit_bias": dict.fromkeys(range(20), -math.inf)},
    ],
    ids=str,
)
def test_penalties_and_bias_beside_others(options: dict[str, Any]) -> None:
    model = model_of("grouped")
    asked = prompts(4)
    request = Request(prompt=asked[0], max_tokens=12, sampling=Sampling(**options))
    others = [Request(prompt=p, max_tokens=9) for p in asked[1:]]
    engine = Engine(model, config=CONFIG)
    got = engine.generate([others[0], request, *others[1:]])
    want = slowly(model, request)
    assert got[1].ids == want
    plain = slowly(model, Request(prompt=asked[0], max_tokens=12))
    assert (want != plain) == bool(options)  # control: the settings matter


def test_bias_is_that_of_transformers() -> None:
    torch.manual_seed(0)
    logits, bias = torch.randn(3, 50), {4: 1.5, 7: -20.0, 49: 0.25}
    theirs = transformers.SequenceBiasLogitsProcessor({(t,): v for t, v in bias.items()})
    want = theirs(torch.zeros(3, 1, dtype=torch.long), logits)
    torch.testing.assert_close(adjust(logits, Sampling(logit_bias=bias)), want)
    assert torch.equal(add_bias(logits, ()), logits)


def test_counts_are_penalised_once_and_each_time() -> None:
    logits, counts = torch.zeros(1, 4), torch.tensor([[0.0, 1.0, 2.0, 5.0]])
    want = torch.tensor([[0.0, -0.75, -1.0, -1.75]])
    torch.testing.assert_close(penalise_counts(logits, counts, 0.5, 0.25), want)


def test_a_draw_falls_where_the_running_sum_passes_it() -> None:
    p = torch.tensor([[0.0, 0.25, 0.0, 0.5, 0.25, 0.0]])
    for chance, token in [(0.0, 1), (0.2499, 1), (0.25, 3), (0.7499, 3), (0.75, 4), (1 - 1e-16, 4)]:
        assert draw(p, torch.tensor([chance], dtype=torch.float64)).tolist() == [token]
    torch.manual_seed(0)
    weights = torch.rand(1, 12)
    n = 40_000
    tokens = draw(weights.expand(n, 12), torch.rand(n, dtype=torch.float64))
    expected = weights[0] / weights.sum() * n
    chi_square = ((torch.bincount(tokens, minlength=12) - expected) ** 2 / expected).sum()
    assert chi_square < 40  # 11 degrees of freedom: p < 1e-4


def test_the_largest_of_equals_is_the_first() -> None:
    logits = torch.tensor([[1.0, 3.0, 3.0], [2.0, 0.0, 2.0]])
    for dtype in (torch.float32, torch.bfloat16):
        assert largest(logits.to(dtype)) == [1, 0]


def test_the_same_seed_gives_the_same_tokens_in_any_company() -> None:
    model = model_of("grouped")
    asked = prompts(8)
    sampling = Sampling(temperature=1.0, top_k=20, top_p=0.95)
    requests = [
        Request(prompt=p, max_tokens=10, sampling=sampling, seed=i) for i, p in enumerate(asked)
    ]
    alone = [Engine(model, config=CONFIG).generate([r])[0].ids for r in requests]
    together = Engine(model, config=CONFIG).generate(requests)
    assert [one.ids for one in together] == alone
    other = Request(prompt=asked[0], max_tokens=10, sampling=sampling, seed=99)
    assert Engine(model, config=CONFIG).generate([other])[0].ids != alone[0]


def test_sampled_tokens_have_the_models_distribution() -> None:
    model = model_of("grouped")
    sampling = Sampling(temperature=2.0, top_k=8)
    config = EngineConfig(max_batch_tokens=64, max_sequences=64, block_tokens=4)
    engine = Engine(model, config=config)
    n = 100
    counts: Counter[int] = Counter()
    for batch in range(30):
        requests = [Request(prompt=[1, 2, 3], max_tokens=1, sampling=sampling, seed=batch, n=n)]
        for sample in engine.generate(requests)[0].samples:
            counts[sample.ids[0]] += 1
    logits = logits_after(model, [1, 2, 3]) / 2
    kept = logits.topk(8)
    expected = torch.zeros(40)
    expected[kept.indices] = kept.values.softmax(dim=-1) * 30 * n
    assert set(counts) <= set(kept.indices.tolist())
    chi = sum((counts[t] - float(expected[t])) ** 2 / float(expected[t]) for t in counts)
    assert chi < 30  # 7 degrees of freedom: p < 1e-4


def test_samples_share_the_prompt_and_differ_by_their_seeds() -> None:
    model = model_of("grouped")
    prompt = prompts(3)[2]
    sampling = Sampling(temperature=1.5)
    request = Request(prompt=prompt, max_tokens=8, sampling=sampling, seed=5, n=4)
    engine = Engine(model, config=CONFIG)
    got = engine.generate([request])[0]
    alone = Request(prompt=prompt, max_tokens=8, sampling=sampling, seed=5)
    said = [s.ids for s in got.samples]
    assert said[0] == Engine(model, config=CONFIG).generate([alone])[0].ids
    assert len({tuple(ids) for ids in said}) == 4
    again = Engine(model, config=CONFIG).generate([request])[0]
    assert [s.ids for s in again.samples] == said
    # The prompt went through the model once; every sample then brought its tokens but the last.
    assert engine.stats.n_step_tokens == len(prompt) + 4 * 7
    assert engine.stats.n_blocks_held == 0


# Logprobs


@pytest.mark.parametrize("budget", [4, 64])
def test_logprobs_are_the_models_own(budget: int) -> None:
    model = model_of("grouped")
    prompt = prompts(3)[2]
    config = EngineConfig(max_batch_tokens=budget, max_sequences=3, block_tokens=4, n_blocks=16)
    request = Request(
        prompt=prompt,
        max_tokens=6,
        logprobs=3,
        prompt_logprobs=2,
        # Neither changes what the model thought.
        sampling=Sampling(temperature=0.7, top_k=2, presence_penalty=1.0),
        seed=1,
    )
    engine = Engine(model, config=config)
    engine.generate([prompt])  # its blocks are known: a hit would leave tokens out
    busy = [Request(prompt=p, max_tokens=8) for p in prompts(3)]
    got = engine.generate([request, *busy])[0]
    ids = prompt + got.ids
    with torch.no_grad():
        want = model(torch.tensor([ids]))[0].log_softmax(dim=-1)
    reported = [*got.prompt_logprobs, *got.samples[0].logprobs]
    assert [r.token for r in reported] == ids[1:]
    for at, one in enumerate(reported):
        assert one.logprob == pytest.approx(float(want[at, one.token]), abs=1e-4)
        top = want[at].topk(len(one.top))
        assert [t for t, _ in one.top] == top.indices.tolist()
        assert [v for _, v in one.top] == pytest.approx(top.values.tolist(), abs=1e-4)
    assert len(got.prompt_logprobs[0].top) == 2
    assert len(got.samples[0].logprobs[0].top) == 3


# Stops and text


def spoken() -> tuple[Decoder, Tokenizer]:
    backend = byte_level()
    stop = backend.token_to_id("<|im_end|>")
    tokenizer = Tokenizer(backend, stop_ids=[stop])
    torch.manual_seed(1)
    attention = Attention(n_heads=4, n_kv_heads=2, head_dim=8, rotary_dim=8)
    spec = ModelSpec(
        name="m",
        d_model=32,
        vocab_size=backend.get_vocab_size() + 3,
        context_len=128,
        layers=(Layer(mixers=(attention,), ffn=FeedForward(d_ff=48)),) * 2,
        position=Position(kind="rope"),
    )
    model = build(spec).eval()
    for p in model.parameters():
        if p.dim() > 1:
            torch.nn.init.normal_(p, std=0.4)
    return model, tokenizer


def test_text_and_stops_are_those_of_generate() -> None:
    from worthit.decode.generate import generate

    model, tokenizer = spoken()
    texts = ["the cat", "sat on", "a naïve façade", "x"]
    plain = generate(model, texts, max_tokens=30, tokenizer=tokenizer)
    engine = Engine(model, tokenizer, CONFIG)
    got = engine.generate([Request(prompt=t, max_tokens=30) for t in texts])
    assert [one.text for one in got] == [one.text for one in plain]
    assert [one.ids for one in got] == [one.ids for one in plain]
    stop = plain[0].text[4:7]
    want = generate(model, texts, max_tokens=30, tokenizer=tokenizer, stop=[stop, "☃"])
    requests = [Request(prompt=t, max_tokens=30, stop=[stop, "☃"]) for t in texts]
    got = engine.generate(requests)
    assert [one.text for one in got] == [one.text for one in want]
    assert [one.samples[0].finish_reason for one in got] == [one.finish_reason for one in want]
    assert got[0].samples[0].stopped_by == stop
    assert got[0].samples[0].finish_reason == "stop"


def test_stop_tokens_end_a_text_and_min_tokens_keep_it_going() -> None:
    model = model_of("grouped")
    prompt = prompts(1)[0]
    plain = Engine(model, config=CONFIG).generate([Request(prompt=prompt, max_tokens=12)])[0].ids
    stop = plain[3]
    at = plain.index(stop)
    request = Request(prompt=prompt, max_tokens=12, stop_ids=[stop])
    sample = Engine(model, config=CONFIG).generate([request])[0].samples[0]
    assert sample.ids == plain[:at]
    assert (sample.finish_reason, sample.stopped_by) == ("stop", stop)
    assert sample.usage.n_completion == at + 1
    request = Request(prompt=prompt, max_tokens=12, stop_ids=[stop], min_tokens=6)
    sample = Engine(model, config=CONFIG).generate([request])[0].samples[0]
    assert len(sample.ids) >= 6
    assert stop not in sample.ids[:6]


# Grammars

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 5},
        "n": {"type": "integer", "minimum": 0, "maximum": 99},
    },
    "required": ["name", "n"],
    "additionalProperties": False,
    "x-guidance": {"whitespace_flexible": False},
}


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_structured_output_obeys_its_grammar_beside_free_text(temperature: float) -> None:
    model, tokenizer = spoken()
    sampling = Sampling(temperature=temperature)
    pattern = r"(yes|no), [0-9]{2,4}\."
    requests = [
        Request(prompt="the cat", max_tokens=60, sampling=sampling, seed=3, grammar=g)
        for g in (
            Grammar.json_schema(SCHEMA),
            Grammar(kind="regex", text=pattern),
            Grammar(kind="lark", text='start: "a" | "b" start "c"'),
            None,
        )
    ]
    config = EngineConfig(max_batch_tokens=11, max_sequences=4, block_tokens=4, n_blocks=100)
    engine = Engine(model, tokenizer, config)
    as_json, regex, lark, free = engine.generate(requests)
    assert as_json.samples[0].finish_reason == "stop"
    found = json.loads(as_json.text)
    assert set(found) == {"name", "n"}
    assert 0 <= found["n"] <= 99
    assert re.fullmatch(pattern, regex.text)
    if lark.samples[0].finish_reason == "stop":
        assert re.fullmatch(r"b*ac*", lark.text)
    alone = Engine(model, tokenizer, config).generate([requests[3]])[0]
    assert free.text == alone.text  # a neighbour's mask is the neighbour's


def test_a_bad_grammar_is_refused_before_anything_runs() -> None:
    model, tokenizer = spoken()
    engine = Engine(model, tokenizer, CONFIG)
    for grammar, message in [
        (Grammar(kind="regex", text="[0-9"), "invalid regex"),
        (Grammar(kind="json-schema", text="{"), "no JSON schema"),
        (Grammar.json_schema({"type": "objct"}), "objct"),
        (Grammar(kind="lark", text="x" * 200_000), "at most 100000 characters"),
    ]:
        with pytest.raises(InputError, match=message):
            engine.add(Request(prompt="a", max_tokens=3, grammar=grammar))
    assert not engine.has_work
