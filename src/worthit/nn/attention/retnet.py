"""Retention: a linear state that decays by a constant, another one for every head.

Sun et al. 2023, "Retentive Network: A Successor to Transformer for Large Language Models",
arXiv:2307.08621, equations 5-8:

    parallel    o = (Q K^T * D) V,    D_nm = gamma^(n - m) for n >= m, else 0
    recurrent   S_n = gamma S_{n-1} + k_n^T v_n,    o_n = q_n S_n
    Q = (X W_Q) * Theta,    K = (X W_K) * conj(Theta),    Theta_n = e^(i n theta)

| paper | here |
|---|---|
| gamma = 1 - 2^(-5 - arange(h)) | `exp(log_decays(n_heads))` |
| Theta | a rotation of neighbouring channels by their position (`rope.rotate`) |
| S_n | `state`, `(batch, heads, key_dim, value_dim)`, fp32 |
| GroupNorm(Y) | the output norm: each head by itself |

Three forms, the same numbers: `retain_in_order`, `retain_at_once`, `retain_in_chunks`. Powers of
gamma are taken as exponentials of differences of positions, never as quotients of two powers, which
underflow. The keys carry 1/sqrt(key_dim), as in the authors' code.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from worthit.nn.attention.linear_attention import LinearMixer, in_chunks
from worthit.nn.cache import StateCache
from worthit.nn.position.rope import rotate, rotation
from worthit.nn.tokens import Tokens
from worthit.spec.model import Position

# The angles of the paper, whatever the model's softmax layers use.
POSITION = Position(kind="rope", rope_theta=10_000.0, is_interleaved=True)


class Retention(LinearMixer):
    """The rule: what is stored fades by gamma with every token."""

    def recall(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        x: Tensor,
        tokens: Tokens,
        cache: StateCache | None,
    ) -> Tensor:
        """`q S`."""
        a = self.spec
        turned = a.key_dim - a.key_dim % 2
        if turned:
            cos, sin = tokens.shared(
                ("rotation", POSITION, turned), lambda: rotation(POSITION, turned, tokens, q)
            )
            q, k = (rotate(t, cos, sin, is_interleaved=True) for t in (q, k))
        k = k / math.sqrt(a.key_dim)
        out, state = retain_in_chunks(
            self.repeated(q),
            self.repeated(k),
            v,
            log_decays(a.n_value_heads).to(q),
            None if cache is None else cache.get("state"),
            chunk=a.chunk,
        )
        if cache is not None:
            cache["state"] = state
        return out


def log_decays(n_heads: int) -> Tensor:
    """log gamma of each head, `(n_heads,)`: the first forgets in tens of tokens (equation 8)."""
    return torch.log1p(-(2.0 ** (-5 - torch.arange(n_heads, dtype=torch.float64)))).float()


def retain_in_order(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Outputs and the last state, token by token: the reference."""
    if state is None:
        state = k.new_zeros(*k.shape[:2], k.shape[-1], v.shape[-1])
    kept = log_decay.exp()[:, None, None]
    out = []
    for q_t, k_t, v_t in zip(q.unbind(2), k.unbind(2), v.unbind(2), strict=True):
        state = kept * state + k_t[..., :, None] * v_t[..., None, :]
        out.append((q_t[..., None, :] @ state)[..., 0, :])
    return torch.stack(out, dim=2), state


def retain_at_once(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor) -> Tensor:
    """Outputs by all scores, each faded by its distance."""
    return (q @ k.transpose(-1, -2) * fading(q.shape[2], log_decay)) @ v


def fading(n: int, log_decay: Tensor) -> Tensor:
    """D, `(heads, n, n)`: gamma^(i - j) below the diagonal and on it, 0 above."""
    places = torch.arange(n, device=log_decay.device)
    distance = places[:, None] - places[None, :]
    faded = torch.exp(log_decay[:, None, None] * distance.clamp_min(0))
    return faded.masked_fill(distance < 0, 0.0)


def retain_in_chunks(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    state: Tensor | None = None,
    *,
    chunk: int = 64,
) -> tuple[Tensor, Tensor]:
    """Outputs and the last state: scores within chunks, faded states between them."""
    n = q.shape[2]
    if n == 1:
        return retain_in_order(q, k, v, log_decay, state)
    size = min(chunk, n)
    q, k, v = (in_chunks(t, size) for t in (q, k, v))
    # Tokens of a chunk up to each of its slots; the zeros behind the last token age nothing.
    starts = torch.arange(0, n, size, device=q.device)[:, None]
    counts = (torch.arange(size, device=q.device) + 1).minimum(n - starts)  # (chunks, size)
    ages = log_decay[:, None, None] * counts
    # What is left of a token at the end of its chunk, and of the state at each token.
    to_end, from_start = (ages[..., -1:] - ages).exp(), ages.exp()
    added = (k * to_end[..., None]).transpose(-1, -2) @ v
    before, last = carried(added, from_start[None, ..., -1:, None], state)
    within = (q @ k.transpose(-1, -2) * fading(size, log_decay)[:, None]) @ v
    out = within + (q * from_start[..., None]) @ before
    return out.flatten(2, 3)[:, :, :n], last


def carried(added: Tensor, kept: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
    """States before each chunk and the last one, from what each chunk adds and keeps.

    Args:
        added: `(batch, heads, chunks, key_dim, value_dim)`.
        kept: the share of the state that a chunk leaves, of a shape that broadcasts.
        state: before the first chunk; None is zero.
    """
    now = torch.zeros_like(added[:, :, 0]) if state is None else state
    before = []
    for add, keep in zip(added.unbind(2), kept.unbind(2), strict=True):
        before.append(now)
        now = keep * now + add
    return torch.stack(before, dim=2), now
