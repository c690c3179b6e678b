"""The law of what is said: chi-square against the target on a small vocabulary, and mutants."""

from __future__ import annotations

import pytest
import torch
from scipy import stats

from worthit.decode.sampling import Sampling
from worthit.decode.speculative.accept import accept_chains, distribution, drawn, pick, residual
from worthit.decode.speculative.tree import ROOT, Tree

V, N, K = 12, 200_000, 2


def laws(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """A target and a draft, Markov chains of order 1: `(V + 1, V)` each, the last row the start."""
    generator = torch.Generator().manual_seed(seed)
    p = torch.randn(V + 1, V, generator=generator).double().mul(1.5).softmax(-1)
    q = torch.randn(V + 1, V, generator=generator).double().mul(1.5).softmax(-1)
    return p, q


def said(accept, p, q, seed: int, *, is_drawn: bool) -> torch.Tensor:
    """The first `K` tokens of `N` sequences, by drafts of `K` and the last token from the target.

    What a rejection leaves unsaid is drawn from the target plainly.
    """
    generator = torch.Generator().manual_seed(seed)

    def chances(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, dtype=torch.float64, generator=generator)

    before, guesses, from_q = torch.full((N,), V), [], []
    for _ in range(K):
        row = q[before]
        drawn_ones = torch.multinomial(row, 1, generator=generator)[:, 0]
        guess = drawn_ones if is_drawn else row.argmax(-1)
        guesses.append(guess)
        from_q.append(row)
        before = guess
    tokens = torch.stack(guesses, 1)
    at = torch.cat([torch.full((N, 1), V), tokens], dim=1)
    n_kept, last = accept(
        p[at], tokens, torch.stack(from_q, 1) if is_drawn else None, chances(N, K + 1)
    )
    out = torch.full((N, K + 1), -1)
    for i in range(K):
        out[n_kept > i, i] = tokens[n_kept > i, i]
    out[torch.arange(N), n_kept] = last
    for i in range(1, K):
        empty = out[:, i] < 0
        more = torch.multinomial(p[out[empty, i - 1]], 1, generator=generator)
        out[empty, i] = more[:, 0]
    return out[:, :K]


def p_value(found: torch.Tensor, p: torch.Tensor) -> float:
    """Chi-square of the pairs (first token, second token), jointly."""
    pairs = torch.bincount(found[:, 0] * V + found[:, 1], minlength=V * V).double()
    want = (p[V][:, None] * p[:V]).flatten() * len(found)
    return float(stats.chisquare(pairs.numpy(), want.numpy()).pvalue)


@pytest.mark.parametrize("is_drawn", [True, False], ids=["drawn", "picked"])
def test_what_is_said_has_the_law_of_the_target(is_drawn: bool) -> None:
    p, q = laws()
    assert p_value(said(accept_chains, p, q, 1, is_drawn=is_drawn), p) > 1e-4


def draws(p: torch.Tensor, chances: torch.Tensor) -> torch.Tensor:
    from worthit.decode.sampling import draw

    return draw(p, chances)


def mutant(kind: str):
    """`accept_chains` with one mistake that somebody made before."""

    def accept(p, tokens, q, chances):
        each, k = torch.arange(len(tokens)), tokens.shape[1]
        of_p = p[:, :k].gather(2, tokens[..., None])[..., 0]
        of_q = 1.0 if q is None else q.gather(2, tokens[..., None])[..., 0]
        kept = chances[:, :k] * of_q < of_p
        if kind == "accept if u < p":
            kept = chances[:, :k] < of_p
        if kind == "lenient by a tenth":
            kept = chances[:, :k] * of_q < 1.1 * of_p
        if kind == "accept the largest":
            kept = tokens == p[:, :k].argmax(-1)
        n = kept.long().cumprod(1).sum(1)
        rest, some = p[each, n], n < k
        if kind == "bonus from the place before":
            rest[n == k] = p[:, k - 1][n == k]
        if kind == "draw again from p":
            return n, draws(rest, chances[:, k])
        where, places = each[some], n[some]
        covered = torch.zeros_like(rest[some])
        guess = tokens[where, places][:, None]
        covered.scatter_(1, guess, rest[some].gather(1, guess))
        covered = covered if q is None else q[where, places]
        left = rest[some] - covered
        rest[some] = left.abs() if kind == "absolute residual" else left.clamp_min(0)
        last = chances[:, k]
        if kind == "reuse of u":
            last = torch.where(some, chances[each, n.clamp(max=k - 1)], last)
        return n, draws(rest, last)

    return accept


@pytest.mark.parametrize(
    "kind",
    [
        "accept if u < p",
        "lenient by a tenth",
        "accept the largest",
        "draw again from p",
        "absolute residual",
        "reuse of u",
    ],
)
def test_mistakes_are_seen(kind: str) -> None:
    p, q = laws()
    assert p_value(said(mutant(kind), p, q, 1, is_drawn=True), p) < 1e-4
    # Control: without a mistake the same code passes.
    assert p_value(said(mutant("none"), p, q, 1, is_drawn=True), p) > 1e-4


def test_as_much_is_accepted_as_the_laws_have_in_common() -> None:
    p, q = laws(3)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.multinomial(q[V].expand(N, V), 1, generator=generator)
    chances = torch.rand(N, 2, dtype=torch.float64, generator=generator)
    n_kept, _ = accept_chains(p[V].expand(N, 2, V).clone(), tokens, q[V].expand(N, 1, V), chances)
    want = float(torch.minimum(p[V], q[V]).sum())  # Leviathan et al. 2022, theorem 3.5
    assert float(n_kept.double().mean()) == pytest.approx(want, abs=4 * (0.25 / N) ** 0.5)


def test_one_by_one_is_the_same_rule() -> None:
    """`pick`, down a tree, against the law: two siblings drawn from q, one below the first."""
    p, q = laws(5)
    generator = torch.Generator().manual_seed(2)

    def chance() -> float:
        return float(torch.rand((), dtype=torch.float64, generator=generator))

    n, counts = 20_000, torch.zeros(V, dtype=torch.double)
    first = torch.multinomial(q[V].expand(n, V), 2, replacement=True, generator=generator)
    for pair in first.tolist():
        tree = Tree(tuple(pair), (ROOT, ROOT), q[V][None].expand(2, V))
        token, child = pick(p[V], tree, ROOT, chance)
        assert child == ROOT or tree.tokens[child] == token
        counts[token] += 1
    assert stats.chisquare(counts.numpy(), (p[V] * n).numpy()).pvalue > 1e-4


def test_a_picked_guess_spends_the_chance_that_none_would() -> None:
    p, _ = laws()
    for u in (0.01, 0.3, 0.77, 0.99):
        want = drawn(p[V], u)
        for guess in range(V):
            token, child = pick(p[V], Tree.chain([guess]), ROOT, iter([u]).__next__)
            assert token == want
            assert (child == 0) == (guess == want)


def test_what_is_left_when_nothing_is() -> None:
    p = torch.tensor([0.25, 0.75])
    assert residual(p, p).tolist() == p.tolist()
    assert residual(torch.tensor([0.5, 0.5]), torch.tensor([1.0, 0.0])).tolist() == [0.0, 1.0]


def test_penalties_count_what_was_drafted() -> None:
    logits = torch.tensor([3.0, 2.9, 0.0])
    penal = Sampling(presence_penalty=1.0)
    ids = torch.tensor([0, 0])
    assert distribution(logits, penal, ids, n_prompt=2).tolist() == [1, 0, 0]  # the prompt is free
    assert distribution(logits, penal, ids, n_prompt=1).tolist() == [0, 1, 0]
    repeats = Sampling(repetition_penalty=2.0)
    assert distribution(logits, repeats, ids, n_prompt=2).tolist() == [0, 1, 0]
    soft = distribution(logits, Sampling(temperature=1.0, top_k=2))
    torch.testing.assert_close(soft[:2], torch.tensor([3.0, 2.9]).softmax(0))
    assert soft[2] == 0
