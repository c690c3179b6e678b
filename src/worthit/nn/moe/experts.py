"""Experts side by side, and how tokens get to theirs: sorted by expert, one product a group.

Gale et al. 2022, "MegaBlocks: Efficient Sparse Training with Mixture-of-Experts", arXiv:2211.15841,
section 4: no token is dropped and no row is padded, whatever each expert's load.

| paper | here |
|---|---|
| token copies, permuted | `Sorted` |
| tokens per expert | `counts` |
| block-sparse products | `grouped_mm`, or one product a segment |
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from worthit.nn.ffn import activate
from worthit.spec import model as spec

# Beyond this many rows an expert, one segment after another keeps its intermediates in the cache,
# which saves a CPU more than single calls for all segments do.
SEGMENT_ROWS = 64
# grouped_mm wants rows that start at multiples of this many bytes.
ALIGNMENT_BYTES = 16


@dataclass(frozen=True)
class Sorted:
    """Pairs of tokens and experts, in the order of experts.

    Attributes:
        tokens: `(pairs,)`.
        weights: `(pairs, 1)`, in fp32.
        counts: `(n_experts,)`, how many pairs are whose.
        scales_input: whether the weights multiply what goes in, or what comes out.
    """

    tokens: Tensor
    weights: Tensor
    counts: Tensor
    scales_input: bool = False

    def inputs(self, rows: Tensor, weights: Tensor) -> Tensor:
        """What experts read, of `rows` `(n, width)`."""
        return (rows * weights).to(rows.dtype) if self.scales_input else rows

    def outputs(self, rows: Tensor, weights: Tensor) -> Tensor:
        """What experts write, in fp32, of their `rows` `(n, width)`."""
        return rows.to(weights.dtype) if self.scales_input else rows * weights

    def added(self, x: Tensor, tokens: list[Tensor], parts: Iterable[Tensor]) -> Tensor:
        """Every part added to its tokens' rows, in the shape and type of `x`."""
        y = torch.zeros(x.shape, dtype=self.weights.dtype, device=x.device)
        for where, part in zip(tokens, parts, strict=True):
            y.index_add_(0, where, part)
        return y.to(x.dtype)


