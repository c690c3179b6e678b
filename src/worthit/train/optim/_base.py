"""What the optimizers of matrices share: groups that say how a fused parameter comes apart."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from worthit.errors import SpecError
from worthit.train.optim.roles import WHOLE


class MatrixOptimizer(torch.optim.Optimizer):
    """An optimizer whose parameters are matrices, `(..., rows, columns)`.

    The group option `parts` says how its parameters are split. States are tensors in a flat
    dictionary, whatever the algorithm, as torch's own optimizers keep theirs.
    """

    def __init__(self, params: Iterable[Any], defaults: dict[str, Any]) -> None:
        super().__init__(params, {"parts": WHOLE} | defaults)
        name = type(self).__name__
        for group in self.param_groups:
            if group["lr"] < 0:
                raise SpecError(f"lr must not be negative, got {group['lr']}; give {name} a rate")
            for p in group["params"]:
                if p.ndim < 2:
                    raise SpecError(
                        f"{name} steps matrices, got a parameter of shape {tuple(p.shape)}; leave "
                        "vectors to AdamW, as optimizer_for does"
                    )


def counted(state: dict[str, Tensor]) -> int:
    """The number of this step, from 1, kept in `state`."""
    if "step" not in state:
        # On the CPU, as torch's own: reading it must not wait for a device.
        state["step"] = torch.zeros((), dtype=torch.float32)
    state["step"] += 1
    return int(state["step"])


def wide(x: Tensor) -> Tensor:
    """`x` in fp32 at least: decompositions exist in, and need, no less."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
