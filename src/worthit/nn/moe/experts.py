"""Experts side by side, and how tokens get to theirs: sorted by expert, one product a group.

Gale et al. 2022, "MegaBlocks: Efficient Sparse Training with Mixture-of-Experts", arXiv:2211.15841,
section 4: no token is dropped and no row is padded, whatever each expert's load.

| paper | here |
|---|---|
| token copies, permuted | `rows`, sorted by expert |
| tokens per expert | `counts` |
| block-sparse products | `grouped_mm`, or one product a segment |
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from worthit.nn.ffn import activate
from worthit.spec import model as spec

# From this many rows an expert on, one segment after another keeps its intermediates in the cache,
# which saves a CPU more than single calls for all segments do.
SEGMENT_ROWS = 64
# grouped_mm wants rows that start at multiples of this many bytes.
ALIGNMENT_BYTES = 16


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
        self.up = nn.Parameter(torch.empty(n_experts, inner, width))
        self.down = nn.Parameter(torch.empty(n_experts, width, expert.d_ff))
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
        order = experts.argsort(stable=True)
        tokens, weights = tokens[order], weights[order, None]
        counts = torch.bincount(experts, minlength=self.n_experts)
        rows = x.index_select(0, tokens)
        rows = (
            self.run((rows * weights).to(x.dtype), counts)
            if scales_input
            else (self.run(rows, counts) * weights)
        )
        # Summed in fp32: the weights are.
        y = torch.zeros(x.shape, dtype=rows.dtype, device=x.device)
        return y.index_add(0, tokens, rows).to(x.dtype)

    def run(self, rows: Tensor, counts: Tensor) -> Tensor:
        """Each expert on its own `rows` `(pairs, width)`, which stand in the order of experts.

        `counts` `(n_experts,)` says how many rows are whose.
        """
        is_small = rows.shape[0] < SEGMENT_ROWS * self.n_experts
        if (is_small or rows.device.type != "cpu") and self._is_aligned(rows):
            return self.run_grouped(rows, counts)
        return self.run_segments(rows, counts)

    def run_grouped(self, rows: Tensor, counts: Tensor) -> Tensor:
        """All experts in one call a matrix."""
        ends = counts.cumsum(0).to(torch.int32)
        h = functional.grouped_mm(rows, self.up.transpose(1, 2), offs=ends)
        if self.up_bias is not None:
            h = h + self.up_bias.repeat_interleave(counts, dim=0)
        y = functional.grouped_mm(activate(self.spec, h), self.down.transpose(1, 2), offs=ends)
        if self.down_bias is not None:
            y = y + self.down_bias.repeat_interleave(counts, dim=0)
        return y if self.spec.out_scale == 1.0 else y * self.spec.out_scale

    def run_segments(self, rows: Tensor, counts: Tensor) -> Tensor:
        """One expert after another, those without rows left out."""
        segments = rows.split(counts.tolist())
        parts = [self.expert(i, part) for i, part in enumerate(segments) if part.shape[0]]
        return torch.cat(parts) if parts else rows

    def expert(self, index: int, x: Tensor) -> Tensor:
        """The feed-forward `index` on `x` `(n, width)`."""
        up_bias = None if self.up_bias is None else self.up_bias[index]
        down_bias = None if self.down_bias is None else self.down_bias[index]
        h = activate(self.spec, functional.linear(x, self.up[index], up_bias))
        y = functional.linear(h, self.down[index], down_bias)
        return y if self.spec.out_scale == 1.0 else y * self.spec.out_scale

    def _is_aligned(self, rows: Tensor) -> bool:
        widths = (self.up.shape[1], self.up.shape[2], self.down.shape[2])
        return all(w * rows.element_size() % ALIGNMENT_BYTES == 0 for w in widths)