class Experts(nn.Module):
    """`n_experts` feed-forwards of one shape, each laid out as `nn.Linear` lays out its own.

    `up` is `(n_experts, inner, width)`, gate above value when gated; `down` is
    `(n_experts, width, d_ff)`.
    """

    def __init__(self, expert: spec.FeedForward, n_experts: int, width: int) -> None:
        super().__init__()
        self.spec = expert
        self.n_experts = n_experts
        inner = (2 if expert.is_gated else 1) * expert.d_ff
        # Or stacks that are stored in few bits: `worthit.nn.quant`.
        self.up: Any = nn.Parameter(torch.empty(n_experts, inner, width))
        self.down: Any = nn.Parameter(torch.empty(n_experts, width, expert.d_ff))
        self.up_bias = nn.Parameter(torch.empty(n_experts, inner)) if expert.has_bias else None
        self.down_bias = nn.Parameter(torch.empty(n_experts, width)) if expert.has_bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """As `nn.Linear` does: uniform within 1 / sqrt(inputs)."""
        for weight, bias in ((self.up, self.up_bias), (self.down, self.down_bias)):
            bound = weight.shape[-1] ** -0.5
            nn.init.uniform_(weight, -bound, bound)
            if bias is not None:
                nn.init.uniform_(bias, -bound, bound)

    def forward(
        self,
        x: Tensor,
        tokens: Tensor,
        experts: Tensor,
        weights: Tensor,
        *,
        scales_input: bool = False,
    ) -> Tensor:
        """What the experts make of `x` `(n, width)`: `(n, width)`, zero where nobody looked.

        Args:
            x: one row a token.
            tokens: `(pairs,)`, the token of each pair of a token and an expert.
            experts: `(pairs,)`, the expert of each pair.
            weights: `(pairs,)`, what the expert's output is multiplied by.
            scales_input: multiply its input instead.
        """
        if x.shape[0] == 1 and not torch.is_grad_enabled():
            return self.single(x, experts, weights, scales_input=scales_input)
        order = experts.argsort(stable=True)
        p = Sorted(
            tokens[order],
            weights[order, None],
            torch.bincount(experts, minlength=self.n_experts),
            scales_input,
        )
        few_rows = len(order) <= SEGMENT_ROWS * self.n_experts
        if (few_rows or x.device.type != "cpu") and self._is_aligned(x):
            return self.grouped(x, p)
        return self.segment_by_segment(x, p)

    def single(self, x: Tensor, experts: Tensor, weights: Tensor, *, scales_input: bool) -> Tensor:
        """One token `(1, width)` through its own few experts: nothing to sort, nothing to copy."""
        chosen = experts.tolist()
        if not chosen:
            return torch.zeros_like(x)
        if scales_input:
            ways = [
                self.expert(i, (x * w).to(x.dtype)) for i, w in zip(chosen, weights, strict=True)
            ]
            return torch.cat(ways).sum(dim=0, keepdim=True)
        outputs = torch.cat([self.expert(i, x) for i in chosen])
        return (weights[None] @ outputs.to(weights.dtype)).to(x.dtype)

    def grouped(self, x: Tensor, p: Sorted) -> Tensor:
        """All experts in one call a matrix."""
        ends = p.counts.cumsum(0).to(torch.int32)
        rows = p.inputs(x.index_select(0, p.tokens), p.weights)
        h = functional.grouped_mm(rows, self.up.transpose(1, 2), offs=ends)
        if self.up_bias is not None:
            h = h + self.up_bias.repeat_interleave(p.counts, dim=0)
        y = functional.grouped_mm(activate(self.spec, h), self.down.transpose(1, 2), offs=ends)
        if self.down_bias is not None:
            y = y + self.down_bias.repeat_interleave(p.counts, dim=0)
        y = y if self.spec.out_scale == 1.0 else y * self.spec.out_scale
        return p.added(x, [p.tokens], [p.outputs(y, p.weights)])

    def segment_by_segment(self, x: Tensor, p: Sorted) -> Tensor:
        """One expert after another, those without rows left out."""
        counts = p.counts.tolist()
        tokens, weights = p.tokens.split(counts), p.weights.split(counts)
        # Unbound once: a gradient by index would be as large as all experts, for each of them.
        ups, downs = self.up.unbind(), self.down.unbind()
        parts = (
            p.outputs(self.expert(i, p.inputs(x.index_select(0, t), w), ups[i], downs[i]), w)
            for i, (t, w) in enumerate(zip(tokens, weights, strict=True))
            if counts[i]
        )
        return p.added(x, [t for t in tokens if t.shape[0]], parts)

    def expert(
        self, index: int, x: Tensor, up: Tensor | None = None, down: Tensor | None = None
    ) -> Tensor:
        """The feed-forward `index` on `x` `(n, width)`."""
        up, down = self.up[index] if up is None else up, self.down[index] if down is None else down
        up_bias = None if self.up_bias is None else self.up_bias[index]
        down_bias = None if self.down_bias is None else self.down_bias[index]
        h = activate(self.spec, _linear(x, up, up_bias))
        y = _linear(h, down, down_bias)
        return y if self.spec.out_scale == 1.0 else y * self.spec.out_scale

    def _is_aligned(self, x: Tensor) -> bool:
        if not isinstance(self.up, nn.Parameter) or not isinstance(self.down, nn.Parameter):
            return False  # stored in few bits: matrix by matrix
        widths = (self.up.shape[1], self.up.shape[2], self.down.shape[2])
        return all(w * x.element_size() % ALIGNMENT_BYTES == 0 for w in widths)


def _linear(x: Tensor, weight: Tensor | nn.Module, bias: Tensor | None) -> Tensor:
    """`x` times a matrix, or through one that is stored in another form."""
    if isinstance(weight, nn.Module):
        y: Tensor = weight(x)
        return y if bias is None else y + bias
    return functional.linear(x, weight, bias)
