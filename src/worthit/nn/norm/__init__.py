"""Norms and activations: what keeps signals in range, and what makes layers non-linear."""

from __future__ import annotations

from torch import nn

from worthit.nn.norm.layernorm import LayerNorm
from worthit.nn.norm.rmsnorm import RMSNorm
from worthit.spec.model import Norm

__all__ = ["LayerNorm", "RMSNorm", "norm_for"]


def norm_for(norm: Norm, width: int) -> nn.Module:
    """The norm that `norm` describes, over `width` channels."""
    if norm.kind == "layernorm":
        return LayerNorm(width, eps=norm.eps, has_weight=norm.has_weight, has_bias=norm.has_bias)
    return RMSNorm(
        width,
        eps=norm.eps,
        has_weight=norm.has_weight,
        has_unit_offset=norm.has_unit_offset,
        has_bias=norm.has_bias,
    )
