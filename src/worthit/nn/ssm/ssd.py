"""State-space duality: a recurrence with one decay a head, which is also an attention.

Dao & Gu 2024, "Transformers are SSMs: Generalized Models and Efficient Algorithms Through
Structured State Space Duality", arXiv:2405.21060, sections 5 and 6. For each head

    S_t = exp(Delta_t A) S_{t-1} + B_t (Delta_t x_t)^T        y_t = S_t^T C_t + D x_t

and, all tokens at once (the duality, equation 16):

    Y = (L o C B^T) (Delta X),        L_ts = exp(sum_{s < r <= t} Delta_r A) for s <= t, else 0

| paper | here |
|---|---|
| H, P, N, G | `n_heads`, `head_dim`, `d_state`, `n_groups`: heads of a group share B and C |
| X, B, C | `x` `(batch, n, n_heads, head_dim)`, `b`, `c` `(batch, n, n_groups, d_state)` |
| Delta, A | `step` `(batch, n, n_heads)`, `a = -exp(log_a)` `(n_heads,)` |
| D | `skip` |

`ssd_in_order` is the recurrence, `ssd_as_attention` the quadratic form, and `ssd_in_chunks` the
quadratic form within chunks and the recurrence between them (section 6), all by matrix products.
`ssd` is what runs: on a CPU the same in tiles (`worthit.nn.ssm.ssd_tiles`), with gradients of its
own. The chunk changes the work, not the result. Exponents are differences of sums within one
chunk, so that none is positive, and the sums are in fp64: their difference is small where it
matters, and in fp32 what strong decays before it have added would drown it. States are kept in
fp32.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from worthit.nn.ssm.scan import pad_to_chunks
from worthit.nn.ssm.ssd_tiles import SsdTiles

# Tokens of a chunk: scores cost n * CHUNK, states n * d_state / CHUNK steps of more; both small.
CHUNK = 64


def ssd_in_order(
    x: Tensor, step: Tensor, a: Tensor, b: Tensor, c: Tensor, start: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The recurrence, token by token. Shapes as in `ssd`."""
    (batch, _, heads, dim), groups = x.shape, b.shape[2]
    wide = torch.promote_types(x.dtype, torch.float32)
    b, c = (t.to(wide).repeat_interleave(heads // groups, dim=2) for t in (b, c))
    state = x.new_zeros(batch, heads, b.shape[3], dim, dtype=wide)
    if start is not None:
        state = _by_head(start.to(wide), heads)
    outputs = []
    for t in range(x.shape[1]):
        written = b[:, t, :, :, None] * (step[:, t, :, None] * x[:, t])[:, :, None]
        state = torch.exp(step[:, t] * a)[..., None, None] * state + written
        outputs.append((c[:, t, :, None] @ state)[:, :, 0])
    by_group = state.unflatten(1, (groups, -1)).transpose(2, 3).flatten(3)
    return torch.stack(outputs, dim=1).to(x.dtype), by_group


def ssd_as_attention(x: Tensor, step: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """The quadratic form from a state of zeros: scores C B^T, weighed down by the decay between."""
    heads, groups = x.shape[2], b.shape[2]
    wide = torch.promote_types(x.dtype, torch.float32)
    scores = torch.einsum("btgn,bsgn->bgts", c.to(wide), b.to(wide))
    scores = scores.repeat_interleave(heads // groups, dim=1)
    decays = decays_between((step * a).double().transpose(1, 2).cumsum(dim=-1), wide)
    return torch.einsum("bhts,bshp->bthp", scores * decays, (step[..., None] * x).to(wide)).to(x)


def decays_between(sums: Tensor, dtype: torch.dtype) -> Tensor:
    """L: exp(sum_t - sum_s) for s <= t, zero above; `(..., T)` running sums to `(..., T, T)`.

    Differences are taken in the sums' own type, and the rest, which is n * T elements, in `dtype`.
    """
    decays: Tensor = _Decays.apply(sums, dtype)
    return decays


class _Decays(torch.autograd.Function):
    """With G the gradient of L: that of sum_t is row t of G o L less its column t, each summed."""

    @staticmethod
    def forward(ctx: Any, sums: Tensor, dtype: torch.dtype) -> Tensor:
        length = sums.shape[-1]
        is_future = torch.ones(length, length, dtype=torch.bool, device=sums.device).triu(1)
        between = torch.empty(*sums.shape, length, dtype=dtype, device=sums.device)
        torch.sub(sums[..., :, None], sums[..., None, :], out=between)
        decays = between.masked_fill_(is_future, -torch.inf).exp_()
        ctx.save_for_backward(decays)
        ctx.sums_dtype = sums.dtype
        return decays

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        (decays,) = ctx.saved_tensors
        weights = g * decays
        return (weights.sum(dim=-1) - weights.sum(dim=-2)).to(ctx.sums_dtype), None


class _Carry(torch.autograd.Function):
    """States before each chunk, and the last: S_{i+1} = kept_i S_i + left_i.

    `left` `(batch, chunks, n_groups, d_state, width)`; `kept` the same with one state.
    With G_i the gradient of S_i and of all that follows: G_i = g_i + kept_i G_{i+1}.
    """

    @staticmethod
    def forward(ctx: Any, kept: Tensor, left: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
        starts = torch.empty_like(left)
        state = start
        for i in range(left.shape[1]):
            starts[:, i] = state
            state = torch.addcmul(left[:, i], kept[:, i], state)
        ctx.save_for_backward(kept, starts)
        return starts, state

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor, total: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        kept, starts = ctx.saved_tensors
        g_left, g_kept = torch.empty_like(starts), torch.empty_like(kept)
        for i in range(starts.shape[1] - 1, -1, -1):
            g_left[:, i] = total
            g_kept[:, i] = (total * starts[:, i]).sum(dim=2, keepdim=True)
            total = torch.addcmul(g[:, i], kept[:, i], total)
        return g_kept, g_left, total


def _by_head(state: Tensor, heads: int) -> Tensor:
    """`(batch, n_groups, d_state, heads of a group * head_dim)` as `(batch, heads, ...)`."""
    per_group = heads // state.shape[1]
    return state.unflatten(3, (per_group, -1)).transpose(2, 3).flatten(1, 2)


def ssd(
    x: Tensor,
    step: Tensor,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    start: Tensor | None = None,
    *,
    skip: Tensor | None = None,
    chunk: int = CHUNK,
) -> tuple[Tensor, Tensor]:
    """Outputs `(batch, n, n_heads, head_dim)` and the last state, fp32.

    Args:
        x: `(batch, n, n_heads, head_dim)`.
        step: Delta, `(batch, n, n_heads)`, not negative.
        a: `(n_heads,)`, negative.
        b: what a token writes, `(batch, n, n_groups, d_state)`.
        c: what it reads, the same shape.
        start: `(batch, n_groups, d_state, heads of a group * head_dim)`; zeros where None.
        skip: D, `(n_heads,)`; none where None.
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    groups, d_state = b.shape[2:]
    if start is None:
        width = x.shape[2] // groups * x.shape[3]
        start = x.new_zeros(x.shape[0], groups, d_state, width, dtype=wide)
    if x.shape[1] > 1 and x.device.type == "cpu":
        x_, step_, b_, c_ = (t.to(wide) for t in (x, step, b, c))
        own = None if skip is None else skip.to(wide)
        y, state = SsdTiles.apply(x_, step_, a.to(wide), b_, c_, start.to(wide), own, chunk)
        return y.to(x.dtype), state
    if x.shape[1] == 1:
        y, state = _one_step(x, step, a, b, c, start)
    else:
        y, state = ssd_in_chunks(x, step, a, b, c, start, chunk=chunk)
    return y if skip is None else y + x * skip.to(x.dtype)[:, None], state


def ssd_in_chunks(
    x: Tensor,
    step: Tensor,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    start: Tensor,
    *,
    chunk: int = CHUNK,
) -> tuple[Tensor, Tensor]:
    """The same without a skip, all chunks at once; gradients step by step."""
    n, dim, groups = x.shape[1], x.shape[3], b.shape[2]
    wide = start.dtype
    chunk = min(chunk, n)
    x_, step_, b_, c_ = (pad_to_chunks(t.to(wide), chunk) for t in (x, step, b, c))
    x_, step_, b_, c_ = (t.unflatten(1, (-1, chunk)) for t in (x_, step_, b_, c_))
    # Sums of Delta A from the start of each chunk, (batch, chunks, T, heads).
    sums = (step_ * a).double().cumsum(dim=2)
    written = step_[..., None] * x_  # (batch, chunks, T, heads, head_dim)

    # Within chunks: the quadratic form.
    scores = c_.transpose(2, 3) @ b_.permute(0, 1, 3, 4, 2)  # (batch, chunks, groups, T, T)
    decays = decays_between(sums.transpose(2, 3), wide).unflatten(2, (groups, -1))
    weights = (scores[:, :, :, None] * decays).flatten(2, 3)
    y = (weights @ written.transpose(2, 3)).transpose(2, 3)

    # What each chunk leaves to the next: one product a group, heads side by side.
    left = (sums[:, :, -1:] - sums).to(wide).exp()[..., None] * written
    left = left.unflatten(3, (groups, -1)).transpose(2, 3).flatten(4)  # (.., groups, T, heads*dim)
    left = b_.permute(0, 1, 3, 4, 2) @ left
    kept = sums[:, :, -1].to(wide).exp().unflatten(2, (groups, -1)).repeat_interleave(dim, dim=3)
    starts, state = _Carry.apply(kept[:, :, :, None], left, start.to(wide))

    # What each token reads of its chunk's start.
    read = c_.transpose(2, 3) @ starts  # (.., groups, T, heads * dim)
    read = read.unflatten(4, (-1, dim)).transpose(2, 3).flatten(3, 4)
    y = y + sums.to(wide).exp()[..., None] * read
    return y.flatten(1, 2)[:, :n].to(x.dtype), state


def _one_step(
    x: Tensor, step: Tensor, a: Tensor, b: Tensor, c: Tensor, start: Tensor
) -> tuple[Tensor, Tensor]:
    groups, dim = b.shape[2], x.shape[3]
    wide = start.dtype
    kept = torch.exp(step * a)[:, 0].unflatten(1, (groups, -1)).repeat_interleave(dim, dim=2)
    written = (step[..., None] * x)[:, 0].to(wide).unflatten(1, (groups, -1)).flatten(2)
    state = kept[:, :, None] * start + b[:, 0].to(wide)[..., None] * written[:, :, None]
    y = (c[:, 0].to(wide)[:, :, None] @ state).flatten(1).unflatten(1, (-1, dim))
    return y[:, None].to(x.dtype), state
