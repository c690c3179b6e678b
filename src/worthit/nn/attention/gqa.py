"""Grouped-query attention, and with it multi-head, multi-query, local and chunked attention.

Ainslie et al. 2023, "GQA: Training Generalized Multi-Query Transformer Models from Multi-Head
Checkpoints", arXiv:2305.13245, section 2.2: query head h reads the keys and values of its group,

    o_h = softmax(q_h K_g^T / sqrt(head_dim)) V_g,    g = floor(h G / H)

| paper | here |
|---|---|
| H query heads | `n_heads` |
| G groups | `n_kv_heads`: 1 is multi-query, `n_heads` is multi-head attention |

What varies between models around it is read from the spec: biases, QK-norm, rotary share, window,
chunk, sinks, soft-capping, an output gate, multipliers.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from worthit.nn.attention.core import attend, causal_mask
from worthit.nn.cache import KVCache
from worthit.nn.mixer import Mixer
from worthit.nn.norm.qk_norm import QKNorm
from worthit.nn.position import alibi
from worthit.nn.position.nope import is_told_no_order
from worthit.nn.position.rope import (
    changes_with_length,
    in_halves,
    rotate,
    rotate_halves,
    rotation,
)
from worthit.nn.quant.linear import StoredLinear
from worthit.nn.ragged import Ragged, each, token_by_token
from worthit.nn.tokens import Tokens
from worthit.spec import model as spec

# Positions that are numbers added to the scores.
BIASED = ("alibi", "relative-bias")


def build_attention(attention: spec.Attention, model: spec.ModelSpec) -> GroupedQueryAttention:
    """The mixer of `attention`, by how many keys a query reads."""
    if attention.low_rank is not None:
        from worthit.nn.attention.low_rank_attention import LowRankAttention

        return LowRankAttention(attention, model)
    if attention.n_features is not None:
        from worthit.nn.attention.low_rank_attention import PerformerAttention

        return PerformerAttention(attention, model)
    if attention.sparse_keys is not None:
        from worthit.nn.attention.sparse_attention import NativeSparseAttention, SparseAttention

        is_native = attention.sparse_near is not None
        return (NativeSparseAttention if is_native else SparseAttention)(attention, model)
    return GroupedQueryAttention(attention, model)


class GroupedQueryAttention(Mixer):
    """Softmax attention whose query heads share `n_kv_heads` key/value heads."""

    @property
    def takes_parts(self) -> bool:  # type: ignore[override]  # a rule where others have a constant
        """Unless its rotation depends on the length of the sequence."""
        return not changes_with_length(self.position)

    def __init__(self, attention: spec.Attention, model: spec.ModelSpec) -> None:
        super().__init__()
        a, d = attention, model.d_model
        self.spec = a
        self.position = model.position if a.position is None else a.position
        self.scale = a.head_dim**-0.5 if a.scale is None else a.scale
        q, kv = a.n_heads * a.head_dim, a.n_kv_heads * a.head_dim
        self.q_proj = nn.Linear(d, q * (2 if a.has_output_gate else 1), bias=a.has_qkv_bias)
        self.k_proj = nn.Linear(d, kv, bias=a.has_qkv_bias)
        self.v_proj = nn.Linear(d, kv, bias=a.has_qkv_bias)
        self.o_proj = nn.Linear(q, d, bias=a.has_out_bias)
        self.qkv_proj: nn.Module | None = None  # of inference alone: see `fuse`
        self.qk_norm = None if a.qk_norm == "none" else QKNorm(a, model)
        self.sinks = nn.Parameter(torch.zeros(a.n_heads)) if a.has_sinks else None

    def new_cache(self) -> KVCache:
        """Keys and values of all tokens, or of as many as can still be seen."""
        return KVCache(self.spec.reach)

    def forward(self, x: Tensor, tokens: Tokens, cache: Any = None) -> Tensor:
        """`(batch, n, d_model)` to the same shape; a `Ragged` of caches where the pass is one."""
        a = self.spec
        if a.in_scale != 1.0:
            x = x * a.in_scale
        (q, k, v), gate = self._projected(x), None
        if a.has_output_gate:
            # Query and gate stand side by side within each head.
            both = q.unflatten(-1, (a.n_heads, 2 * a.head_dim))
            q, gate = both.chunk(2, dim=-1)
            q, gate = q.flatten(-2), gate.flatten(-2)
        if a.key_scale != 1.0:
            k = k * a.key_scale
        if self.qk_norm is not None and a.qk_norm == "full":
            q, k = self.qk_norm(q, k)
        # What leaves a norm is clipped too (OLMoE).
        if a.qkv_clip is not None:
            q, k, v = (t.clamp(-a.qkv_clip, a.qkv_clip) for t in (q, k, v))
        q, k, v = (t.unflatten(-1, (-1, a.head_dim)).transpose(1, 2) for t in (q, k, v))
        q, k = self._placed(q, k, tokens)
        if tokens.parts is None:
            out = self.recall(q, k, v, tokens, cache)
        else:
            out = self.recall_each(q, k, v, tokens, cache)
        out = out.transpose(1, 2).flatten(-2)  # (batch, n, n_heads * head_dim)
        if gate is not None:
            out = out * torch.sigmoid(gate)
        y: Tensor = self.o_proj(out)
        return y if a.out_scale == 1.0 else y * a.out_scale

    def recall(
        self, q: Tensor, k: Tensor, v: Tensor, tokens: Tokens, cache: KVCache | None = None
    ) -> Tensor:
        """What the queries read, `(batch, n_heads, n, head_dim)`.

        Args:
            q: `(batch, n_heads, n, head_dim)`.
            k, v: of the new tokens, `(batch, n_kv_heads, n, head_dim)`.
        """
        a = self.spec
        if cache is not None:
            k, v = cache.append(k, v)
        mask = causal_mask(tokens, k.shape[2], q.device, window=a.window, chunk=a.chunk)
        is_local = a.window is not None and a.window < tokens.n
        out = self.attend(
            q,
            k,
            v,
            scale=self.scale,
            mask=mask,
            is_causal=tokens.past == 0
            and tokens.is_real is None
            and tokens.among is None
            and a.chunk is None
            and not is_local,
            bias=self._bias(tokens, k.shape[2]),
            softcap=a.logit_softcap,
            sinks=self.sinks,
        )
        if cache is not None and cache.is_observing:
            cache.observe(q, self.scale, tokens)
        return out

    def attend(self, q: Tensor, k: Tensor, v: Tensor, **how: Any) -> Tensor:
        """`core.attend`, which whoever wants to see the weights puts another in place of."""
        return attend(q, k, v, **how)

    def recall_each(
        self, q: Tensor, k: Tensor, v: Tensor, tokens: Tokens, caches: Ragged
    ) -> Tensor:
        """`recall` of every sequence of a ragged pass, from its own cache."""
        assert tokens.parts is not None
        own = caches.offer(k, v, tokens)
        if tokens.is_exact:
            each_ = zip(
                *(each(t, tokens, dim=2) for t in (q, k, v)), tokens.parts, own, strict=True
            )
            read = [
                token_by_token(self.recall, [q_], (k_, v_), part, cache, window=self.spec.window)
                for q_, k_, v_, part, cache in each_
            ]
            return torch.cat(read, dim=2)
        n, read = tokens.shared("n_single", lambda: tokens.n_single), []
        together = None
        if n > 1 and self.is_plain:
            together = caches.attend_rows(q[:, :, :n], n, self.scale)
        if together is None:
            n = 0
        else:
            read.append(together)
        if n < len(tokens.parts):
            q_, k_, v_ = (each(t, tokens, dim=2) for t in (q, k, v))
            read += [
                self.recall(q_[i], k_[i], v_[i], tokens.parts[i], own[i])
                for i in range(n, len(tokens.parts))
            ]
        return torch.cat(read, dim=2)

    @property
    def is_plain(self) -> bool:
        """Whether a query reads by softmax of scaled scores alone, all that its cache returns."""
        a = self.spec
        return (
            type(self).recall is GroupedQueryAttention.recall
            and a.chunk is None
            and a.logit_softcap is None
            and self.sinks is None
            and (self.position.kind not in BIASED or is_told_no_order(a, self.position))
        )

    def fuse(self) -> None:
        """Put the three projections into one product; they are gone afterwards.

        Projections that are stored in different formats stay as they are.
        """
        parts = (self.q_proj, self.k_proj, self.v_proj)
        stored = [part for part in parts if isinstance(part, StoredLinear)]
        if stored and len({part.grid for part in stored}) + len(parts) - len(stored) > 1:
            return
        self._widths = [part.out_features for part in parts]
        if stored:
            self.qkv_proj = StoredLinear.side_by_side(stored)
            del self.q_proj, self.k_proj, self.v_proj
            return
        with torch.no_grad():
            fused = nn.Linear(
                self.q_proj.in_features,
                sum(self._widths),
                bias=self.spec.has_qkv_bias,
                device=self.q_proj.weight.device,
                dtype=self.q_proj.weight.dtype,
            ).requires_grad_(requires_grad=False)
            fused.weight.copy_(torch.cat([part.weight for part in parts]))
            if self.spec.has_qkv_bias:
                fused.bias.copy_(torch.cat([part.bias for part in parts]))
        self.qkv_proj = fused
        del self.q_proj, self.k_proj, self.v_proj

    def _projected(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if self.qkv_proj is not None:
            q, k, v = self.qkv_proj(x).split(self._widths, dim=-1)
            return q, k, v
        return self.q_proj(x), self.k_proj(x), self.v_proj(x)

    def _placed(self, q: Tensor, k: Tensor, tokens: Tokens) -> tuple[Tensor, Tensor]:
        """Queries and keys normalised per head and turned by their positions."""
        a = self.spec
        per_head = None if a.qk_norm == "full" else self.qk_norm
        if per_head is not None and not a.is_qk_norm_after_rope:
            q, k = per_head(q, k)
        if a.rotary_dim and not a.is_position_free and self.position.kind == "rope":
            dim = a.rotary_dim
            if dim == a.head_dim and not self.position.is_interleaved:
                cos, sin = tokens.shared(
                    ("halves", self.position, dim),
                    lambda: in_halves(*rotation(self.position, dim, tokens, q)),
                )
                q, k = rotate_halves(q, cos, sin), rotate_halves(k, cos, sin)
            else:
                cos, sin = tokens.shared(
                    ("rotation", self.position, dim),
                    lambda: rotation(self.position, dim, tokens, q),
                )
                interleaved = self.position.is_interleaved
                q = rotate(q, cos, sin, is_interleaved=interleaved)
                k = rotate(k, cos, sin, is_interleaved=interleaved)
        # Position-free layers of models that normalise after turning do not normalise (Llama 4).
        if per_head is not None and a.is_qk_norm_after_rope and not a.is_position_free:
            q, k = per_head(q, k)
        if a.temperature is not None and a.is_position_free:
            t = a.temperature
            place = torch.floor((tokens.positions.float() + 1) / t.floor)
            q = q * (1 + t.scale * torch.log1p(place))[:, None, :, None].to(q.dtype)
        return q, k

    def _bias(self, tokens: Tokens, n_keys: int) -> Tensor | None:
        n_heads, kind = self.spec.n_heads, self.position.kind
        if is_told_no_order(self.spec, self.position):
            return None
        if kind == "alibi":
            return tokens.shared(
                ("alibi", n_heads, n_keys),
                lambda: alibi.bias(n_heads, tokens.key_positions()[:, -n_keys:]),
            )
        if kind == "relative-bias":
            table = tokens.relative_bias
            assert table is not None, "the decoder owns the table"
            every_head = tokens.shared(
                ("relative-bias", n_keys),
                lambda: table(tokens.positions, tokens.key_positions()[:, -n_keys:]),
            )
            return every_head[:, :n_heads]
        return None
