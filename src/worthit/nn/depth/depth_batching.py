"""Depth-wise batching: tokens at different depths of a shared block go through it together.

Bae et al. 2024, "Relaxed Recursive Transformers", arXiv:2410.20672, section 3.8 ("continuous
depth-wise batching"); Bae et al. 2025, "Mixture-of-Recursions", arXiv:2507.10524, section 3.3.

| paper | here |
|---|---|
| shared block | `MixtureOfRecursions` |
| a token and its depth | `Walker.x`, `Walker.step` |
| requests that join as others leave | the list given to `advance` |

All applications share weights, so that a batch need not be at one depth: whoever is done makes room
for the next at once, and nobody waits for the deepest. One call of `advance` is one pass over the
block's weights, whatever the depths in it. Each walker attends to its own sequence's cache of its
own step; caches of unequal length are padded on the left.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from worthit.errors import SpecError
from worthit.nn.cache import KVCache, LatentCache
from worthit.nn.decoder import Block
from worthit.nn.depth.mixture_of_recursions import MixtureOfRecursions
from worthit.nn.depth.selection import RowCaches
from worthit.nn.tokens import Tokens


@dataclass
class Walker:
    """One new token of one sequence on its way through the steps.

    Attributes:
        x: `(1, 1, d_model)`, its state.
        position: its place in its sequence.
        caches: one a step, of this sequence alone.
        n_planned: steps that it chose (token choice).
        step: applications that are behind it.
    """

    x: Tensor
    position: int
    caches: list[RowCaches]
    n_planned: int
    step: int = 0
    is_done: bool = False


def start(block: MixtureOfRecursions, x: Tensor, position: int, caches: list[object]) -> Walker:
    """The token with state `x` `(1, 1, d_model)` before its first step."""
    own = [c for c in caches if isinstance(c, RowCaches)]
    if len(own) != block.spec.n_loops:
        raise SpecError(
            "depth-wise batching needs a cache for each step, got one for all; set "
            "shares_loop_cache=False"
        )
    place = torch.full((1, 1), position, device=x.device)
    for cache in own:
        cache.start(place)
    return Walker(x, position, own, int(block.planned_steps(x)))


@torch.no_grad()
def advance(block: MixtureOfRecursions, walkers: list[Walker]) -> None:
    """One application of the block to every walker that is not done, each at its own step."""
    there = [w for w in walkers if not w.is_done]
    if not there:
        return
    x = torch.cat([w.x for w in there])
    rows = [w.caches[w.step].rows[0] for w in there]
    past = [w.caches[w.step].positions[0] for w in there]
    n = max(p.shape[1] for p in past)
    places = torch.tensor([[w.position] for w in there], device=x.device)
    seen = torch.stack([_left(p[0], n, dim=0) for p in past])
    lengths = torch.tensor([p.shape[1] for p in past], device=x.device)
    is_real = torch.arange(n + 1, device=x.device) >= n - lengths[:, None]
    tokens = Tokens(
        n=1,
        past=n,
        positions=places,
        is_real=None if bool(is_real.all()) else is_real,
        slot_positions=torch.cat([seen, places], dim=1),
    )
    together = [_padded([row[i] for row in rows], n) for i in range(len(rows[0]))]
    added = Block.forward(block, x, tokens, list(together)) - x
    for i, w in enumerate(there):
        for own, shared in zip(rows[i], together, strict=True):
            _append(own, [t[i : i + 1, ..., -1:, :] for t in _contents(shared)])
        cache = w.caches[w.step]
        cache.positions[0] = torch.cat([cache.positions[0], places[i : i + 1]], dim=1)
        weight = block.routers[w.step](w.x).sigmoid()[..., None]
        w.x = w.x + weight.to(x.dtype) * added[i : i + 1]
        w.step += 1
        w.is_done = w.step == block.spec.n_loops or not _goes_on(block, w)


def _goes_on(block: MixtureOfRecursions, w: Walker) -> bool:
    everyone = torch.ones(1, 1, dtype=torch.bool, device=w.x.device)
    planned = torch.full((1, 1), w.n_planned, device=w.x.device)
    r = block.routers[w.step](w.x)
    return bool(block.going_on(w.step, r, everyone, everyone, planned))


def _contents(cache: KVCache | LatentCache) -> tuple[Tensor, Tensor]:
    if isinstance(cache, KVCache):
        return cache.keys.value, cache.values.value
    return cache.latents.value, cache.rotary_keys.value


def _append(cache: object, new: list[Tensor]) -> None:
    assert isinstance(cache, KVCache | LatentCache)
    cache.append(new[0], new[1])


def _padded(caches: list[object], n: int) -> KVCache | LatentCache:
    """One cache whose rows are `caches`, padded on the left to `n` tokens."""
    kept: list[KVCache | LatentCache] = []
    for cache in caches:
        is_local = isinstance(cache, KVCache) and cache.window is not None
        if is_local or not isinstance(cache, KVCache | LatentCache):
            raise SpecError(
                "depth-wise batching pads caches of keys and values of whole sequences; this block "
                "keeps a window or a state"
            )
        kept.append(cache)
    together: KVCache | LatentCache = type(kept[0])()
    full = [c for c in kept if _length(c)]
    if not full:
        return together
    shapes = [t[..., :0, :] for t in _contents(full[0])]
    parts = [_contents(c) if _length(c) else tuple(shapes) for c in kept]
    first, second = (torch.cat([_left(p[i], n, dim=-2) for p in parts]) for i in range(2))
    together.append(first, second)
    return together


def _length(cache: KVCache | LatentCache) -> int:
    return cache.keys.length if isinstance(cache, KVCache) else cache.latents.length


def _left(x: Tensor, n: int, *, dim: int) -> Tensor:
    """`x` with zeros before it along `dim`, `n` long."""
    shape = list(x.shape)
    shape[dim] = n - shape[dim]
    return torch.cat([x.new_zeros(shape), x], dim=dim)
