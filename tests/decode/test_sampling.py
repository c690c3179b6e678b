"""Sampling against transformers' own processors, against slow loops, and against chance."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from transformers import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from worthit.decode.sampling import (
    Sampling,
    choose,
    keep_min_p,
    keep_top_k,
    keep_top_p,
    penalise_repeats,
    restrict,
)
from worthit.errors import InputError

Logits = torch.Tensor


def logits(seed: int = 0, rows: int = 3, vocab_size: int = 101) -> Logits:
    return 3 * torch.randn(rows, vocab_size, generator=torch.Generator().manual_seed(seed))


WARPERS: dict[str, tuple[Callable[[Logits], Logits], object]] = {
    **{f"top-k {k}": (lambda x, k=k: keep_top_k(x, k), TopKLogitsWarper(k)) for k in (1, 7, 500)},
    **{
        f"top-p {p}": (lambda x, p=p: keep_top_p(x, p), TopPLogitsWarper(p))
        for p in (0.05, 0.5, 0.95)
    },
    **{
        f"min-p {p}": (lambda x, p=p: keep_min_p(x, p), MinPLogitsWarper(p))
        for p in (0.02, 0.3, 1.0)
    },
}


@pytest.mark.parametrize("kind", WARPERS)
@pytest.mark.parametrize("seed", range(5))
def test_what_is_dropped_is_what_transformers_drops(kind: str, seed: int) -> None:
    ours, theirs = WARPERS[kind]
    x = logits(seed)
    torch.testing.assert_close(ours(x), theirs(None, x.clone()), rtol=0, atol=0)  # type: ignore[operator]


def test_ties_are_dropped_as_transformers_drops_them() -> None:
    x = torch.tensor([[1.0, 1.0, 1.0, 0.0, 0.0, -1.0]])
    for ours, theirs in (
        (keep_top_k(x, 2), TopKLogitsWarper(2)),
        (keep_top_p(x, 0.5), TopPLogitsWarper(0.5)),
        (keep_min_p(x, 0.9), MinPLogitsWarper(0.9)),
    ):
        torch.testing.assert_close(ours, theirs(None, x.clone()), rtol=0, atol=0)


@pytest.mark.parametrize("penalty", [0.7, 1.3])
def test_repeats_are_penalised_as_in_transformers(penalty: float) -> None:
    x = logits()
    ids = torch.tensor([[5, 5, 9], [0, 100, 1], [7, 8, 9]])
    was_there = torch.zeros(3, 101, dtype=torch.bool)
    for row in range(3):
        was_there[row, ids[row]] = True
    expected = RepetitionPenaltyLogitsProcessor(penalty)(ids, x.clone())
    torch.testing.assert_close(penalise_repeats(x, was_there, penalty), expected, rtol=0, atol=0)


@pytest.mark.parametrize("p", [0.1, 0.6, 0.99])
def test_top_p_by_its_definition(p: float) -> None:
    """The smallest set of likeliest tokens that reaches p, one token at a time."""
    x = logits(1).double()
    kept = keep_top_p(x, p)
    for row in range(len(x)):
        probabilities = x[row].softmax(-1)
        total, wanted = 0.0, set()
        for token in probabilities.argsort(descending=True).tolist():
            if total >= p:
                break
            wanted.add(token)
            total += probabilities[token].item()
        assert set(kept[row].isfinite().nonzero().flatten().tolist()) == wanted


def test_one_token_always_remains() -> None:
    x = torch.tensor([[0.0, 0.0, 0.0]])
    tight = Sampling(temperature=0.5, top_k=1, top_p=1e-9, min_p=1.0)
    assert restrict(x, tight).isfinite().any()


def test_draws_follow_the_restricted_distribution() -> None:
    sampling = Sampling(temperature=1.5, top_k=5)
    x = logits(2, rows=1)
    expected = restrict(x, sampling).softmax(-1)[0]
    n = 20_000
    generator = torch.Generator().manual_seed(0)
    drawn = choose(x.expand(n, -1), sampling, generator=generator)
    share = torch.bincount(drawn, minlength=101) / n
    # Five standard deviations of a share.
    assert (share - expected).abs().max() < 5 * math.sqrt(0.25 / n)


def test_greedy_takes_the_largest_and_the_seed_decides_the_rest() -> None:
    x = logits(3)
    assert choose(x, Sampling()).tolist() == x.argmax(-1).tolist()
    hot = Sampling(temperature=1.0)

    def draw(seed: int) -> list[int]:
        generator = torch.Generator().manual_seed(seed)
        return choose(x, hot, generator=generator).tolist()

    assert draw(1) == draw(1)
    assert len({tuple(draw(seed)) for seed in range(20)}) > 1


def test_settings_out_of_range_are_named_at_once() -> None:
    with pytest.raises(InputError) as caught:
        Sampling(temperature=-1, top_p=0, min_p=2, top_k=-1, repetition_penalty=float("nan"))
    said = str(caught.value)
    for name in ("temperature", "top_p", "min_p", "top_k", "repetition_penalty"):
        assert f"{name}: must be" in said
