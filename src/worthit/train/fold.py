"""Several decoders of one shape as one decoder, whose batch holds every model's rows.

Rows of model 0 come first, then those of model 1, and so on. What acts on a row alone (attention,
rotations, activations) need not know; what has parameters (linear maps, tables, norms) is replaced
by a module that gives each model's rows that model's parameters, stacked along a first axis. So one
product of `(models, rows, width)` stands for as many small ones.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from worthit.nn.decoder import Block, Decoder
from worthit.nn.depth.recursive_transformer import Recursive
from worthit.nn.norm import LayerNorm, RMSNorm
from worthit.nn.position.learned_positions import LearnedPositions

# Blocks in which no row sees another: a router's capacity, or a solver that stops once a whole
# batch has converged, would mix models up.
_BLOCKS = (Block, Recursive)


class CannotStack(Exception):
    """Why models have to be trained apart; always caught."""


def fold(models: Sequence[nn.Module]) -> Decoder:
    """One decoder for the rows of all `models`, with copies of their parameters under their names.

    Raises:
        CannotStack: the models' shapes differ, or a part of them cannot be folded.
    """
    first = models[0]
    shapes = [{name: t.shape for name, t in m.state_dict().items()} for m in models]
    if any(other != shapes[0] for other in shapes):
        raise CannotStack("the models' shapes differ")
    if type(first) is not Decoder:
        raise CannotStack(f"{type(first).__name__} is no plain decoder")
    for block in first.layers:
        if type(block) not in _BLOCKS:
            raise CannotStack(f"{type(block).__name__} looks at its whole batch")
    whole = copy.deepcopy(first)
    for name, module in list(first.named_modules()):
        own = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
        if not own:
            continue
        # A module of another package brings its own.
        made = _STACKED.get(type(module)) or getattr(module, "stacked", None)
        if made is None:
            raise CannotStack(f"{type(module).__name__} has parameters of its own")
        parent, _, leaf = name.rpartition(".")
        parts = [m.get_submodule(name) for m in models]
        setattr(whole.get_submodule(parent), leaf, made(parts))
    if whole.head is None:
        whole.tied_head = _tied(whole.embedding)
    return whole


def by_model(x: Tensor, n_models: int) -> Tensor:
    """`(models * rows, ..., width)` as `(models, all rows of one, width)`."""
    return x.reshape(n_models, -1, x.shape[-1])


class _Product(torch.autograd.Function):
    """`x W^T + b` for every model; its gradients lie in memory as the parameters do.

    Autograd's own would give the transpose of a weight's gradient, and copy it.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """`(models, rows, in)` to `(models, rows, out)`."""
        ctx.save_for_backward(x, weight)
        ctx.has_bias = bias is not None
        if bias is None:
            return torch.bmm(x, weight.mT)
        return torch.baddbmm(bias[:, None], x, weight.mT)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Gradients of `x`, `weight` and `bias`."""
        x, weight = ctx.saved_tensors
        bias = grad.sum(dim=1) if ctx.has_bias else None
        return torch.bmm(grad, weight), torch.bmm(grad.mT, x), bias


class StackedLinear(nn.Module):
    """`weight` `(models, out, in)`, `bias` `(models, out)`."""

    def __init__(self, parts: Sequence[nn.Linear]) -> None:
        super().__init__()
        self.weight = _stack(parts, "weight")
        self.bias = _stack(parts, "bias")
        self.in_features, self.out_features = parts[0].in_features, parts[0].out_features

    def forward(self, x: Tensor) -> Tensor:
        """`(models * rows, ..., in)` to `(models * rows, ..., out)`."""
        weight, bias = self.weight, self.bias
        if torch.is_autocast_enabled(x.device.type):
            low = torch.get_autocast_dtype(x.device.type)
            x, weight = x.to(low), weight.to(low)
            bias = None if bias is None else bias.to(low)
        y: Tensor = _Product.apply(by_model(x, len(weight)), weight, bias)
        return y.view(*x.shape[:-1], y.shape[-1])


class StackedEmbedding(nn.Module):
    """`weight` `(models, rows, width)`."""

    def __init__(self, parts: Sequence[nn.Embedding]) -> None:
        super().__init__()
        self.weight = _stack(parts, "weight")

    def forward(self, ids: Tensor) -> Tensor:
        """`(models * rows, n)` to `(models * rows, n, width)`."""
        return _looked_up(ids, self.weight)


class StackedPositions(nn.Module):
    """`weight` `(models, positions, width)`."""

    def __init__(self, parts: Sequence[LearnedPositions]) -> None:
        super().__init__()
        self.weight, self.offset = _stack(parts, "weight"), parts[0].offset

    def forward(self, positions: Tensor) -> Tensor:
        """`(models * rows, n)` to `(models * rows, n, width)`."""
        return _looked_up(positions + self.offset, self.weight)


class StackedLayerNorm(nn.Module):
    """`weight` and `bias` `(models, width)`."""

    def __init__(self, parts: Sequence[LayerNorm]) -> None:
        super().__init__()
        self.width, self.eps, self.n_models = parts[0].width, parts[0].eps, len(parts)
        self.weight, self.bias = _stack(parts, "weight"), _stack(parts, "bias")

    def forward(self, x: Tensor) -> Tensor:
        """`LayerNorm.forward`, with each row's own weights."""
        y = by_model(functional.layer_norm(x.float(), (self.width,), eps=self.eps), self.n_models)
        if self.weight is not None:
            y = y * self.weight.float()[:, None]
        if self.bias is not None:
            y = y + self.bias.float()[:, None]
        return y.to(x.dtype).view(x.shape)


