"""Passthrough: layers as they are, in another order or number.

The tensor itself is copied; what is new is which layer it becomes, and that is the recipe's to say
(`slices`). Repeating a range of layers makes a deeper model ("frankenmerge", depth up-scaling),
which was pre-trained further where it was reported to work.

Source:
    Kim et al. 2023, "SOLAR 10.7B: Scaling Large Language Models with Simple yet Effective Depth
    Up-Scaling", arXiv:2312.15166, section 2.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor

from worthit.merge.stack import Stack, in_memory


def passthrough(tensor: Tensor, *, scale: float | None = None) -> Tensor:
    """`tensor`, multiplied by `scale` where there is one."""
    return in_memory(merge, (tensor,), scales=(scale,))


def merge(stack: Stack, *, scales: Sequence[float | None] = (None,)) -> Iterator[Tensor]:
    """The rows of the one model of `stack`; see `passthrough`."""
    (scale,) = scales
    for (rows,) in stack.pieces():
        yield rows if scale is None else rows * scale
