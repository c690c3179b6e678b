"""Multi-head latent attention: every token caches one small vector, from which all heads read.

DeepSeek-AI 2024, "DeepSeek-V2: A Strong, Economical, and Efficient Mixture-of-Experts Language
Model", arXiv:2405.04434, section 2.1 and appendix C (equations 37-47):

    c_t^KV = W^DKV h_t                          k_t^R = RoPE(W^KR h_t)
    k_{t,i} = [W^UK_i c_t^KV; k_t^R]            v_{t,i} = W^UV_i c_t^KV
    o_{t,i} = sum_j softmax_j(q_{t,i} k_{j,i} / sqrt(d_h + d_h^R)) v_{j,i}

| paper | here |
|---|---|
| W^DKV and W^KR | `kv_down`, the latent's rows above the rotary key's |
| c_t^KV, d_c | `latents`, `kv_lora_rank`: normalised, then cached |
| k_t^R, d_h^R | `rotary_keys`, `qk_rope_head_dim`: one for all heads, turned, then cached |
| W^UK_i and W^UV_i | `kv_up`, head by head, keys above values |
| W^DQ, c_t^Q and W^UQ, W^QR | `q_down`, `q_norm`, `q_up`; `q_proj` where not compressed |
| d_h, d_h^V | `qk_nope_head_dim`, `v_head_dim` |

The two forms are one product bracketed in two ways: q (W^UK c) = (W^UK^T q) c. `attend_expanded`
rebuilds keys and values and is cheaper for long passes; `attend_absorbed` brings the queries to the
latents, which are then keys and values of one head for all: nothing is rebuilt for a new token.
YaRN's temperature is in `scale`, as the released checkpoints have it.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, cat, einsum, nn

from worthit.nn.attention.core import attend, causal_mask
from worthit.nn.cache import LatentCache
from worthit.nn.mixer import Mixer
from worthit.nn.norm.rmsnorm import RMSNorm
from worthit.nn.position import alibi
from worthit.nn.position.rope import changes_with_length, rotate, rotation
from worthit.nn.ragged import Ragged, each, token_by_token
from worthit.nn.tokens import Tokens
from worthit.spec import model as spec

# Of both latents, whatever the layer's own norm uses.
LATENT_NORM_EPS = 1e-6


class MultiHeadLatentAttention(Mixer):
    """Softmax attention whose keys and values are rebuilt from a cached latent."""

    weights_read = ("kv_up",)  # one half meets queries, the other values

    @property
    def takes_parts(self) -> bool:  # type: ignore[override]  # a rule where others have a constant
        """Unless its rotation depends on the length of the sequence."""
        return not changes_with_length(self.position)

    def __init__(self, attention: spec.LatentAttention, model: spec.ModelSpec) -> None:
        super().__init__()
        a, d = attention, model.d_model
        self.spec, self.position = a, model.position
        qk_head_dim = a.qk_nope_head_dim + a.qk_rope_head_dim
        self.scale = qk_head_dim**-0.5 if a.scale is None else a.scale
        self.q_proj = self.q_down = self.q_norm = self.q_up = None
        if a.q_lora_rank is None:
            self.q_proj = nn.Linear(d, a.n_heads * qk_head_dim, bias=False)
        else:
            self.q_down = nn.Linear(d, a.q_lora_rank, bias=a.has_bias)
            self.q_norm = RMSNorm(a.q_lora_rank, eps=LATENT_NORM_EPS)
            self.q_up = nn.Linear(a.q_lora_rank, a.n_heads * qk_head_dim, bias=False)
        self.kv_down = nn.Linear(d, a.kv_lora_rank + a.qk_rope_head_dim, bias=a.has_bias)
        self.kv_norm = RMSNorm(a.kv_lora_rank, eps=LATENT_NORM_EPS)
        per_head = a.qk_nope_head_dim + a.v_head_dim
        self.kv_up = nn.Linear(a.kv_lora_rank, a.n_heads * per_head, bias=False)
        self.o_proj = nn.Linear(a.n_heads * a.v_head_dim, d, bias=a.has_bias)

    def new_cache(self) -> LatentCache:
        """Latent and rotary key of every token."""
        return LatentCache()

    def forward(self, x: Tensor, tokens: Tokens, cache: Any = None) -> Tensor:
        """`(batch, n, d_model)` to the same shape; a `Ragged` of caches where the pass is one."""
        a = self.spec
        q = self.queries(x).unflatten(-1, (a.n_heads, -1)).transpose(1, 2)
        q_nope, q_rope = q.split((a.qk_nope_head_dim, a.qk_rope_head_dim), dim=-1)
        latents, rotary_keys = self.kv_down(x).split((a.kv_lora_rank, a.qk_rope_head_dim), dim=-1)
        latents = self.kv_norm(latents)
        if a.qk_rope_head_dim and self.position.kind == "rope":
            q_rope, rotary_keys = self._turned(q_rope, rotary_keys, tokens)
        if tokens.parts is None:
            out = self.recall(q_nope, q_rope, latents, rotary_keys, tokens, cache)
        else:
            out = self.recall_each(q_nope, q_rope, latents, rotary_keys, tokens, cache)
        y: Tensor = self.o_proj(out.transpose(1, 2).flatten(-2))
        return y

    def recall(
        self,
        q_nope: Tensor,
        q_rope: Tensor,
        latents: Tensor,
        rotary_keys: Tensor,
        tokens: Tokens,
        cache: LatentCache | None = None,
    ) -> Tensor:
        """What the queries read, `(batch, n_heads, n, v_head_dim)`; arguments of the new tokens."""
        if cache is not None:
            latents, rotary_keys = cache.append(latents, rotary_keys)
        n_keys = latents.shape[1]
        form = self.attend_absorbed if self.is_absorbed(tokens.n, n_keys) else self.attend_expanded
        return form(
            q_nope,
            q_rope,
            latents,
            rotary_keys,
            mask=causal_mask(tokens, n_keys, q_nope.device),
            is_causal=tokens.past == 0 and tokens.is_real is None and tokens.among is None,
            bias=self._bias(tokens, n_keys),
        )

    def recall_each(
        self,
        q_nope: Tensor,
        q_rope: Tensor,
        latents: Tensor,
        rotary_keys: Tensor,
        tokens: Tokens,
        caches: Ragged,
    ) -> Tensor:
        """`recall` of every sequence of a ragged pass, from its own cache."""
        assert tokens.parts is not None
        own = caches.offer(latents, rotary_keys, tokens)
        shares = zip(
            each(q_nope, tokens, dim=2),
            each(q_rope, tokens, dim=2),
            each(latents, tokens),
            each(rotary_keys, tokens),
            strict=True,
        )
        read = []
        for (nope, rope, new, keys), part, cache in zip(shares, tokens.parts, own, strict=True):
            if tokens.is_exact:
                read.append(token_by_token(self.recall, [nope, rope], (new, keys), part, cache))
            else:
                read.append(self.recall(nope, rope, new, keys, part, cache))
        return cat(read, dim=2)

    def queries(self, x: Tensor) -> Tensor:
        """`(batch, n, n_heads * (qk_nope_head_dim + qk_rope_head_dim))`, through their latent."""
        if self.q_proj is None:
            assert self.q_down is not None
            assert self.q_norm is not None
            assert self.q_up is not None
            q: Tensor = self.q_up(self.q_norm(self.q_down(x)))
        else:
            q = self.q_proj(x)
        return q

    def is_absorbed(self, n: int, n_keys: int) -> bool:
        """Whether the absorbed form needs fewer multiply-adds a head for `n` queries."""
        a = self.spec
        per_head = a.kv_lora_rank * (a.qk_nope_head_dim + a.v_head_dim)
        expanded = n_keys * per_head + n * n_keys * (a.qk_nope_head_dim + a.v_head_dim)
        return n * per_head + n * n_keys * 2 * a.kv_lora_rank < expanded

    def attend_expanded(
        self,
        q_nope: Tensor,
        q_rope: Tensor,
        latents: Tensor,
        rotary_keys: Tensor,
        *,
        mask: Tensor | None,
        is_causal: bool = False,
        bias: Tensor | None = None,
    ) -> Tensor:
        """Keys and values of every head, then attention: `(batch, n_heads, n, v_head_dim)`.

        Args:
            q_nope: `(batch, n_heads, n, qk_nope_head_dim)`; `q_rope` with its own width.
            latents: `(batch, m, kv_lora_rank)`; `rotary_keys` with their own width.
        """
        a = self.spec
        up = self.kv_up(latents).unflatten(-1, (a.n_heads, -1)).transpose(1, 2)
        k_nope, v = up.split((a.qk_nope_head_dim, a.v_head_dim), dim=-1)
        k_rope = rotary_keys[:, None].expand(-1, a.n_heads, -1, -1)
        q, k = cat([q_nope, q_rope], dim=-1), cat([k_nope, k_rope], dim=-1)
        return self.attend(q, k, v, scale=self.scale, mask=mask, is_causal=is_causal, bias=bias)

    def attend_absorbed(
        self,
        q_nope: Tensor,
        q_rope: Tensor,
        latents: Tensor,
        rotary_keys: Tensor,
        *,
        mask: Tensor | None,
        is_causal: bool = False,
        bias: Tensor | None = None,
    ) -> Tensor:
        """As `attend_expanded`, on the latents themselves: all heads are queries of one."""
        a = self.spec
        up = self.kv_up.weight.unflatten(0, (a.n_heads, -1))
        key_up, value_up = up.split((a.qk_nope_head_dim, a.v_head_dim), dim=1)
        q_latent = einsum("bhnd,hdr->bhnr", q_nope, key_up)
        q = cat([q_latent, q_rope], dim=-1).flatten(1, 2)[:, None]  # (batch, 1, n_heads * n, width)
        k = cat([latents, rotary_keys], dim=-1)[:, None]
        n = q_nope.shape[2]
        seen = self.attend(
            q,
            k,
            latents[:, None],
            scale=self.scale,
            mask=None if mask is None else _by_head(mask, a.n_heads, n),
            bias=None if bias is None else _by_head(bias, a.n_heads, n),
        )
        return einsum("bhnr,hdr->bhnd", seen[:, 0].unflatten(1, (a.n_heads, n)), value_up)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, **how: Any) -> Tensor:
        """`core.attend`, which whoever wants to see the weights puts another in place of."""
        return attend(q, k, v, **how)

    def _turned(self, q: Tensor, keys: Tensor, tokens: Tokens) -> tuple[Tensor, Tensor]:
        """The rotary parts of queries and of the shared key, turned by their positions."""
        position, dim = self.position, self.spec.qk_rope_head_dim
        cos, sin = tokens.shared(
            ("rotation", position, dim), lambda: rotation(position, dim, tokens, q)
        )
        is_interleaved = position.is_interleaved
        turned = rotate(keys[:, None], cos, sin, is_interleaved=is_interleaved)[:, 0]
        return rotate(q, cos, sin, is_interleaved=is_interleaved), turned

    def _bias(self, tokens: Tokens, n_keys: int) -> Tensor | None:
        if self.position.kind != "alibi":
            return None
        n_heads = self.spec.n_heads
        return tokens.shared(
            ("alibi", n_heads, n_keys),
            lambda: alibi.bias(n_heads, tokens.key_positions()[:, -n_keys:]),
        )


def _by_head(mask: Tensor, n_heads: int, n: int) -> Tensor:
    """`(batch or 1, n_heads or 1, n or 1, m)` for heads that stand among the queries."""
    return mask.expand(-1, n_heads, n, -1).flatten(1, 2)[:, None]
