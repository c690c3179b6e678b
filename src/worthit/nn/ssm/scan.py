"""Linear recurrences h_t = a_t h_{t-1} + b_t: token by token, by a parallel prefix, and in chunks.

Blelloch 1990, "Prefix Sums and Their Applications", CMU-CS-90-190, section 1.4: two steps of such a
recurrence make one, (a, b) then (a', b') = (a' a, a' b + b'), and this is associative, so that all
states follow from a tree of such products.

| symbol | here |
|---|---|
| a_t, b_t, h_t | `a`, `b`, `h`: `(batch, n, ...)`, every element a recurrence of its own |
| h_0 | `start`: `(batch, ...)` |

Three forms, the same numbers: `scan_in_order` is the definition; `scan_associatively` takes
log2(n) passes over everything; `scan` does the work twice at most, with Python steps in the order
of sqrt(n): all chunks advance together, then the carries pass from chunk to chunk.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

# Tokens of a chunk. Python steps are `CHUNK` within and n / CHUNK between chunks.
CHUNK = 16


def scan_in_order(a: Tensor, b: Tensor, start: Tensor) -> Tensor:
    """Every state, one token after the other: the reference."""
    h, states = start, []
    for a_t, b_t in zip(a.unbind(1), b.unbind(1), strict=True):
        h = a_t * h + b_t
        states.append(h)
    return torch.stack(states, dim=1)


def scan_associatively(a: Tensor, b: Tensor, start: Tensor) -> Tensor:
    """Every state by doubling: after pass p each position holds the product of 2^p steps."""
    b = torch.cat([b[:, :1] + a[:, :1] * start[:, None], b[:, 1:]], dim=1)
    reach = 1
    while reach < a.shape[1]:
        earlier_a, earlier_b = a[:, :-reach], b[:, :-reach]
        b = torch.cat([b[:, :reach], a[:, reach:] * earlier_b + b[:, reach:]], dim=1)
        a = torch.cat([a[:, :reach], a[:, reach:] * earlier_a], dim=1)
        reach *= 2
    return b


def scan(a: Tensor, b: Tensor, start: Tensor) -> Tensor:
    """Every state, `(batch, n, ...)`, in chunks; gradients take one scan backwards in time."""
    if a.shape[1] == 1:
        return a * start[:, None] + b
    h: Tensor = _Scan.apply(a, b.expand_as(a), start)
    return h


class _Scan(torch.autograd.Function):
    """With g_t the gradient of h_t and G_t of everything that follows from it:

    G_t = g_t + a_{t+1} G_{t+1},   dL/db_t = G_t,   dL/da_t = G_t h_{t-1},   dL/dh_0 = a_1 G_1
    """

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, start: Tensor) -> Tensor:
        ends = _padded(b.movedim(1, 0))
        scan_tile_(_padded(a.movedim(1, 0), fill=1.0), ends, start)
        h = ends[: a.shape[1]].movedim(0, 1)
        ctx.save_for_backward(a, h, start)
        return h

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        a, h, start = ctx.saved_tensors
        total = _padded(g.movedim(1, 0))
        n = a.shape[1]
        # Position t decays with a_{t+1}; the last one has nothing after it.
        later = _padded(a[:, 1:].movedim(1, 0), fill=1.0, length=total.shape[0])
        scan_tile_(later, total, torch.zeros_like(start), is_backward=True)
        grad_b = total[:n].movedim(0, 1)
        before = torch.cat([start[:, None], h[:, :-1]], dim=1)
        return grad_b * before, grad_b, a[:, 0] * grad_b[:, 0]


def _padded(x: Tensor, *, fill: float = 0.0, length: int | None = None) -> Tensor:
    """A copy of `x` `(n, ...)` with whole chunks: `fill` stands after the end."""
    n = x.shape[0]
    total = -(-n // CHUNK) * CHUNK if length is None else length
    padded = x.new_full((total, *x.shape[1:]), fill)
    padded[:n] = x
    return padded


def scan_tile_(
    a: Tensor, b: Tensor, start: Tensor, *, is_backward: bool = False, chunk: int = CHUNK
) -> Tensor:
    """Replace `b` `(n, ...)` by its states and return the last; `a` is used up.

    n is a multiple of `chunk`. `is_backward` runs from the last token to the first.
    """
    n_chunks = a.shape[0] // chunk
    a, b = (x.view(n_chunks, chunk, *x.shape[1:]) for x in (a, b))
    order = range(chunk - 1, -1, -1) if is_backward else range(chunk)
    steps_a, steps_b = a.unbind(1), b.unbind(1)
    # Every chunk from a state of zeros, and the product of its decays up to each token.
    for before, now in pairwise(order):
        steps_b[now].addcmul_(steps_a[now], steps_b[before])
        steps_a[now].mul_(steps_a[before])
    # The state that each chunk starts from.
    carries = torch.empty_like(b[:, 0])
    last_a, last_b = steps_a[order[-1]].unbind(0), steps_b[order[-1]].unbind(0)
    carry = start
    for i in range(n_chunks - 1, -1, -1) if is_backward else range(n_chunks):
        carries[i] = carry
        carry = torch.addcmul(last_b[i], last_a[i], carry)
    b.addcmul_(a, carries[:, None])
    return carry


def pad_to_chunks(x: Tensor, chunk: int, *, fill: float = 0.0) -> Tensor:
    """`x` `(batch, n, ...)` with `fill` after its end, up to whole chunks."""
    missing = -x.shape[1] % chunk
    if missing == 0:
        return x
    return functional.pad(x, (0, 0) * (x.dim() - 2) + (0, missing), value=fill)
