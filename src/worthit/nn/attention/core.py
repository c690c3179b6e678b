"""Scores, mask, softmax, sum: one reference in plain operations, and the fused call beside it.

Shapes: queries `(batch, n_heads, n, d)`, keys `(batch, n_kv_heads, m, d)`, values the same with
their own width. The mask is `(batch or 1, 1, n, m)`, True where a query may look; a `bias` of a
broadcastable shape is added to the scores.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from worthit.nn.tokens import Tokens

# Beyond this many tokens the scores of a pass take more memory than they save time.
LONGEST_WRITTEN = 1024


def causal_mask(
    tokens: Tokens,
    n_keys: int,
    device: torch.device,
    *,
    window: int | None = None,
    chunk: int | None = None,
) -> Tensor | None:
    """What the new tokens may look at among the last `n_keys` slots; None when that is everything.

    A query in slot i sees slots j <= i that are real, within `window` (i - j < window), and in its
    own chunk of positions. In a tree it sees its ancestors, and distances are those of places.
    """
    total = tokens.past + tokens.n
    if window is not None and window >= total:
        window = None
    is_open = tokens.is_real is None and chunk is None and window is None
    if is_open and tokens.among is None and tokens.n == 1:
        return None

    def make() -> Tensor:
        queries = torch.arange(tokens.past, total, device=device)[:, None]
        slots = torch.arange(total - n_keys, total, device=device)[None, :]
        mask = (slots <= queries)[None, None]
        if tokens.among is not None:
            seen = tokens.among[None, None] if tokens.among.ndim == 2 else tokens.among
            mask = mask.expand(len(seen), -1, -1, -1).clone()
            mask[..., n_keys - seen.shape[-1] :] = seen
            queries = tokens.positions[: len(seen), None, :, None]
            slots = tokens.key_positions()[: len(seen), None, None, -n_keys:]
        if window is not None:
            mask = mask & (queries - slots < window)
        if chunk is not None:
            key_chunks = tokens.key_positions()[:, -n_keys:] // chunk
            mask = mask & (
                tokens.positions[:, None, :, None] // chunk == key_chunks[:, None, None, :]
            )
        if tokens.is_real is not None:
            mask = mask & tokens.is_real[:, None, None, -n_keys:]
        return mask

    return tokens.shared(("mask", n_keys, window, chunk), make)


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    scale: float,
    mask: Tensor | None,
    is_causal: bool = False,
    bias: Tensor | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """Attention output `(batch, n_heads, n, d_v)`; fused where the fused call can do it.

    `is_causal` says that `mask` is the plain causal one over equal lengths, which the fused call
    knows by itself.
    """
    if softcap is not None or sinks is not None:
        return attend_plainly(
            q, k, v, scale=scale, mask=mask, bias=bias, softcap=softcap, sinks=sinks
        )
    groups = q.shape[1] // k.shape[1]
    if q.shape[2] == 1 and mask is None and bias is None:
        # One query a group: the group takes the place of the queries, nothing is repeated.
        folded = q.reshape(q.shape[0], k.shape[1], groups, q.shape[3])
        out = functional.scaled_dot_product_attention(folded, k, v, scale=scale)
        return out.reshape(q.shape[0], q.shape[1], 1, v.shape[3])
    k, v = repeat_heads(k, groups), repeat_heads(v, groups)
    if _is_slow_fused(q):
        return _attend_in_products(q, k, v, scale=scale, mask=mask, bias=bias)
    if is_causal and bias is None:
        return functional.scaled_dot_product_attention(q, k, v, scale=scale, is_causal=True)
    added: Tensor | None = mask
    if bias is not None:
        added = _added(bias, mask, q.dtype)
    return functional.scaled_dot_product_attention(q, k, v, attn_mask=added, scale=scale)


def _added(bias: Tensor, mask: Tensor | None, dtype: torch.dtype) -> Tensor:
    """What the scores get: `bias`, and as good as minus infinity outside of `mask`."""
    bias = bias.to(dtype)
    return bias if mask is None else bias.masked_fill(~mask, torch.finfo(dtype).min)


def _is_slow_fused(q: Tensor) -> bool:
    """Whether the fused call's way back costs more than writing the scores down.

    On a CPU its gradient in bf16 does: up to six times, see docs/training.md.
    """
    is_low = q.dtype == torch.bfloat16 and q.device.type == "cpu"
    return bool(is_low and q.requires_grad and 1 < q.shape[2] <= LONGEST_WRITTEN)


def _attend_in_products(
    q: Tensor, k: Tensor, v: Tensor, *, scale: float, mask: Tensor | None, bias: Tensor | None
) -> Tensor:
    """Two batched products; scores and weights are rounded to the type of `q`, sums are not."""
    shape, m = q.shape, k.shape[2]
    bias = q.new_zeros(1, 1, shape[2], m) if bias is None else bias
    added = _added(bias, mask, q.dtype)
    if added.shape[:2] == (1, 1):
        added = added[0, 0]
    else:
        added = added.expand(*shape[:2], shape[2], m).flatten(0, 1)
    q, k, v = (t.flatten(0, 1) for t in (q, k, v))
    weights = torch.baddbmm(added, q, k.mT, alpha=scale).softmax(dim=-1)
    return torch.bmm(weights, v).view(*shape[:3], v.shape[-1])


def attend_plainly(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    scale: float,
    mask: Tensor | None,
    bias: Tensor | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """The reference: every score is written down.

    `softcap` bends scores to within +-softcap (Gemma 2); `sinks` `(n_heads,)` are extra scores that
    take part in the softmax and carry no value (gpt-oss).
    """
    weights = attention_weights(
        q, k, scale=scale, mask=mask, bias=bias, softcap=softcap, sinks=sinks
    )
    return weights @ repeat_heads(v, q.shape[1] // k.shape[1])


def attention_weights(
    q: Tensor,
    k: Tensor,
    *,
    scale: float,
    mask: Tensor | None,
    bias: Tensor | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """How much each query reads of each key, `(batch, n_heads, n, m)`; see `attend_plainly`."""
    groups = q.shape[1] // k.shape[1]
    scores = q @ repeat_heads(k, groups).transpose(-1, -2) * scale
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if bias is not None:
        scores = scores + bias.to(scores.dtype)
    if mask is not None:
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    if sinks is not None:
        column = sinks.to(scores.dtype)[None, :, None, None].expand(*scores.shape[:3], 1)
        scores = torch.cat([scores, column], dim=-1)
    weights = scores.float().softmax(dim=-1).to(q.dtype)
    return weights if sinks is None else weights[..., :-1]


def repeat_heads(x: Tensor, groups: int) -> Tensor:
    """Each key/value head `groups` times in a row: `(batch, n_kv_heads * groups, m, d)`."""
    if groups == 1:
        return x
    batch, heads, length, width = x.shape
    return (
        x[:, :, None]
        .expand(batch, heads, groups, length, width)
        .reshape(batch, heads * groups, length, width)
    )
