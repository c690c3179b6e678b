"""Linear maps whose three products have narrow operands: forward, and backward for both factors.

Micikevicius et al. 2022, "FP8 Formats for Deep Learning", arXiv:2209.05433, section 4; Rouhani et
al. 2023, "Microscaling Data Formats for Deep Learning", arXiv:2310.10537, figure 2:

    Y = Q(X) Q(W)^T,    dX = Q(dY) Q(W),    dW = Q(dY)^T Q(X)

Each Q runs along the axis that its product sums over, so that W and X are rounded twice, from the
originals and not one from the other. Rounding itself has no useful gradient: these formulas are
the straight-through estimator. Sums are in fp32, or in bf16's products where autocast says so.

This is a simulation, and says so (`is_simulated`): operands take the values that the format can
hold, and are multiplied in their own wide type. It answers what a format does to a model, not how
fast hardware that has it would be.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import vmap

from worthit.nn.ffn import activate
from worthit.nn.moe.experts import Experts
from worthit.train.fold import CannotStack, StackedLinear, by_model
from worthit.train.precision.bitnet import sub_norm

# `(x, axis)`: what a format makes of an operand whose product sums over `axis`.
Quantizer = Callable[[Tensor, int], Tensor]


def exactly(x: Tensor, axis: int) -> Tensor:
    """No format: the operand as it is."""
    return x


@dataclass(frozen=True)
class Narrow:
    """A format of products: what becomes of inputs, of weights, and of gradients of outputs.

    Attributes:
        name: of the format, as `apply_precision` knows it.
        has_sub_norm: bring each token to unit power first (BitNet's SubLN).
        is_stochastic: whether rounding draws random numbers.
    """

    name: str
    inputs: Quantizer
    weights: Quantizer
    gradients: Quantizer = exactly
    has_sub_norm: bool = False
    is_stochastic: bool = False


def narrow_linear(x: Tensor, weight: Tensor, bias: Tensor | None, narrow: Narrow) -> Tensor:
    """`functional.linear` with narrow operands: `(..., in)` to `(..., out)`."""
    if narrow.has_sub_norm:
        x = sub_norm(x)
    if torch.is_autocast_enabled(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)
        x, weight = x.to(dtype), weight.to(dtype)
    y: Tensor = _Products.apply(x.reshape(-1, x.shape[-1]), weight, narrow)
    y = y.view(*x.shape[:-1], -1)
    return y if bias is None else y + bias.to(y.dtype)


class _Products(torch.autograd.Function):
    """The three products, of `x` `(tokens, in)` and `w` `(out, in)`."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, w: Tensor, narrow: Narrow) -> Tensor:
        return narrow.inputs(x, 1) @ narrow.weights(w, 1).mT

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Narrow], output: Tensor) -> None:
        x, w, ctx.narrow = inputs
        ctx.save_for_backward(x, w)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        (x, w), narrow = ctx.saved_tensors, ctx.narrow
        dx = dw = None
        if ctx.needs_input_grad[0]:
            dx = narrow.gradients(dy, 1) @ narrow.weights(w, 0)
        if ctx.needs_input_grad[1]:
            dw = narrow.gradients(dy, 0).mT @ narrow.inputs(x, 0)
        return dx, dw, None


class NarrowLinear(nn.Linear):
    """`nn.Linear` with the parameters of another, multiplied narrowly."""

    is_simulated = True

    def __init__(self, linear: nn.Linear, narrow: Narrow) -> None:
        has_bias = linear.bias is not None
        super().__init__(linear.in_features, linear.out_features, bias=has_bias, device="meta")
        self.weight, self.bias, self.narrow = linear.weight, linear.bias, narrow
        self.train(linear.training)

    def forward(self, x: Tensor) -> Tensor:
        """`(..., in_features)` to `(..., out_features)`."""
        return narrow_linear(x, self.weight, self.bias, self.narrow)

    @staticmethod
    def stacked(parts: Sequence[NarrowLinear]) -> StackedNarrowLinear:
        """Several models' maps as one; see `worthit.train.fold`."""
        return StackedNarrowLinear(parts)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, {self.narrow.name}, simulated"


class StackedNarrowLinear(StackedLinear):
    """`weight` `(models, out, in)`, `bias` `(models, out)`, every model rounded for itself.

    Raises:
        CannotStack: rounding by chance, whose draws belong to one model's run.
    """

    def __init__(self, parts: Sequence[NarrowLinear]) -> None:
        super().__init__(parts)
        self.narrow = parts[0].narrow
        if self.narrow.is_stochastic:
            raise CannotStack(f"{self.narrow.name} rounds by chance, for one model at a time")

    def forward(self, x: Tensor) -> Tensor:
        """`(models * rows, ..., in)` to `(models * rows, ..., out)`."""
        own = None if self.bias is None else 0
        each = vmap(narrow_linear, in_dims=(0, 0, own, None))
        y: Tensor = each(by_model(x, len(self.weight)), self.weight, self.bias, self.narrow)
        return y.view(*x.shape[:-1], y.shape[-1])


class NarrowExperts(Experts):
    """`Experts` with the parameters of others, multiplied narrowly, one expert after another."""

    is_simulated = True

    def __init__(self, experts: Experts, narrow_up: Narrow, narrow_down: Narrow) -> None:
        with torch.device("meta"):
            super().__init__(experts.spec, experts.n_experts, experts.up.shape[-1])
        for name, parameter in experts.named_parameters(recurse=False):
            setattr(self, name, parameter)
        self.narrow, self.narrow_down = narrow_up, narrow_down
        self.train(experts.training)

    def expert(
        self, index: int, x: Tensor, up: Tensor | None = None, down: Tensor | None = None
    ) -> Tensor:
        """The feed-forward `index` on `x` `(n, width)`."""
        up, down = self.up[index] if up is None else up, self.down[index] if down is None else down
        up_bias = None if self.up_bias is None else self.up_bias[index]
        down_bias = None if self.down_bias is None else self.down_bias[index]
        h = activate(self.spec, narrow_linear(x, up, up_bias, self.narrow))
        y = narrow_linear(h, down, down_bias, self.narrow_down)
        return y if self.spec.out_scale == 1.0 else y * self.spec.out_scale

    def _is_aligned(self, x: Tensor) -> bool:
        # There is no grouped product of narrow operands.
        return False
