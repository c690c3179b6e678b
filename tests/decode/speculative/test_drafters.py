"""Each drafter by itself: what it guesses, and what it may never do."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from worthit.decode.sampling import Sampling
from worthit.decode.speculative.control import (
    ATTEMPT,
    FIRST_WAIT,
    Control,
    Costs,
    Pace,
    expected,
)
from worthit.decode.speculative.drafter import Asked
from worthit.decode.speculative.lookahead import Lookahead, add_branch, add_window
from worthit.decode.speculative.lookup import PromptLookup
from worthit.decode.speculative.tree import Tree, ancestors


def asked(ids: list[int], most: int = 4) -> Asked:
    return Asked(ids=ids, n_prompt=len(ids), sampling=Sampling(), chance=lambda: 0.5, most=most)


# Look-up


def searched(ids: list[int], most: int) -> tuple[int, ...]:
    """The rule by looking through everything: the latest place of the last 3, else 2, tokens."""
    for n in (3, 2):
        for start in range(len(ids) - n - 1, -1, -1):
            if n < len(ids) and ids[start : start + n] == ids[-n:]:
                follows = ids[start + n :]
                return tuple((follows * most)[:most])
    return ()


def test_a_lookup_finds_the_most_recent_place_of_the_longest_run() -> None:
    generator = torch.Generator().manual_seed(0)
    lookup, n_found = PromptLookup(), 0
    for _ in range(30):
        text = torch.randint(4, (60,), generator=generator).tolist()
        one = asked(text[:5])
        for token in text[5:]:
            guess = lookup.propose([one])[0]
            assert guess.tokens == searched(one.ids, one.most)
            assert guess.q is None
            n_found += bool(guess)
            one.ids.append(token)
    assert n_found > 500


def test_a_lookup_finds_nothing_in_what_never_repeats() -> None:
    assert not PromptLookup().propose([asked(list(range(50)))])[0]
    assert not PromptLookup().propose([asked([7])])[0]


# Lookahead


@pytest.mark.parametrize(("width", "n_gram"), [(5, 4), (3, 3), (4, 2), (1, 3), (6, 5)])
def test_the_windows_mask_is_the_papers(width: int, n_gram: int) -> None:
    """Fu et al. 2024, figure 2b: row 0 up to the own column, then the own column."""
    rows = [[1] * (width - 1)] + [[2] * width for _ in range(n_gram - 2)]
    tokens: list[int] = []
    parents: list[int] = []
    add_branch(tokens, parents, (9, 8, 7))
    n_branch = len(tokens)
    add_window(tokens, parents, rows)
    cells = [(0, j) for j in range(1, width)]
    cells += [(k, j) for k in range(1, n_gram - 1) for j in range(width)]
    assert len(tokens) == n_branch + len(cells)
    seen = ancestors(parents)[n_branch + 1 :]
    for i, (k, j) in enumerate(cells):
        want = {(0, c) for c in range(1, j + 1)} | {(r, j) for r in range(1, k + 1)}
        got = {cells[m] for m in range(len(cells)) if seen[i, n_branch + 1 + m]}
        assert got == want
        assert seen[i, 0]  # the token said last, column 0 of row 0
        assert not seen[i, 1 : n_branch + 1].any()  # no branch
    # Places: row k of column j is j + k behind the token said last.
    depths = Tree(tuple(tokens), tuple(parents)).depths[n_branch:]
    assert depths == [j + k for k, j in cells]


def test_branches_share_their_beginnings() -> None:
    tokens: list[int] = []
    parents: list[int] = []
    for gram in ((1, 2, 3), (1, 2, 4), (5, 2, 3)):
        add_branch(tokens, parents, gram)
    assert tokens == [1, 2, 3, 4, 5, 2, 3]
    assert parents == [-1, 0, 1, 1, -1, 4, 5]


def test_a_tree_of_lookahead_keeps_to_its_size() -> None:
    ahead = Lookahead(4, 3, 2)
    one = asked(list(range(10)), most=ahead.n_nodes)
    assert 0 < len(ahead.propose([one])[0]) <= ahead.n_nodes
    one.most = 3  # no room for the window: only what the pool knows, which is nothing yet
    assert len(ahead.propose([one])[0]) == 0


# Control


def test_expected_tokens_are_the_sum_of_their_chances() -> None:
    for a in (0.0, 0.3, 0.9):
        for k in (1, 3, 7):
            assert expected(a, k) == pytest.approx(sum(a**i for i in range(k + 1)))
    assert expected(1.0, 4) == 5


FLAT = Costs((1, 8, 16), (1.0, 1.1, 2.0))
STEEP = Costs((1, 8), (1.0, 8.0))


def test_the_length_follows_what_verifying_costs() -> None:
    sure, unsure = Pace(kept=50, seen=52), Pace(kept=2, seen=40)
    assert Control(FLAT).n_wanted(sure, 7) == 7
    assert 0 < Control(FLAT).n_wanted(unsure, 7) <= 7
    # Eight rows at the price of eight passes: no acceptance pays for that.
    assert Control(STEEP).n_wanted(sure, 7) == 0
    # The best k is that of the law, looked for by hand.
    costs = Costs((1, 2, 4, 8), (1.0, 1.2, 1.5, 3.2))
    a = Pace(kept=12, seen=20).acceptance
    gains = [sum(a**i for i in range(k + 1)) / costs.of(k + 1) for k in range(1, 8)]
    best = max(range(7), key=gains.__getitem__) + 1
    assert Control(costs).n_wanted(Pace(kept=12, seen=20), 7) == best


def test_it_turns_itself_off_and_tries_again_ever_more_seldom() -> None:
    control, pace = Control(Costs((1, 8), (1.0, 3.0))), Pace()
    drafted = []
    for step in range(600):
        n = control.n_wanted(pace, 7)
        if n:
            drafted.append(step)
            control.note(pace, n, 0)
    assert len(drafted) < 20
    gaps = [b - a for a, b in pairwise(drafted)]
    assert gaps[-1] > 4 * FIRST_WAIT
    # It comes back when guesses are right again.
    for _ in range(400):
        n = control.n_wanted(pace, 7)
        if n:
            control.note(pace, n, n)
    assert pace.acceptance > 0.8
    assert control.n_wanted(pace, 7) >= ATTEMPT


def test_a_crowd_and_a_dear_draft_are_counted() -> None:
    busy = Costs((1, 8, 64), (1.0, 1.2, 9.0))
    sure = Pace(kept=50, seen=52)
    assert Control(busy).n_wanted(sure, 7, n_rows=1) > 0
    alone = Control(busy).gain(0.9, 7, n_rows=1)
    assert Control(busy).gain(0.9, 7, n_rows=32) < alone
    assert Control(busy, draft_s=1.0).gain(0.9, 7) < 1 < alone


def test_costs_between_and_beyond_what_was_measured() -> None:
    assert STEEP.at(4.5) == pytest.approx(4.5)
    assert FLAT.at(32) == pytest.approx(2.0 + 16 * 0.9 / 8)
    assert FLAT.of(1) == 1
