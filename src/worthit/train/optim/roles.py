"""What each parameter of a model is to an optimizer: a matrix, or something else.

Matrix optimizers act on linear maps from hidden units to hidden units. By their authors' practice
(Jordan et al. 2024; Liu et al. 2025, arXiv:2502.16982, section 2.1) tables, output heads, norms
and biases stay with AdamW. A role follows from the module that holds a parameter, and from where
it stands, not from how it is called:

- `matrix`: the weight of a linear map, or of experts, inside the layers;
- `router`: what scores experts or tokens;
- `table`: whatever stands around the layers and has rows: embeddings, positions, the output head;
- `vector`: norms, biases, gates of a single output, and anything else with one axis;
- `other`: convolutions, states and mixes of recurrent layers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from worthit.nn.attention.gqa import GroupedQueryAttention
from worthit.nn.decoder import Decoder
from worthit.nn.depth.mixture_of_depths import TokenRouter
from worthit.nn.ffn import FeedForward
from worthit.nn.moe.experts import Experts
from worthit.nn.moe.topk_moe import Router
from worthit.nn.ssm.rwkv6 import TimeMixing6

Kind = Literal["matrix", "router", "table", "vector", "other"]


@dataclass(frozen=True)
class Role:
    """What a parameter is; a fused matrix is `n_parts` matrices one above the other.

    `n_repeats` is how often that pile is repeated: a query and its gate stand side by side within
    every head.
    """

    kind: Kind
    n_parts: int = 1
    n_repeats: int = 1

    @property
    def parts(self) -> Parts:
        """How `split` takes a parameter of this role apart."""
        return self.n_parts, self.n_repeats


# `n_parts` and `n_repeats`: plain numbers, so that an optimizer's state remains plain data.
Parts = tuple[int, int]
WHOLE: Parts = (1, 1)
MATRIX = Role("matrix")


def roles(model: nn.Module) -> dict[str, Role]:
    """The role of every parameter, by the names of `model.named_parameters()`.

    In a module that is no `Decoder` every linear map counts as inside the layers.
    """
    inside = model.layers if isinstance(model, Decoder) else model
    found: dict[int, Role] = {}
    for module in inside.modules():
        for parameter, role in _of_module(module):
            found.setdefault(id(parameter), role)
    layers = {id(p) for p in inside.parameters()}
    named = {}
    for name, p in model.named_parameters():
        elsewhere: Kind = "other" if id(p) in layers else "table"
        named[name] = found.get(id(p), Role(elsewhere if p.ndim > 1 else "vector"))
    return named


def split(x: Tensor, parts: Parts) -> Tensor:
    """`(..., rows, columns)` to its matrices `(..., n_parts, rows / n_parts, columns)`."""
    n_parts, n_repeats = parts
    return x.unflatten(-2, (n_repeats, n_parts, -1)).movedim(-3, -4).flatten(-3, -2)


def join(x: Tensor, parts: Parts) -> Tensor:
    """What `split` took apart: `(..., n_parts, rows / n_parts, columns)` to one matrix."""
    return x.unflatten(-2, (parts[1], -1)).movedim(-4, -3).flatten(-4, -2)


def _of_module(module: nn.Module) -> Iterator[tuple[Tensor, Role]]:
    """Parameters whose role their module decides; what comes first for a parameter holds."""
    if isinstance(module, Router | TokenRouter):
        for p in module.parameters():
            yield p, Role("router")
    elif isinstance(module, Experts):
        n_parts = 2 if module.spec.is_gated else 1
        yield module.up, Role("matrix", n_parts)
        yield module.down, MATRIX
    elif isinstance(module, FeedForward) and module.spec.is_gated:
        yield module.up.weight, Role("matrix", n_parts=2)
    elif isinstance(module, GroupedQueryAttention) and module.spec.has_output_gate:
        yield module.q_proj.weight, Role("matrix", n_parts=2, n_repeats=module.spec.n_heads)
    elif isinstance(module, TimeMixing6):
        # Five ways out of the low-rank mixes, as one tensor.
        yield module.mix_out, MATRIX
    elif isinstance(module, nn.Embedding):
        yield module.weight, Role("table")
    elif isinstance(module, nn.Linear):
        yield module.weight, MATRIX if module.out_features > 1 else Role("vector")