class StackedRMSNorm(nn.Module):
    """`weight` and `bias` `(models, width)`."""

    def __init__(self, parts: Sequence[RMSNorm]) -> None:
        super().__init__()
        self.width, self.eps, self.n_models = parts[0].width, parts[0].eps, len(parts)
        self.has_unit_offset = parts[0].has_unit_offset
        self.weight, self.bias = _stack(parts, "weight"), _stack(parts, "bias")

    def forward(self, x: Tensor) -> Tensor:
        """`RMSNorm.forward`, with each row's own weights."""
        y = by_model(functional.rms_norm(x.float(), (self.width,), eps=self.eps), self.n_models)
        if self.weight is not None and self.has_unit_offset:
            y = y * (1 + self.weight.float()[:, None])
        y = y.to(x.dtype)
        if self.weight is not None and not self.has_unit_offset:
            y = y * self.weight[:, None]
        y = y if self.bias is None else y + self.bias[:, None]
        return y.view(x.shape)


_STACKED: dict[type, Callable[[Any], nn.Module]] = {
    nn.Linear: StackedLinear,
    nn.Embedding: StackedEmbedding,
    LearnedPositions: StackedPositions,
    LayerNorm: StackedLayerNorm,
    RMSNorm: StackedRMSNorm,
}


def _tied(embedding: nn.Module) -> Callable[[Tensor], Tensor]:
    """The output head that shares the embeddings' parameters, and owns none."""

    def head(x: Tensor) -> Tensor:
        y: Tensor = _Product.apply(by_model(x, len(embedding.weight)), embedding.weight, None)
        return y.view(*x.shape[:-1], y.shape[-1])

    return head


def _stack(parts: Sequence[nn.Module], name: str) -> Any:
    """The parameter `name` of every part, stacked; None where they have none."""
    own = [getattr(part, name) for part in parts]
    if own[0] is None:
        return None
    stacked = torch.stack([p.detach() for p in own])
    return nn.Parameter(stacked, requires_grad=own[0].requires_grad)


def _looked_up(ids: Tensor, tables: Tensor) -> Tensor:
    n_models, n_rows, _ = tables.shape
    first = torch.arange(n_models, device=ids.device) * n_rows
    rows = ids.reshape(n_models, -1) + first[:, None]
    return functional.embedding(rows.view(ids.shape), tables.flatten(0, 1))
