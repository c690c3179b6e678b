"""Sparse attention: a query reads a few of the keys, by a fixed pattern or by choice.

Fixed patterns, Child et al. 2019, "Generating Long Sequences with Sparse Transformers",
arXiv:1904.10509, section 4.2; Zaheer et al. 2020, "Big Bird", arXiv:2007.14062, section 2 (blocks
with global tokens, here causal and without its random blocks):

    strided     j > i - l, or (i - j) mod l = 0
    fixed       floor(j / l) = floor(i / l), or j mod l >= l - c
    blocks      the query's block and the `n_near` before it, or j < `n_global`

By choice, Yuan et al. 2025, "Native Sparse Attention", arXiv:2502.11089, section 3: keys are
compressed block by block, the query's scores on those choose blocks, and these are read in full;
query heads of one group choose together. `SparseAttention` is that selection alone, with the mean
of a block for its compression (the parameter-free form of Lu et al. 2025, "MoBA",
arXiv:2502.13189): what `spec.Attention.sparse_keys` says, n keys a query and no parameters more.
`NativeSparseAttention` has all three branches and their gates.

| paper | here |
|---|---|
| l' and n, block size and count | `block`, `n_blocks`: `Attention.sparse_blocks` of `sparse_keys` |
| w, the window's keys | `Attention.sparse_near` |
| K^cmp, V^cmp, phi | `block_means`, or the learned `compress_keys`, `compress_values` |
| p^cmp; p^slc, summed over a group's heads | `block_weights`; `by_group` of them |
| I_t, the chosen blocks | `choose`: the own block, the first one where there are three, the best |
| g^cmp, g^slc, g^win | `gate_proj` |

Only whole blocks that end before the query's own are compressed for it, so that nothing leaks from
ahead; blocks count from a sequence's first real token. Compression blocks do not overlap here and
are the selection's, and one set of keys serves all branches, where the paper has three. Every step
compresses afresh; a server would keep the compressed keys.

Each fixed pattern has its mask, which is the definition, and a form that computes no score outside
it: partial attentions over disjoint sets of keys, merged by their log-sum-exp.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from worthit.errors import SpecError
from worthit.nn.attention.core import attend, repeat_heads
from worthit.nn.attention.flash_attention import merge
from worthit.nn.attention.gqa import GroupedQueryAttention
from worthit.nn.cache import KVCache
from worthit.nn.tokens import Tokens
from worthit.spec import model as spec

Partial = tuple[Tensor, Tensor]

# Queries whose chosen blocks are gathered at once.
QUERY_TILE = 64


def strided_mask(n: int, stride: int) -> Tensor:
    """`(n, n)`: the last `stride` tokens, and every `stride`-th before them."""
    i, j = torch.arange(n)[:, None], torch.arange(n)[None, :]
    return (j <= i) & ((i - j < stride) | ((i - j) % stride == 0))


def fixed_mask(n: int, block: int, n_summary: int) -> Tensor:
    """`(n, n)`: the own block, and the last `n_summary` tokens of every earlier one."""
    i, j = torch.arange(n)[:, None], torch.arange(n)[None, :]
    return (j <= i) & ((i // block == j // block) | (j % block >= block - n_summary))


def block_mask(n: int, block: int, n_near: int, n_global: int) -> Tensor:
    """`(n, n)`: the own block, the `n_near` before it, and the first `n_global` tokens."""
    i, j = torch.arange(n)[:, None], torch.arange(n)[None, :]
    return (j <= i) & ((i // block - j // block <= n_near) | (j < n_global))


def attend_strided(q: Tensor, k: Tensor, v: Tensor, *, stride: int, scale: float) -> Tensor:
    """n (stride + n / stride) scores a head: near keys by blocks, far ones by residue."""
    n = q.shape[2]
    near = _near(q, k, v, scale, stride, lambda i, j: i - j < stride)
    q, k, v = (_in_blocks(t, stride).transpose(2, 3) for t in (q, k, v))
    rows = torch.arange(-(-n // stride), device=q.device)
    # The query's own key, and with it distance 0, is among the near ones.
    far = _partial(q, k, v, rows[:, None] > rows[None, :], scale)
    far = (_flat(far[0].transpose(2, 3), n), far[1].transpose(2, 3).flatten(2)[:, :, :n])
    return merge([near, far])[0]


def attend_fixed(
    q: Tensor, k: Tensor, v: Tensor, *, block: int, n_summary: int, scale: float
) -> Tensor:
    """n (block + n_summary n / block) scores a head: the own block, and all summaries before it."""
    n = q.shape[2]
    own = _near(q, k, v, scale, block, lambda i, j: i // block == j // block)
    places = torch.arange(n, device=q.device)
    summaries = places[places % block >= block - n_summary]
    mask = summaries[None, :] // block < places[:, None] // block
    return merge([own, _partial(q, k[:, :, summaries], v[:, :, summaries], mask, scale)])[0]


def attend_blocks(
    q: Tensor, k: Tensor, v: Tensor, *, block: int, n_near: int, n_global: int, scale: float
) -> Tensor:
    """n ((n_near + 1) block + n_global) scores a head."""
    n = q.shape[2]
    near = _near(
        q,
        k,
        v,
        scale,
        block,
        lambda i, j: (i // block - j // block <= n_near) & (j >= n_global),
        n_near,
    )
    places = torch.arange(n, device=q.device)
    first = slice(0, min(n_global, n))
    mask = places[None, first] <= places[:, None]
    return merge([near, _partial(q, k[:, :, first], v[:, :, first], mask, scale)])[0]


def _near(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float,
    block: int,
    sees: Callable[[Tensor, Tensor], Tensor],
    n_near: int = 1,
) -> Partial:
    """Each block of queries on its own and the `n_near` blocks of keys before it."""
    n = q.shape[2]
    q, k, v = (_in_blocks(t, block) for t in (q, k, v))  # (batch, heads, blocks, block, d)
    n_blocks = q.shape[2]
    padded = (functional.pad(t, (0, 0, 0, 0, n_near, 0)) for t in (k, v))
    k, v = (
        torch.cat([t[:, :, i : i + n_blocks] for i in range(n_near + 1)], dim=3) for t in padded
    )
    starts = torch.arange(n_blocks, device=q.device)[:, None] * block
    i = (starts + torch.arange(block, device=q.device))[:, :, None]
    j = (starts + torch.arange(-n_near * block, block, device=q.device))[:, None, :]
    out, lse = _partial(q, k, v, (j >= 0) & (j <= i) & sees(i, j), scale)
    return _flat(out, n), lse.flatten(2)[:, :, :n]


def _partial(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float) -> Partial:
    """Attention over one set of keys and its log-sum-exp; 0 and minus infinity without any."""
    scores = (q @ k.transpose(-1, -2) * scale).masked_fill(~mask, -math.inf)
    if scores.shape[-1] == 0:
        return q.new_zeros(*q.shape[:-1], v.shape[-1]), scores.new_full(q.shape[:-1], -math.inf)
    top = scores.detach().amax(dim=-1, keepdim=True)
    base = top.masked_fill(top == -math.inf, 0.0)
    weights = (scores - base).exp()
    total = weights.sum(dim=-1, keepdim=True)
    seen = total > 0
    # The logarithm of a sum that is not there has no gradient to give.
    safe = total.where(seen, 1.0)
    lse = torch.where(seen, base + safe.log(), -math.inf)[..., 0]
    return (weights / safe) @ v, lse


def _in_blocks(x: Tensor, block: int) -> Tensor:
    return functional.pad(x, (0, 0, 0, -x.shape[2] % block)).unflatten(2, (-1, block))


def _flat(x: Tensor, n: int) -> Tensor:
    return x.flatten(2, 3)[:, :, :n]


class SparseAttention(GroupedQueryAttention):
    """Grouped-query attention that reads at most `sparse_keys` keys, chosen block by block.

    All keys stay cached: any of them may be chosen next.
    """

    def __init__(self, attention: spec.Attention, model: spec.ModelSpec) -> None:
        super().__init__(attention, model)
        a = attention
        assert a.sparse_keys is not None
        is_biased = self.position.kind in ("alibi", "relative-bias") and not a.is_position_free
        if a.reach is not None or a.has_sinks or a.logit_softcap is not None or is_biased:
            raise SpecError(
                "sparse_keys chooses among all past keys by their plain scores; got a window, "
                "chunk, sinks, soft cap or bias beside it; drop either"
            )
        self.block, self.n_blocks = a.sparse_blocks

    def recall(
        self, q: Tensor, k: Tensor, v: Tensor, tokens: Tokens, cache: KVCache | None = None
    ) -> Tensor:
        """Choose blocks for each token and group, then attend to what stands in them."""
        if cache is not None:
            k, v = cache.append(k, v)
        k, v = (from_first_real(t, tokens) for t in (k, v))
        means = block_means(k, self.block)
        weights = block_weights(q, means, tokens.positions, self.block, self.scale)
        chosen = choose(by_group(weights, k.shape[1]), tokens.positions, self.block, self.n_blocks)
        return attend_chosen(q, k, v, chosen, tokens.positions, self.block, self.scale)


class NativeSparseAttention(SparseAttention):
    """Compressed, selected and the `sparse_near` nearest keys, weighed by gates of the token."""

    # Its gates are those of the whole pass.
    takes_parts = False

    def __init__(self, attention: spec.Attention, model: spec.ModelSpec) -> None:
        super().__init__(attention, model)
        assert attention.sparse_near is not None
        width = self.block * attention.head_dim
        self.near = attention.sparse_near
        self.compress_keys = nn.Linear(width, attention.head_dim)
        self.compress_values = nn.Linear(width, attention.head_dim)
        self.gate_proj = nn.Linear(model.d_model, 3 * attention.n_heads)
        self._gates: Tensor | None = None

    def forward(self, x: Tensor, tokens: Tokens, cache: Any = None) -> Tensor:
        """`(batch, n, d_model)` to the same shape."""
        gates = torch.sigmoid(self.gate_proj(x)).unflatten(-1, (3, -1))
        self._gates = gates.permute(2, 0, 3, 1)[..., None]  # (3, batch, n_heads, n, 1)
        return super().forward(x, tokens, cache)

    def recall(
        self, q: Tensor, k: Tensor, v: Tensor, tokens: Tokens, cache: KVCache | None = None
    ) -> Tensor:
        """The gated sum of three attentions."""
        assert self._gates is not None
        if cache is not None:
            k, v = cache.append(k, v)
        k, v = (from_first_real(t, tokens) for t in (k, v))
        places, block = tokens.positions, self.block
        small_k, small_v = (
            phi(_whole_blocks(t, block).flatten(-2))
            for phi, t in ((self.compress_keys, k), (self.compress_values, v))
        )
        weights = block_weights(q, small_k, places, block, self.scale)
        chosen = choose(by_group(weights, k.shape[1]), places, block, self.n_blocks)
        groups = q.shape[1] // k.shape[1]
        branches = (
            weights.masked_fill(weights == -math.inf, 0.0).to(q.dtype)
            @ repeat_heads(small_v, groups),
            attend_chosen(q, k, v, chosen, places, block, self.scale),
            self._near(q, k, v, places),
        )
        return sum(
            (g * b for g, b in zip(self._gates, branches, strict=True)), start=q.new_zeros(())
        )

    def _near(self, q: Tensor, k: Tensor, v: Tensor, places: Tensor) -> Tensor:
        distance = places[:, None, :, None] - torch.arange(k.shape[2], device=k.device)
        mask = (distance >= 0) & (distance < self.near)
        return attend(q, k, v, scale=self.scale, mask=mask)


def from_first_real(x: Tensor, tokens: Tokens) -> Tensor:
    """`x` `(batch, heads, m, d)` with each row's padding moved behind its last token."""
    if tokens.is_real is None:
        return x
    m = x.shape[2]
    n_padding = m - tokens.is_real.sum(dim=-1)
    slots = (torch.arange(m, device=x.device) + n_padding[:, None]) % m
    return x.gather(2, slots[:, None, :, None].expand_as(x))


