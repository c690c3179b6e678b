"""Prompt look-up: what followed the last few tokens when they stood there before.

Saxena 2023, "Prompt Lookup Decoding", github.com/apoorvumang/prompt-lookup-decoding; Yang et al.
2023, "Inference with Reference", arXiv:2304.04487, section 3.

| there | here |
|---|---|
| max_ngram_size, tried first | `longest`, 3: single tokens find junk |
| (none) | `shortest`, 2 |
| num_pred_tokens | `Asked.most` |

The most recent occurrence is taken, of the longest n-gram that has one. An index of the last places
of every n-gram grows with the text, so that a look-up costs the same at any length.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from worthit.decode.speculative.drafter import NOTHING, Asked, Plain
from worthit.decode.speculative.tree import Tree
from worthit.errors import InputError


@dataclass
class Places:
    """Where each n-gram of a text ended last, and how much of the text is in it."""

    of: dict[tuple[int, ...], int] = field(default_factory=dict)
    n_known: int = 0


class PromptLookup(Plain):
    """Drafts what followed the same `longest` to `shortest` tokens the last time."""

    name = "lookup"

    def __init__(self, longest: int = 3, shortest: int = 2) -> None:
        if not 1 <= shortest <= longest:
            raise InputError(
                f"lookup: n-grams have from 1 token on, the shortest no longer than the longest; "
                f"got {shortest} and {longest}"
            )
        self.longest, self.shortest = longest, shortest

    def propose(self, asked: Sequence[Asked]) -> list[Tree]:
        """A chain for each sequence whose end stood in it before."""
        return [self._of(one) for one in asked]

    def _of(self, one: Asked) -> Tree:
        if one.state is None:
            one.state = Places()
        ids, places = one.ids, one.state
        # Up to the last token but one: the end of the text is no earlier place of itself.
        for end in range(places.n_known + 1, len(ids)):
            for n in range(self.shortest, min(self.longest, end) + 1):
                places.of[tuple(ids[end - n : end])] = end
        places.n_known = max(places.n_known, len(ids) - 1)
        for n in range(min(self.longest, len(ids)), self.shortest - 1, -1):
            end = places.of.get(tuple(ids[-n:]))
            if end is not None:
                return _chain(ids, end, one.most)
        return NOTHING


def _chain(ids: Sequence[int], start: int, most: int) -> Tree:
    """`most` tokens from `start` on; where the text ends, it goes on as it did from there."""
    period = len(ids) - start
    return Tree.chain([ids[start + i % period] for i in range(most)])
