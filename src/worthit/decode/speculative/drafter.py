"""What a drafter is: it guesses what follows, and is told what the target made of the guess.

Leviathan et al. 2022, "Fast Inference from Transformers via Speculative Decoding",
arXiv:2211.17192; Chen et al. 2023, arXiv:2302.01318. Everything that drafts, from a look-up to
trained heads, does so through this one interface, and everything that verifies (the loop for one
sequence, the engine for many) asks through it:

    trees = drafter.propose(asked)        # a guess for each sequence, maybe an empty one
    ...                                   # one pass of the target over all of them
    drafter.observe(one, verified)        # for each sequence, after each pass

A guess is a `Tree`: a chain is the tree without siblings. Where its tokens were drawn, it carries
the distributions `q` that they were drawn from; where they were picked (a look-up, the k
likeliest), it has none. What is said is the target's either way: see `accept`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor

from worthit.decode.sampling import Sampling
from worthit.decode.speculative.control import Pace
from worthit.decode.speculative.tree import Tree

if TYPE_CHECKING:
    from worthit.nn.decoder import Decoder

# No guess.
NOTHING = Tree((), ())


@dataclass(eq=False, kw_only=True)
class Asked:
    """One sequence, as a drafter sees it; the same object for as long as the sequence lives.

    Attributes:
        ids: the prompt and what was said; the last of them is not computed yet. Grows in place.
        n_prompt: how many of them are the prompt.
        sampling: how the target's tokens are chosen. A drafter that draws should draw likewise,
            for more to be accepted; it need not.
        chance: a number from 0 to below 1, a fresh one each time, of the drafts alone.
        most: at most so many tokens are wanted now, all branches together.
        state: the drafter's own, None at first. What is in it belongs to `ids` up to some place:
            a sequence may be computed again from its beginning, but what it said stays said.
        pace: how its guesses fared, for whoever decides `most`.
    """

    ids: list[int]
    n_prompt: int
    sampling: Sampling
    chance: Callable[[], float]
    most: int = 0
    state: Any = None
    pace: Pace = field(default_factory=Pace)


@dataclass(frozen=True, kw_only=True)
class Verified:
    """What the target made of one sequence's share of a pass.

    Attributes:
        start: the place in the sequence of the first token that was computed.
        n: tokens computed and kept, those of the accepted path included.
        tree: the guess; empty where there was none, in a prompt for example.
        path: the accepted nodes, from the root's child down.
        features: `(n, n_taps * d_model)`, what the target's layers `taps` gave out at the tokens
            from `start` on; None for drafters without taps.
        logits: `(1 + len(tree), vocab_size)`, the target's after the token said last and after each
            node, rejected ones as well; None for drafters that do not ask.
    """

    start: int
    n: int
    tree: Tree = NOTHING
    path: tuple[int, ...] = ()
    features: Tensor | None = None
    logits: Tensor | None = None


class Drafter(Protocol):
    """Guesses what follows.

    Attributes:
        name: in one word, for reports.
        taps: after which layers of the target, from 0, it wants to see what they give out.
        wants_logits: whether `observe` wants the target's logits of the whole tree.
        has_trees: whether its guesses may have siblings, which not every target can verify.
    """

    name: str
    taps: tuple[int, ...]
    wants_logits: bool
    has_trees: bool

    def propose(self, asked: Sequence[Asked]) -> list[Tree]:
        """A guess for each sequence, of at most `most` tokens; called once a step."""

    def observe(self, one: Asked, verified: Verified) -> None:
        """Hear of every pass of a sequence: chunks of its prompt, single tokens, and guesses.

        `one.ids` ends with the tokens that were said.
        """


class Plain:
    """What most drafters have in common: no taps, no trees, nothing to hear."""

    name = "plain"
    taps: tuple[int, ...] = ()
    wants_logits = False
    has_trees = False

    def propose(self, asked: Sequence[Asked]) -> list[Tree]:
        """No guesses."""
        return [NOTHING for _ in asked]

    def observe(self, one: Asked, verified: Verified) -> None:
        """Nothing is kept."""


# Makes the drafter of a loaded target: what an option of the command line turns into.
DrafterOf = Callable[["Decoder"], Drafter]
