"""Low-rank attention: fewer keys than tokens (Linformer), or random features of them (Performer).

Wang et al. 2020, "Linformer: Self-Attention with Linear Complexity", arXiv:2006.04768, equation 7:

    head = softmax(Q (E K)^T / sqrt(d)) (F V)

| paper | here |
|---|---|
| E = F, k x n | `tokens.low_rank` `(context_len, rank)`: one for keys, values, heads, layers |
| k | `spec.Attention.low_rank` |

Every projected key is a sum over the whole sequence, later tokens included: it is **not causal**,
reads at most `context_len` tokens, and cannot continue a cache. It is for text that is read whole.

Choromanski et al. 2020, "Rethinking Attention with Performers", arXiv:2009.14794, equation 5 and
section 3.2 (FAVOR+):

    exp(q k) = E_w [phi_w(q) phi_w(k)],        phi_w(x) = exp(w x - |x|^2 / 2) / sqrt(m)

| paper | here |
|---|---|
| m | `spec.Attention.n_features`: the error falls as 1 / sqrt(m) |
| w_1 ... w_m, orthogonal in blocks of d | `orthogonal_features(n_features, head_dim)` |
| phi | `positive_features`, of queries and keys scaled by d^(-1/4) each |

The kernel is positive, so that it is a linear attention (causal or not) with features of its own.
"""

from __future__ import annotations

import torch
from torch import Tensor

from worthit.errors import InputError, SpecError
from worthit.nn.attention.core import attend, repeat_heads
from worthit.nn.attention.gqa import GroupedQueryAttention
from worthit.nn.attention.linear_attention import attend_in_chunks
from worthit.nn.cache import KVCache, StateCache
from worthit.nn.tokens import Tokens
from worthit.spec import model as spec


class LowRankAttention(GroupedQueryAttention):
    """Linformer: softmax over `low_rank` projected keys. Not causal."""

    def new_cache(self) -> KVCache:
        """There is none: what a cache would hold changes with every later token."""
        raise InputError(
            "low-rank attention projects the keys of the whole sequence, later tokens included, "
            "and cannot generate token by token; run the whole text without a cache, or use "
            "sliding-window or linear attention"
        )

    def recall(
        self, q: Tensor, k: Tensor, v: Tensor, tokens: Tokens, cache: KVCache | None = None
    ) -> Tensor:
        """`(batch, n_heads, n, head_dim)`, every token seeing the projections of all."""
        assert cache is None
        assert self.spec.low_rank is not None
        assert tokens.low_rank is not None, "the decoder owns the projection"
        n_known = tokens.low_rank.shape[0]
        if tokens.n > n_known:
            raise InputError(
                f"low-rank attention reads at most {n_known} tokens, the rows of its projection; "
                f"got {tokens.n}"
            )
        # A token is weighed by its own position, wherever padding put it; padding weighs nothing.
        rows = tokens.low_rank[tokens.positions, : self.spec.low_rank].to(k.dtype)
        down = tokens.without_padding(rows).transpose(1, 2)[:, None]  # (batch, 1, rank, n)
        return attend(q, down @ k, down @ v, scale=self.scale, mask=None)


class PerformerAttention(GroupedQueryAttention):
    """FAVOR+: causal attention by `n_features` random features a head, with a state for a cache.

    The features are drawn once, and are a buffer: no parameter.
    """

    # A state, not keys, is what it continues.
    takes_parts = False

    def __init__(self, attention: spec.Attention, model: spec.ModelSpec) -> None:
        super().__init__(attention, model)
        a = attention
        assert a.n_features is not None
        is_biased = self.position.kind in ("alibi", "relative-bias") and not a.is_position_free
        if a.reach is not None or a.has_sinks or a.logit_softcap is not None or is_biased:
            raise SpecError(
                "n_features puts a state in the place of scores; got a window, chunk, sinks, soft "
                "cap or bias beside it, which act on scores; drop either"
            )
        self.features: Tensor
        with torch.device("cpu"):  # drawn also where parameters have no memory
            features = orthogonal_features(a.n_features, a.head_dim)
        self.register_buffer("features", features.to(self.q_proj.weight.device))

    def new_cache(self) -> StateCache:  # type: ignore[override]  # a state where others keep keys
        """Sums over the past, of fixed size."""
        return StateCache()

    def recall(  # type: ignore[override]  # a state where others keep keys
        self, q: Tensor, k: Tensor, v: Tensor, tokens: Tokens, cache: StateCache | None = None
    ) -> Tensor:
        """`(batch, n_heads, n, head_dim)`."""
        w, real = self.features.float(), tokens.is_new_real
        groups = q.shape[1] // k.shape[1]
        root = self.scale**0.5
        phi_q = positive_features(q.float() * root, w, is_query=True)
        phi_k = positive_features(k.float() * root, w, is_query=False)
        if real is not None:
            phi_k = phi_k * real[:, None, :, None]
        phi_k, wide = repeat_heads(phi_k, groups), repeat_heads(v.float(), groups)
        state = None if cache is None else cache.get("state")
        out, state = causally(phi_q, phi_k, wide, state)
        if cache is not None:
            cache["state"] = state
        return out.to(v.dtype)


def orthogonal_features(n_features: int, dim: int) -> Tensor:
    """Directions at right angles, `dim` at a time, with the lengths of Gaussian vectors."""
    blocks = []
    for start in range(0, n_features, dim):
        q, r = torch.linalg.qr(torch.randn(dim, dim))
        # The signs make the directions uniform.
        blocks.append((q * r.diagonal().sign())[: n_features - start])
    return torch.cat(blocks) * torch.randn(n_features, dim).norm(dim=-1, keepdim=True)


def positive_features(x: Tensor, w: Tensor, *, is_query: bool) -> Tensor:
    """phi: `(..., n, d)` to `(..., n, m)`, in fp32.

    Of a query only the ratios matter, and its largest exponent is taken off. A key's is at most
    |w|^2 / 2, about d / 2, which fp32 holds for heads of up to 128.
    """
    exponents = x @ w.T - x.square().sum(dim=-1, keepdim=True) / 2
    if is_query:
        exponents = exponents - exponents.amax(dim=-1, keepdim=True)
    return exponents.exp() / w.shape[0] ** 0.5


def causally(
    phi_q: Tensor, phi_k: Tensor, v: Tensor, state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Weighted means over the past, and the last sums; a column of ones sums the weights."""
    ones = torch.ones_like(v[..., :1])
    both, state = attend_in_chunks(phi_q, phi_k, torch.cat([v, ones], dim=-1), state)
    return _mean(both), state


def at_once(phi_q: Tensor, phi_k: Tensor, v: Tensor) -> Tensor:
    """Weighted means over the whole sequence: not causal."""
    both = torch.cat([v, torch.ones_like(v[..., :1])], dim=-1)
    return _mean(phi_q @ (phi_k.transpose(-1, -2) @ both))


def _mean(both: Tensor) -> Tensor:
    # Padding precedes every key: no weight, no mean.
    tiny = torch.finfo(both.dtype).tiny
    return both[..., :-1] / both[..., -1:].clamp_min(tiny)
