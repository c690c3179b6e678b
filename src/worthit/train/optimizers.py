"""From a recipe to an optimizer: which parameters decay, and the rate of each update.

Matrices inside the layers decay, and routers; norms, biases, embeddings, output heads, and what
recurrences start from do not, as zero is no neutral value of theirs (Gu & Dao 2023,
arXiv:2312.00752, exempt A and D likewise). Decay is decoupled (Loshchilov & Hutter 2017,
arXiv:1711.05101).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from worthit.train.optim import Together, optimizer_for
from worthit.train.recipe import Recipe

# The roles of `worthit.train.optim.roles` that weight decay applies to.
DECAYED = ("matrix", "router")


def make_optimizer(
    model: nn.Module, recipe: Recipe, parameters: Mapping[str, Tensor] | None = None
) -> torch.optim.Optimizer | Together:
    """The recipe's optimizer for `model`.

    Args:
        parameters: what is stepped instead of the model's own, under the same names; a leading
            dimension is that many models, each stepped as if it were alone.
    """
    optimizer = optimizer_for(
        model,
        recipe.optimizer,
        lr=recipe.lr,
        matrix_lr=recipe.matrix_lr,
        weight_decay=recipe.weight_decay,
        betas=recipe.betas,
        eps=recipe.eps,
        parameters=parameters,
    )
    for group in optimizer.param_groups:
        if group["role"] not in DECAYED:
            group["weight_decay"] = 0.0
    return optimizer


def set_lr(optimizer: torch.optim.Optimizer | Together, ratio: float) -> None:
    """The rate of the next update: every group's own, times `ratio`."""
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * ratio
