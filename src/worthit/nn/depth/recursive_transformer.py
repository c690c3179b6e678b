"""Recursive transformer: one block, applied `n_loops` times with the same weights.

Dehghani et al. 2018, "Universal Transformers", arXiv:1807.03819, section 2; Bae et al. 2024,
"Relaxed Recursive Transformers", arXiv:2410.20672, equation 2:

    h_t^l = f(h_t^(l-1); Phi'_((l-1) mod L/B + 1))

| paper | here |
|---|---|
| B loops | `n_loops` |
| Phi', the shared parameters | the block's |
| h^l | `x` after l applications |

Each layer of the spec is repeated where it stands (the papers call this a sequence, beside the
cycle over several layers). Every application keeps keys and values of its own; with
`shares_loop_cache` later ones read those of the first, as "recursive KV sharing" does (Bae et al.
2025, arXiv:2507.10524, section 2.2).
"""

from __future__ import annotations

from torch import Tensor

from worthit.errors import SpecError
from worthit.nn.cache import KVCache, LatentCache
from worthit.nn.decoder import Block
from worthit.nn.tokens import Tokens
from worthit.spec.model import Attention, LatentAttention, Layer, ModelSpec


class FirstSeen:
    """A cache for several applications: the first one's keys and values are everybody's."""

    is_observing = False

    def __init__(self, cache: KVCache | LatentCache) -> None:
        self.cache = cache
        self._seen: tuple[Tensor, Tensor] | None = None

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Remember the first application's, and return them to the others in place of theirs."""
        if self._seen is None:
            self._seen = self.cache.append(keys, values)
        return self._seen


class Recursive(Block):
    """A block that is its own successor."""

    def __init__(self, layer: Layer, model: ModelSpec) -> None:
        super().__init__(layer, model)
        require_keys(layer)

    def new_caches(self) -> list[object]:
        """The block's caches, once for each application unless it shares them."""
        n_copies = 1 if self.spec.shares_loop_cache else self.spec.n_loops
        return [cache for _ in range(n_copies) for cache in super(Recursive, self).new_caches()]

    def forward(self, x: Tensor, tokens: Tokens, caches: list[object] | None = None) -> Tensor:
        """`(batch, n, d_model)` to the same shape."""
        for own in self.caches_of_loops(caches):
            x = super().forward(x, tokens, own)
        return x

    def caches_of_loops(self, caches: list[object] | None) -> list[list[object] | None]:
        """What each application is given of the caches of all."""
        n_loops = self.spec.n_loops
        if self.spec.shares_loop_cache:
            # Within a pass without a cache the first application has to be remembered too.
            own = super().new_caches() if caches is None else caches
            return [first_seen(own)] * n_loops
        if caches is None:
            return [None] * n_loops
        each = len(caches) // n_loops
        return [caches[i * each : (i + 1) * each] for i in range(n_loops)]


def first_seen(caches: list[object]) -> list[object]:
    """Each of `caches`, shared by the applications of one pass."""
    return [FirstSeen(c) for c in caches if isinstance(c, KVCache | LatentCache)]


def require_keys(layer: Layer) -> None:
    """Raise where a cache is to be shared that does not consist of keys and values."""
    strange = [type(m).__name__ for m in layer.mixers if not isinstance(m, KEYED)]
    if layer.shares_loop_cache and strange:
        raise SpecError(
            "shares_loop_cache needs mixers that keep keys and values, got "
            f"{', '.join(strange)}; let each loop keep its own state"
        )


KEYED = (Attention, LatentAttention)
