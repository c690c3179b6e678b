"""A cache of a bounded number of tokens: when there are more, the least wanted are dropped.

Xiao et al. 2023, StreamingLLM, arXiv:2309.17453; Zhang et al. 2023, H2O, arXiv:2306.14048; Li et
al. 2024, SnapKV, arXiv:2404.14469; Oren et al. 2024, TOVA, arXiv:2401.06104. What a policy decides
is in `policies`; here stand the tokens, where they were in the sequence, and what is known of how
they were read. Keys keep the rotation of their original positions, and the next token's position is
the number of tokens seen, not of those kept.

Fused attention does not say what was read. Weights are computed again for the queries that a policy
asks about, after each pass; then tokens go, each head its own, all heads as many.
"""

from __future__ import annotations

import torch
from torch import Tensor

from worthit.decode.cache.policies import Policy
from worthit.decode.cache.quantized import QuantizedKV
from worthit.errors import InputError
from worthit.nn.cache import GrowingTensor, KVCache
from worthit.nn.tokens import Tokens


class EvictingKV(KVCache):
    """At most `budget` tokens a head, by `policy`; stored in `store`, or as they are.

    While `holds`, nothing is dropped and the last pass can be taken back; `settle` then drops.

    Attributes:
        n_seen: tokens of the sequence.
        places: `(batch, n_kv_heads, length, 1)`, where each kept token stood.
        votes: the same shape, what the policy adds up or looks at; None for those that do not.
    """

    is_observing = True

    def __init__(self, policy: Policy, budget: int, store: KVCache | None = None) -> None:
        super().__init__()
        if budget < policy.least:
            raise InputError(
                f"budget: must be at least {policy.least} tokens for {type(policy).__name__}, got "
                f"{budget}"
            )
        self.policy, self.budget = policy, budget
        self.store = KVCache() if store is None else store
        if isinstance(self.store, QuantizedKV):
            form = self.store.form
            if form.by_channel or form.recent:
                raise InputError(
                    "eviction drops single tokens, and this cache format has groups of them that "
                    "share scales, or recent ones in another format; take int8 or int4"
                )
        self.n_seen = 0
        self.places, self.votes = GrowingTensor(), GrowingTensor()
        self._asked: tuple[Tensor, float] | None = None

    @property
    def _rows(self) -> list[GrowingTensor]:
        """Everything with a row a token."""
        if isinstance(self.store, QuantizedKV):
            stored = [part for codes in self.store.quantized for part in codes.parts]
        else:
            stored = [self.store.keys, self.store.values]
        return [*stored, self.places, self.votes]

    @property
    def length(self) -> int:
        """Tokens kept."""
        return self.places.length

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Add this pass's keys and values; return all that is kept and them, they last."""
        n = keys.shape[-2]
        places = torch.arange(self.n_seen, self.n_seen + n, device=keys.device)
        shape = (*keys.shape[:2], n, 1)
        self.places.append(places[:, None].expand(shape))
        self.votes.append(torch.zeros(shape, device=keys.device))
        self.n_seen += n
        return self.store.append(keys, values)

    def observe(self, q: Tensor, scale: float, tokens: Tokens) -> None:
        """See the queries of the pass, and drop what its policy wants least."""
        if tokens.is_real is not None:
            raise InputError(
                "an evicting cache takes rows of equal length: padding would be kept as if it "
                "were text; run one prompt at a time, or the engine"
            )
        self._asked = (q, scale)
        if not self.holds:
            self.settle()

    def settle(self) -> None:
        """Count what the last pass read, and drop what is too much."""
        if self._asked is None:
            return
        q, scale = self._asked
        self._asked = None
        n_asked = self.policy.n_asked(q.shape[2])
        if n_asked:
            self.policy.count(self, q[:, :, -n_asked:], scale)
        n_extra = self.length - self.budget
        if n_extra <= 0:
            return
        ranks = self.policy.ranks(self)
        if n_extra == 1:
            least = ranks.argmin(dim=-1)
            for rows in self._rows:
                rows.replace_by_last(least)
            return
        kept = ranks.topk(self.budget, dim=-1).indices.sort(dim=-1).values
        for rows in self._rows:
            rows.keep(kept)

    def keys_now(self, dtype: torch.dtype) -> Tensor:
        """All keys as they are remembered, `(batch, n_kv_heads, length, head_dim)`."""
        if isinstance(self.store, QuantizedKV):
            return self.store.quantized[0].value(dtype)
        return self.store.keys.value

    def weights(self, q: Tensor, scale: float, *, n_behind: int = 0) -> Tensor:
        """What queries `(batch, n_heads, n, head_dim)` read, `(batch, n_heads, n, m)`.

        They belong to the last tokens of the cache but `n_behind`, and see themselves and what
        stands before: m is what is kept, less those behind.
        """
        keys = self.keys_now(q.dtype)[:, :, : self.length - n_behind]
        groups = q.shape[1] // keys.shape[1]
        n, m = q.shape[2], keys.shape[2]
        folded = q.unflatten(1, (-1, groups)).flatten(2, 3)  # (batch, n_kv_heads, groups * n, d)
        scores = (folded @ keys.transpose(-1, -2)).float() * scale
        scores = scores.unflatten(2, (groups, n))
        if n > 1:
            slots = torch.arange(m, device=q.device)
            last = torch.arange(m - n, m, device=q.device)
            scores = scores.masked_fill(slots > last[:, None], -torch.inf)
        return scores.softmax(dim=-1).flatten(1, 2)

    def take_back(self, n: int) -> None:
        """Forget the last `n` tokens of a pass that was held."""
        if n and not (self.holds and self._asked is not None):
            raise InputError("an evicting cache takes back only what it was told to hold")
        if self._asked is not None:
            q, scale = self._asked
            self._asked = (q[:, :, : q.shape[2] - n], scale)
        self.store.take_back(n)
        for rows in (self.places, self.votes):
            rows.truncate(rows.length - n)
        self.n_seen -= n

    def fork(self) -> EvictingKV:
        """A copy that goes on by itself."""
        copy = EvictingKV(self.policy, self.budget, self.store.fork())
        copy.places, copy.votes = self.places.fork(), self.votes.fork()
        copy.n_seen, copy.holds, copy._asked = self.n_seen, self.holds, self._asked
        return copy

    @property
    def nbytes(self) -> int:
        """Bytes of the keys and values kept; `bookkeeping_nbytes` come on top."""
        return self.store.nbytes

    @property
    def bookkeeping_nbytes(self) -> int:
        """Bytes of places and votes."""
        return self.places.nbytes + self.votes.nbytes

    def select_rows(self, rows: Tensor) -> None:
        """Keep these batch rows."""
        self.store.select_rows(rows)
        self.places.select_rows(rows)
        self.votes.select_rows(rows)
