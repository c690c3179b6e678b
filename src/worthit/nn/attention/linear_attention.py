"""Linear attention: with a kernel for the softmax, all past tokens fit in one matrix a head.

Katharopoulos et al. 2020, "Transformers are RNNs: Fast Autoregressive Transformers with Linear
Attention", arXiv:2006.16236, equations 7-12 and 16-20:

    S_t = S_{t-1} + phi(k_t) v_t^T        z_t = z_{t-1} + phi(k_t)
    o_t = phi(q_t)^T S_t / (phi(q_t)^T z_t),        phi(x) = elu(x) + 1

| paper | here |
|---|---|
| phi | `feature_map`: positive, so that no denominator passes through zero |
| S_t | `state`, `(batch, heads, key_dim, value_dim)`, fp32 |
| z_t | `normaliser`, `(batch, heads, key_dim)`, fp32 |
| D, M | `key_dim`, `value_dim` |

Three forms, the same numbers: `attend_in_order` is the definition; `attend_at_once` writes down all
scores, n x n; `attend_in_chunks` does that within chunks and carries the state between them.

`LinearMixer` is what this rule shares with the decaying ones (retention, gated) and with the delta
rules: projections, short convolution, output norm and gate. One file a rule.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from worthit.nn.attention.core import repeat_heads
from worthit.nn.cache import StateCache
from worthit.nn.ffn import ACTIVATIONS
from worthit.nn.mixer import Mixer
from worthit.nn.norm.rmsnorm import RMSNorm
from worthit.nn.ssm.causal_conv import CausalConv
from worthit.nn.tokens import Tokens
from worthit.spec import model as spec

# Each rule stands in a file of its own.
KINDS: dict[spec.LinearKind, str] = {
    "linear": "worthit.nn.attention.linear_attention:AdditiveAttention",
    "retention": "worthit.nn.attention.retnet:Retention",
    "gated": "worthit.nn.attention.gated_linear_attention:GatedLinearAttention",
    "delta": "worthit.nn.attention.delta_rule:DeltaRule",
    "gated-delta": "worthit.nn.attention.gated_delta_rule:GatedDeltaRule",
}


def build_linear_attention(attention: spec.LinearAttention, model: spec.ModelSpec) -> Mixer:
    """The mixer of `attention.kind`."""
    path, _, name = KINDS[attention.kind].partition(":")
    built: Mixer = getattr(importlib.import_module(path), name)(attention, model)
    return built


class LinearMixer(Mixer):
    """What surrounds the rule: q, k, v and gate, convolution, output norm; the rule is `recall`."""

    def __init__(self, attention: spec.LinearAttention, model: spec.ModelSpec) -> None:
        super().__init__()
        a, d = attention, model.d_model
        self.spec = a
        self.keys, self.values = a.n_key_heads * a.key_dim, a.n_value_heads * a.value_dim
        self.q_proj = nn.Linear(d, self.keys, bias=False)
        self.k_proj = nn.Linear(d, self.keys, bias=False)
        self.v_proj = nn.Linear(d, self.values, bias=False)
        self.gate_proj = nn.Linear(d, self.values, bias=False) if a.has_output_gate else None
        self.conv = None
        if a.d_conv:
            self.conv = CausalConv(2 * self.keys + self.values, a.d_conv, has_bias=False)
        self.norm = RMSNorm(a.value_dim, eps=a.norm_eps) if a.has_output_norm else None
        self.o_proj = nn.Linear(self.values, d, bias=False)

    def new_cache(self) -> StateCache:
        """The state, and the last inputs of the convolution."""
        return StateCache()

    def forward(self, x: Tensor, tokens: Tokens, cache: StateCache | None = None) -> Tensor:
        """`(batch, n, d_model)` to the same shape."""
        a = self.spec
        x = tokens.without_padding(x)
        q, k, v = self.q_proj(x), self.k_proj(x), self.v_proj(x)
        if self.conv is not None:
            mixed = ACTIVATIONS[a.activation](self.conv(torch.cat([q, k, v], dim=-1), cache))
            q, k, v = mixed.split((self.keys, self.keys, self.values), dim=-1)
        # States are sums over the whole past: fp32, whatever the activations are.
        wide = torch.promote_types(x.dtype, torch.float32)
        q, k = (heads(t.to(wide), a.key_dim) for t in (q, k))
        out = self.recall(q, k, heads(v.to(wide), a.value_dim), x, tokens, cache)
        out = out.transpose(1, 2).to(x.dtype)  # (batch, n, n_value_heads, value_dim)
        if self.norm is not None:
            out = self.norm(out)
        out = out.flatten(-2)
        if self.gate_proj is not None:
            out = out * functional.silu(self.gate_proj(x))
        y: Tensor = self.o_proj(out)
        return y

    def recall(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        x: Tensor,
        tokens: Tokens,
        cache: StateCache | None,
    ) -> Tensor:
        """What the queries read of the state, `(batch, n_value_heads, n, value_dim)`.

        Args:
            q, k: `(batch, n_key_heads, n, key_dim)`.
            v: `(batch, n_value_heads, n, value_dim)`.
            x: what the layer was given; zeros on padding.
        """
        raise NotImplementedError

    def repeated(self, q: Tensor) -> Tensor:
        """Queries or keys for each value head: `(batch, n_value_heads, n, ...)`."""
        return repeat_heads(q, self.spec.n_value_heads // self.spec.n_key_heads)


class AdditiveAttention(LinearMixer):
    """The rule of the paper: states add up, and a normaliser divides."""

    def recall(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        x: Tensor,
        tokens: Tokens,
        cache: StateCache | None,
    ) -> Tensor:
        """`phi(q) S / phi(q) z`."""
        q, k = feature_map(q), feature_map(k)
        real = tokens.is_new_real
        if real is not None:
            # The feature of a key of zeros is not zero.
            k = k * real[:, None, :, None].to(k.dtype)
        past = (None, None) if cache is None else (cache.get("state"), cache.get("normaliser"))
        state, normaliser = past
        z = k.cumsum(dim=2) if normaliser is None else k.cumsum(dim=2) + normaliser[:, :, None]
        if cache is not None:
            cache["normaliser"] = z[:, :, -1].contiguous()
        weight = (q * z).sum(dim=-1, keepdim=True)
        if real is not None:
            # Nothing precedes padding: 0 / 0 there, which nobody reads.
            weight = weight.masked_fill(~real[:, None, :, None], 1.0)
        out, state = self.attend(
            self.repeated(q), self.repeated(k), v, self.repeated(weight), state
        )
        if cache is not None:
            cache["state"] = state
        return out

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, weight: Tensor, state: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Outputs and the last state, in chunks; whoever wants the weights puts another here.

        Args:
            q, k: features, `(batch, n_value_heads, n, key_dim)`.
            weight: what normalises each query, `(batch, n_value_heads, n, 1)`.
        """
        out, state = attend_in_chunks(q, k, v, state, chunk=self.spec.chunk)
        return out / weight, state


