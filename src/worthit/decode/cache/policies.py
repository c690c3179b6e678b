"""Which cached tokens to keep: four rules.

| rule | what it keeps |
|---|---|
| `Streaming` | the first tokens and the last (Xiao et al. 2023, "Efficient Streaming Language Models with Attention Sinks", arXiv:2309.17453, section 3.2) |
| `HeavyHitters` | those read most by all queries so far, and the last (Zhang et al. 2023, "H2O", arXiv:2306.14048, algorithm 1) |
| `SnapKV` | those that the last queries of the prompt read, with their neighbours, and these last tokens (Li et al. 2024, arXiv:2404.14469, section 4) |
| `Tova` | all but the one that the last query read least (Oren et al. 2024, "Transformers are Multi-State RNNs", arXiv:2401.06104, section 3.2) |

All keep the first `n_sinks` tokens, on which attention rests whatever they say: on small models
without them nothing else matters (the H2O, SnapKV and TOVA papers do not say so and mostly keep
them by their scores).

A rule ranks every kept token of every key/value head; the lowest ranks go. Heads of a group vote
together: sums and means are over the queries of a group.
"""  # noqa: E501 - a row of a table is one line

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional

from worthit.errors import unknown_name

if TYPE_CHECKING:
    from worthit.decode.cache.evicting import EvictingKV

# Queries whose weights are written down at once.
QUERY_TILE = 64


@dataclass(frozen=True, kw_only=True)
class Policy:
    """What all rules share; by itself none."""

    n_sinks: int = 4

    @property
    def least(self) -> int:
        """The smallest budget that makes sense."""
        return self.n_sinks + 1

    def n_asked(self, n: int) -> int:
        """Of how many of the last of `n` new queries the weights are wanted."""
        return 0

    def count(self, cache: EvictingKV, q: Tensor, scale: float) -> None:
        """Take note of what the queries `(batch, n_heads, n, head_dim)`, the last ones, read."""

    def ranks(self, cache: EvictingKV) -> Tensor:
        """`(batch, n_kv_heads, length)`: higher is kept longer."""
        raise NotImplementedError

    def _protected(self, cache: EvictingKV, ranks: Tensor, *, n_recent: int = 0) -> Tensor:
        """`ranks` with the first tokens, and so many of the last, above all others."""
        places = cache.places.value[..., 0]
        is_kept = (places < self.n_sinks) | (places >= cache.n_seen - n_recent)
        return ranks.masked_fill(is_kept, torch.inf)


@dataclass(frozen=True, kw_only=True)
class Streaming(Policy):
    """Sinks and a recent window. The paper numbers positions anew; here keys keep theirs."""

    def ranks(self, cache: EvictingKV) -> Tensor:
        """The later, the higher."""
        return self._protected(cache, cache.places.value[..., 0].float())


@dataclass(frozen=True, kw_only=True)
class HeavyHitters(Policy):
    """H2O: sums of attention over all queries; a share of the budget is for the last tokens."""

    recent_share: float = 0.5

    @property
    def least(self) -> int:
        """Sinks, as many recent ones, and some between them."""
        return 2 * self.n_sinks + 2

    def n_asked(self, n: int) -> int:
        """All of them."""
        return n

    def count(self, cache: EvictingKV, q: Tensor, scale: float) -> None:
        """Add what each token was read."""
        n = q.shape[2]
        votes = cache.votes.value[..., 0]
        for start in range(0, n, QUERY_TILE):
            tile = q[:, :, start : start + QUERY_TILE]
            # These queries are not the last ones of the pass: what follows them is not theirs.
            n_behind = n - start - tile.shape[2]
            weights = cache.weights(tile, scale, n_behind=n_behind)
            read = _by_group(weights.sum(dim=2), votes.shape[1]).sum(dim=2)
            votes[..., : read.shape[-1]] += read

    def ranks(self, cache: EvictingKV) -> Tensor:
        """The more it was read; the last tokens, which few queries have seen, above all."""
        n_recent = int(cache.budget * self.recent_share)
        return self._protected(cache, cache.votes.value[..., 0], n_recent=n_recent)


@dataclass(frozen=True, kw_only=True)
class SnapKV(Policy):
    """Votes of a prompt's last `window` queries, pooled over neighbours; answers are kept.

    The paper drops tokens once, after the prompt. To stay within its budget, an answer here pushes
    out the prompt's tokens of the fewest votes one by one. A prompt that comes in chunks is voted
    on after each: the paper's choice is that of a prompt in one pass.
    """

    window: int = 32
    kernel: int = 5

    @property
    def least(self) -> int:
        """The window, the sinks, and one more."""
        return self.n_sinks + self.window + 1

    def n_asked(self, n: int) -> int:
        """The last of a prompt. Fewer new tokens than a window has are an answer's."""
        return min(n, self.window)

    def count(self, cache: EvictingKV, q: Tensor, scale: float) -> None:
        """Pool what a prompt's queries read of each token; put an answer above all votes."""
        votes, places = cache.votes.value[..., 0], cache.places.value[..., 0]
        n = q.shape[2]
        if n < self.window:
            votes[..., -n:] = self.window + 1.0 + places[..., -n:]
            return
        weights = cache.weights(q, scale)
        read = _by_group(weights.sum(dim=2), votes.shape[1]).mean(dim=2)
        # Neighbours are those in the text, wherever they are stored.
        order = places.argsort(dim=-1)
        pooled = functional.avg_pool1d(
            read.gather(-1, order), self.kernel, stride=1, padding=self.kernel // 2
        )
        votes.scatter_(-1, order, pooled)

    def ranks(self, cache: EvictingKV) -> Tensor:
        """Votes; of an answer, which has none, its places above them."""
        return self._protected(cache, cache.votes.value[..., 0], n_recent=self.window)


@dataclass(frozen=True, kw_only=True)
class Tova(Policy):
    """What the last query reads, all heads of a layer together."""

    def n_asked(self, n: int) -> int:
        """The last one."""
        return 1

    def count(self, cache: EvictingKV, q: Tensor, scale: float) -> None:
        """Only the last query counts, and only until the next."""
        read = cache.weights(q, scale)[:, :, -1].mean(dim=1, keepdim=True)
        cache.votes.value[..., 0] = read

    def ranks(self, cache: EvictingKV) -> Tensor:
        """The more it is read, the higher."""
        return self._protected(cache, cache.votes.value[..., 0])


POLICIES: dict[str, type[Policy]] = {
    "streaming": Streaming,
    "h2o": HeavyHitters,
    "snapkv": SnapKV,
    "tova": Tova,
}


def policy_of(name: str, **options: Any) -> Policy:
    """The rule called `name`.

    Raises:
        UnknownName: there is none.
    """
    if name not in POLICIES:
        raise unknown_name("eviction policy", name, POLICIES)
    return POLICIES[name](**options)


def _by_group(x: Tensor, n_kv_heads: int) -> Tensor:
    """`(batch, n_heads, m)` as `(batch, n_kv_heads, group, m)`."""
    return x.unflatten(1, (n_kv_heads, -1))
