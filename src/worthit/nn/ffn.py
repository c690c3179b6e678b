"""The feed-forward: widen, activate, narrow; with a gate or without."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from worthit.nn.norm.gelu import gelu, gelu_tanh
from worthit.nn.norm.relu import relu, relu2
from worthit.nn.norm.swiglu import clamped_swish, silu
from worthit.nn.tokens import Tokens
from worthit.spec import model as spec

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": relu,
    "relu2": relu2,
    "gelu": gelu,
    "gelu-tanh": gelu_tanh,
    "silu": silu,
}


def activate(ffn: spec.FeedForward, up: Tensor) -> Tensor:
    """The non-linearity of `ffn`: `(..., 2 d_ff)` gate and value, or `(..., d_ff)`, to `d_ff`."""
    if not ffn.is_gated:
        return ACTIVATIONS[ffn.activation](up)
    gate, value = up.chunk(2, dim=-1)
    if ffn.activation == "clamped-swish":
        assert ffn.activation_limit is not None
        return clamped_swish(gate, value, ffn.activation_limit)
    if ffn.gate_scale != 1.0:
        gate = gate * ffn.gate_scale
    return ACTIVATIONS[ffn.activation](gate) * value


class FeedForward(nn.Module):
    """Two matrices, `up` (gate and value side by side when gated) and `down`."""

    def __init__(self, ffn: spec.FeedForward, model: spec.ModelSpec) -> None:
        super().__init__()
        self.spec = ffn
        inner = (2 if ffn.is_gated else 1) * ffn.d_ff
        self.up = nn.Linear(model.d_model, inner, bias=ffn.has_bias)
        self.down = nn.Linear(ffn.d_ff, model.d_model, bias=ffn.has_bias)

    def forward(self, x: Tensor, tokens: Tokens | None = None) -> Tensor:
        """`(batch, n, d_model)` to the same shape, token by token whatever `tokens` are."""
        y: Tensor = self.down(activate(self.spec, self.up(x)))
        return y if self.spec.out_scale == 1.0 else y * self.spec.out_scale