def feature_map(x: Tensor) -> Tensor:
    """elu(x) + 1: positive, and linear where x is (equation 7)."""
    return functional.elu(x) + 1


def heads(x: Tensor, dim: int) -> Tensor:
    """`(batch, n, heads * dim)` to `(batch, heads, n, dim)`."""
    return x.unflatten(-1, (-1, dim)).transpose(1, 2)


def attend_in_order(
    q: Tensor, k: Tensor, v: Tensor, state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Unnormalised outputs and the last state, token by token: the reference."""
    state = _empty_state(k, v) if state is None else state
    out = []
    for q_t, k_t, v_t in zip(q.unbind(2), k.unbind(2), v.unbind(2), strict=True):
        state = state + k_t[..., :, None] * v_t[..., None, :]
        out.append((q_t[..., None, :] @ state)[..., 0, :])
    return torch.stack(out, dim=2), state


def attend_at_once(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Unnormalised outputs by the lower half of all scores."""
    return (q @ k.transpose(-1, -2)).tril() @ v


def attend_in_weights(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    weight: Tensor,
    state: Tensor | None,
    seen: Callable[[Tensor], Tensor],
) -> tuple[Tensor, Tensor]:
    """As `AdditiveAttention.attend`, with `seen(weights)` `(batch, heads, n, n)` as the weights.

    Rows sum to one at the start of a sequence; later the rest is what is read of the state, in
    which the tokens of the past cannot be told apart any more.
    """
    out = seen((q @ k.transpose(-1, -2)).tril() / weight) @ v
    added = k.transpose(-1, -2) @ v
    if state is None:
        return out, added
    return out + q @ state / weight, state + added


def attend_in_chunks(
    q: Tensor, k: Tensor, v: Tensor, state: Tensor | None = None, *, chunk: int = 64
) -> tuple[Tensor, Tensor]:
    """Unnormalised outputs and the last state: scores within chunks, states between them."""
    n = q.shape[2]
    if n == 1:
        return attend_in_order(q, k, v, state)
    q, k, v = (in_chunks(t, min(chunk, n)) for t in (q, k, v))
    added = k.transpose(-1, -2) @ v  # (batch, heads, chunks, key_dim, value_dim)
    after = added.cumsum(dim=2)
    if state is not None:
        after = after + state[:, :, None]
    before = after - added
    out = q @ before + (q @ k.transpose(-1, -2)).tril() @ v
    return out.flatten(2, 3)[:, :, :n], after[:, :, -1]


def in_chunks(x: Tensor, chunk: int) -> Tensor:
    """`(batch, heads, n, d)` to `(batch, heads, chunks, chunk, d)`, with zeros at the end."""
    return functional.pad(x, (0, 0, 0, -x.shape[2] % chunk)).unflatten(2, (-1, chunk))


def _empty_state(k: Tensor, v: Tensor) -> Tensor:
    return k.new_zeros(*k.shape[:2], k.shape[-1], v.shape[-1])
