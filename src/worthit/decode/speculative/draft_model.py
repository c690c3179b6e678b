"""A second, smaller model drafts: one token after another, for all sequences together.

Leviathan et al. 2022, arXiv:2211.17192, algorithm 1; Chen et al. 2023, arXiv:2302.01318.

| paper | here |
|---|---|
| M_p, M_q | the target; `DraftModel.model` |
| gamma | `Asked.most` |
| q_i(x), prefix included | `tree.q[i]`, drawn with the target's own settings |

Greedy requests are drafted greedily. The draft keeps a cache a sequence, which is cut back to what
was said: rows of attention are dropped, recurrent states go back to a copy from before the guess.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from worthit.decode.speculative.accept import distribution, drawn
from worthit.decode.speculative.caches import can_take_back, spare_windows
from worthit.decode.speculative.drafter import NOTHING, Asked, Plain
from worthit.decode.speculative.tree import Tree
from worthit.errors import InputError
from worthit.nn.cache import Cache
from worthit.nn.decoder import Decoder
from worthit.nn.ragged import ragged_tokens, side_by_side

# Guesses a draft, at most: what windows keep behind them, to be taken back.
MOST_DRAFTED = 64


@dataclass(eq=False)
class Followed:
    """The draft's cache of one sequence, and the tokens in it."""

    cache: Cache
    ids: list[int] = field(default_factory=list)
    # Where states cannot lose tokens: the cache before the last guess.
    before: Cache | None = None


class DraftModel(Plain):
    """Drafts what `model` says.

    Args:
        model: of the target's vocabulary, padding apart.
        vocab_size: the target's.
    """

    def __init__(self, model: Decoder, vocab_size: int, *, name: str = "draft-model") -> None:
        self.model, self.vocab_size, self.name = model, vocab_size, name
        self.context_len = model.spec.context_len

    def propose(self, asked: Sequence[Asked]) -> list[Tree]:
        """A chain for each sequence that still fits the draft's context."""
        guesses: dict[int, tuple[list[int], list[Tensor]]] = {}
        room = {i: self._room(one) for i, one in enumerate(asked)}
        active = [i for i in room if room[i] > 0]
        new = {i: self._caught_up(asked[i]) for i in active}
        while active:
            rows = self._pass([asked[i] for i in active], [new[i] for i in active])
            for i, row in zip(active, rows, strict=True):
                tokens, q = guesses.setdefault(i, ([], []))
                new[i] = [self._choose(asked[i], row, tokens, q)]
            active = [i for i in active if len(guesses[i][0]) < room[i]]
        return [
            NOTHING
            if i not in guesses
            else Tree.chain(guesses[i][0], torch.stack(guesses[i][1]) if guesses[i][1] else None)
            for i in range(len(asked))
        ]

    def _room(self, one: Asked) -> int:
        return min(one.most, MOST_DRAFTED, self.context_len - len(one.ids))

    def _caught_up(self, one: Asked) -> list[int]:
        """Cut the cache of `one` back to what was said, and return the tokens that it lacks."""
        if one.state is None:
            cache = self.model.new_cache()
            spare_windows(cache, MOST_DRAFTED)
            one.state = Followed(cache)
        known: Followed = one.state
        if known.before is not None:
            known.cache, known.before = known.before, None
            known.ids = known.ids[: known.cache.length]
        n = _n_common(known.ids, one.ids)
        # The last token is fed again where it is known already: somebody has to say what follows.
        n = min(n, len(one.ids) - 1)
        if n < len(known.ids):
            if can_take_back(known.cache):
                known.cache.take_back(len(known.ids) - n)
            else:
                known.cache, n = self.model.new_cache(), 0
            known.ids = known.ids[:n]
        return one.ids[n:]

    @torch.inference_mode()
    def _pass(self, asked: Sequence[Asked], new: Sequence[list[int]]) -> list[Tensor]:
        """Feed each sequence its tokens; the logits after the last of each."""
        known: list[Followed] = [one.state for one in asked]
        device = self.model.device
        for one, one_new in zip(known, new, strict=True):
            one.ids = one.ids + one_new
        if len(asked) == 1:
            ids = torch.tensor([new[0]], device=device)
            rows = [self.model(ids, cache=known[0].cache, last_only=True)[0, -1]]
        else:
            tokens = ragged_tokens(
                [(len(n), k.cache.length) for n, k in zip(new, known, strict=True)], device
            )
            ends = torch.tensor([len(n) for n in new], device=device).cumsum(0) - 1
            ids = torch.tensor([[t for n in new for t in n]], device=device)
            together = side_by_side([k.cache for k in known])
            rows = list(self.model.forward_ragged(ids, tokens, together, rows=ends)[0])
            for n, k in zip(new, known, strict=True):
                k.cache.length += len(n)
        for k in known:
            # The first pass of a guess ends with the token said last: what states go back to.
            if k.before is None and not can_take_back(k.cache):
                k.before = k.cache.fork()
        return [self._of_target(row) for row in rows]

    def _of_target(self, row: Tensor) -> Tensor:
        """Logits of the target's vocabulary: one may be padded further than the other."""
        if len(row) < self.vocab_size:
            return torch.cat([row, row.new_full((self.vocab_size - len(row),), -torch.inf)])
        return row[: self.vocab_size]

    def _choose(self, one: Asked, row: Tensor, tokens: list[int], q: list[Tensor]) -> int:
        sampling = one.sampling
        if sampling.is_plain:
            token = int(row.argmax())
        else:
            history = torch.tensor(one.ids + tokens) if sampling.has_history else None
            law = distribution(row, sampling, history, one.n_prompt)
            if sampling.is_greedy:
                token = int(law.argmax())
            else:
                token = drawn(law, one.chance())
                q.append(law)
        tokens.append(token)
        return token


def require_same_vocabulary(target: Decoder, draft: Decoder) -> None:
    """Raise InputError where the numbers of tokens cannot mean the same."""
    ours, theirs = target.spec.vocab_size, draft.spec.vocab_size
    # Tables are padded to multiples of 64 to 256; further apart are two vocabularies.
    if abs(ours - theirs) > MOST_PADDING:
        raise InputError(
            f"draft: a draft model must share the target's vocabulary, got {theirs} tokens for "
            f"{ours}; take a smaller model of the same family"
        )


MOST_PADDING = 512


def _n_common(a: Sequence[int], b: Sequence[int]) -> int:
    n = min(len(a), len(b))
    return next((i for i in range(n) if a[i] != b[i]), n)
