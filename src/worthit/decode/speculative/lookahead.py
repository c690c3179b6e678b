"""Lookahead: the target guesses its own future in parallel, and remembers the runs that come out.

Fu et al. 2024, "Break the Sequential Dependency of LLM Inference Using Lookahead Decoding",
arXiv:2402.02057, sections 3 and 4, algorithm 2: Jacobi iteration on a window of future tokens,
whose trajectories are n-grams that the target itself would say; those that begin with the token
said last are verified in the same pass.

| paper | here |
|---|---|
| W, window size | `width` |
| N, n-gram size | `n_gram` |
| G, verified n-grams | `n_verified` |
| lookahead branch: rows of the 2-D window | `Window.rows`: row k guesses what is j + k behind |
| verification branch | the first nodes of the tree |
| n-gram pool | `Window.pool`, the most recent of each first token |

The window's mask is that of a tree: a token of row k and column j sees the token above it, in row
k - 1 of its column, and through it the columns up to j of row 0. So the pass is that of any other
tree, whose window may be accepted like any other guess. What differs is that the window's last row
is there to be read, not to be right. Chance plays no part in it: greedy or drawn, acceptance is
that of picked tokens.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from worthit.decode.speculative.drafter import NOTHING, Asked, Plain, Verified
from worthit.decode.speculative.tree import ROOT, Tree
from worthit.errors import InputError

# First tokens whose n-grams are remembered; one more lets the oldest go.
POOL_KEYS = 4096
Gram = tuple[int, ...]


@dataclass(eq=False)
class Window:
    """The guesses at the future of one sequence, and its n-grams.

    Attributes:
        rows: `rows[0]` has `width` - 1 tokens, for the columns from 1 on: column 0 is the token
            said last. The others have `width`.
        pool: what followed a token in some trajectory, `n_gram` - 1 tokens each, newest last.
        first_node: where the window stands in the tree that was proposed last; None without one.
    """

    rows: list[list[int]]
    pool: OrderedDict[int, OrderedDict[Gram, None]] = field(default_factory=OrderedDict)
    first_node: int | None = None


class Lookahead(Plain):
    """Drafts n-grams of its own trajectories beside a window that makes more of them."""

    name = "lookahead"
    has_trees = True
    wants_logits = True

    def __init__(self, width: int = 5, n_gram: int = 4, n_verified: int = 5) -> None:
        problems = [
            f"{what}: must be at least {least}, got {value}"
            for what, value, least in (
                ("width", width, 1),
                ("n_gram", n_gram, 2),
                ("n_verified", n_verified, 1),
            )
            if value < least
        ]
        if problems:
            raise InputError(*problems)
        self.width, self.n_gram, self.n_verified = width, n_gram, n_verified

    @property
    def n_nodes(self) -> int:
        """Tokens of a whole tree, at most."""
        w, n = self.width, self.n_gram
        return self.n_verified * (n - 1) + (w - 1) + (n - 2) * w

    def propose(self, asked: Sequence[Asked]) -> list[Tree]:
        """N-grams from the pool, then the window where it still fits."""
        return [self._of(one) for one in asked]

    def _of(self, one: Asked) -> Tree:
        if one.state is None:
            one.state = Window(self._start(one.ids))
        window: Window = one.state
        tokens: list[int] = []
        parents: list[int] = []
        grams = window.pool.get(one.ids[-1], OrderedDict())
        for gram in list(reversed(grams))[: self.n_verified]:
            add_branch(tokens, parents, gram)
        del tokens[one.most :], parents[one.most :]
        window.first_node = None
        n_window = self.n_nodes - self.n_verified * (self.n_gram - 1)
        if len(tokens) + n_window <= one.most:
            window.first_node = len(tokens)
            add_window(tokens, parents, window.rows)
        return Tree(tuple(tokens), tuple(parents)) if tokens else NOTHING

    def _start(self, ids: Sequence[int]) -> list[list[int]]:
        """A window of tokens of the text: any would do, likelier ones find their way sooner."""
        n_rows = self.n_gram - 1
        each = [
            [ids[-1 - (7 * k + 3 * j) % len(ids)] for j in range(self.width)] for k in range(n_rows)
        ]
        each[0] = each[0][1:]
        return each

    def observe(self, one: Asked, verified: Verified) -> None:
        """Read the window's answers: n-grams for the pool, and the next window."""
        window: Window | None = one.state
        if window is None or window.first_node is None or verified.logits is None:
            return
        first, window.first_node = window.first_node, None
        last_row = first + (self.width - 1) + (self.n_gram - 3) * self.width
        if self.n_gram == 2:
            # The only row is row 0, whose column 0 is the root.
            nodes = [ROOT, *range(first, first + self.width - 1)]
        else:
            nodes = list(range(last_row, last_row + self.width))
        answers = best(verified.logits, nodes)
        n_said = len(verified.path) + 1
        before = one.ids[-n_said - 1]
        for j in range(self.width):
            column = [before if j == 0 else window.rows[0][j - 1]]
            column += [row[j] for row in window.rows[1:]]
            self._remember(window, (*column, answers[j]))
        # A step of n_said tokens moves every column by as many, and every row up by one.
        shift = n_said - 1
        rows = [*window.rows[1:], answers]
        filler = one.ids[-self.width :]
        moved = []
        for row in rows:
            kept = row[shift : shift + self.width]
            moved.append(kept + [filler[i % len(filler)] for i in range(self.width - len(kept))])
        moved[0] = moved[0][1:]
        window.rows = moved

    def _remember(self, window: Window, gram: Gram) -> None:
        head, rest = gram[0], gram[1:]
        known = window.pool.setdefault(head, OrderedDict())
        window.pool.move_to_end(head)
        known[rest] = None
        known.move_to_end(rest)
        while len(known) > self.n_verified:
            known.popitem(last=False)
        while len(window.pool) > POOL_KEYS:
            window.pool.popitem(last=False)


def add_branch(tokens: list[int], parents: list[int], gram: Gram) -> None:
    """Add a chain from the root to a tree, along what of it is there."""
    node = ROOT
    for token in gram:
        found = next((i for i, t in enumerate(tokens) if parents[i] == node and t == token), None)
        if found is None:
            found = len(tokens)
            tokens.append(token)
            parents.append(node)
        node = found


def add_window(tokens: list[int], parents: list[int], rows: list[list[int]]) -> None:
    """Add the rows of a window to a tree: row 0 a chain, every other token below the one above."""
    above = ROOT
    row_before = [ROOT]
    for token in rows[0]:
        tokens.append(token)
        parents.append(above)
        above = len(tokens) - 1
        row_before.append(above)
    for row in rows[1:]:
        own = []
        for parent, token in zip(row_before, row, strict=True):
            tokens.append(token)
            parents.append(parent)
            own.append(len(tokens) - 1)
        row_before = own


def best(logits: Tensor, nodes: Sequence[int]) -> list[int]:
    """The likeliest token after each of `nodes`."""
    found: list[int] = logits[[node + 1 for node in nodes]].argmax(dim=-1).tolist()
    return found