def block_means(k: Tensor, block: int) -> Tensor:
    """The mean key of each whole block, `(batch, n_kv_heads, m // block, d)`."""
    return _whole_blocks(k, block).mean(dim=3)


def block_weights(q: Tensor, small: Tensor, places: Tensor, block: int, scale: float) -> Tensor:
    """How much each query wants each earlier block, `(batch, n_heads, n, blocks)`; -inf not at all.

    In fp32: the softmax over the compressed keys, which is the compressed branch's own too.
    """
    groups = q.shape[1] // small.shape[1]
    scores = q @ repeat_heads(small, groups).transpose(-1, -2) * scale
    # -inf alone would make rows without blocks NaN.
    low = torch.finfo(scores.dtype).min
    before = _is_before(small, places, block)
    weights = scores.masked_fill(~before, low).float().softmax(dim=-1)
    return weights.masked_fill(~before, -math.inf)


def by_group(weights: Tensor, kv_heads: int) -> Tensor:
    """The same for all query heads of a group together, `(batch, n_kv_heads, n, blocks)`."""
    return weights.unflatten(1, (kv_heads, -1)).sum(dim=2)


def choose(scores: Tensor, places: Tensor, block: int, n_blocks: int) -> Tensor:
    """The chosen blocks of each query and group, `(batch, n_kv_heads, n, n_blocks)`; -1 is none."""
    own = (places // block)[:, None, :, None].expand(*scores.shape[:3], 1)
    if n_blocks >= 3 and scores.shape[-1]:
        # An infinite score, where the block is an earlier one at all.
        first = scores[..., :1].masked_fill(scores[..., :1] > -math.inf, math.inf)
        scores = torch.cat([first, scores[..., 1:]], dim=-1)
    # Stable, so that ties do not depend on shapes.
    best, order = scores.sort(dim=-1, descending=True, stable=True)
    best, order = best[..., : n_blocks - 1], order[..., : n_blocks - 1]
    return torch.cat([own, order.masked_fill(best == -math.inf, -1)], dim=-1)


def attend_chosen(
    q: Tensor, k: Tensor, v: Tensor, chosen: Tensor, places: Tensor, block: int, scale: float
) -> Tensor:
    """Attention to the keys of the chosen blocks and no others, `(batch, n_heads, n, d_v)`."""
    batch, kv_heads, n, _ = chosen.shape
    k_blocks, v_blocks = _in_blocks(k, block), _in_blocks(v, block)
    rows = torch.arange(batch, device=q.device)[:, None, None, None]
    heads = torch.arange(kv_heads, device=q.device)[None, :, None, None]
    within = torch.arange(block, device=q.device)
    grouped = q.unflatten(1, (kv_heads, -1)).transpose(2, 3)  # (batch, kv_heads, n, groups, d)
    out = []
    for start in range(0, n, QUERY_TILE):
        tile = slice(start, start + QUERY_TILE)
        which = chosen[:, :, tile]
        keys, values = (
            t[rows, heads, which.clamp_min(0)].flatten(3, 4) for t in (k_blocks, v_blocks)
        )
        slots = which[..., None] * block + within
        place = places[:, None, tile, None, None]
        mask = ((which[..., None] >= 0) & (slots <= place)).flatten(3)[:, :, :, None]
        out.append(_partial(grouped[:, :, tile], keys, values, mask, scale)[0])
    return torch.cat(out, dim=2).transpose(2, 3).flatten(1, 2)


def _whole_blocks(x: Tensor, block: int) -> Tensor:
    whole = x.shape[2] // block * block
    return x[:, :, :whole].unflatten(2, (-1, block))


def _is_before(small: Tensor, places: Tensor, block: int) -> Tensor:
    """Which blocks end before the query's own begins, `(batch, 1, n, blocks)`."""
    return torch.arange(small.shape[2], device=small.device) < (places // block)[:, None, :, None]
