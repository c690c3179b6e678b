"""A loaded model made fast for one token at a time on a CPU: same numbers, other layouts.

Decoding a single sequence multiplies every weight by one vector, so that time is bytes over
bandwidth at best, and what decides is how near a kernel comes to that. `optimize` changes a model
in place, for inference alone:

- queries, keys and values are one product, and not three;
- fp32 matrices that are no wider than tall are stored column by column, where the library's product
  with one vector streams through memory, and is no slower for many;
- bf16 matrices are packed for oneDNN, whose product then starts without reordering them.

Where this build of torch has no such packing, that step is left out.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from worthit.nn.attention.gqa import GroupedQueryAttention
from worthit.nn.decoder import Decoder


def optimize(model: Decoder) -> Decoder:
    """Lay the weights of `model` out for decoding, in place; it can no longer be trained or saved.

    Weights elsewhere than on a CPU stay as they are.
    """
    if model.is_optimized or model.embedding.weight.device.type != "cpu":
        return model
    model.requires_grad_(requires_grad=False)
    for module in model.modules():
        if type(module) is GroupedQueryAttention:
            module.fuse()
    can_pack = _can_pack()
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear:
                _lay_out(parent, name, child, can_pack=can_pack)
    _lay_out_tied_head(model, can_pack=can_pack)
    model.is_optimized = True
    return model


class PackedLinear(nn.Module):
    """A linear map whose weight oneDNN has laid out for its own product."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        # Not a buffer: an opaque tensor can be neither copied nor saved.
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach())
        self.bias = bias

    def forward(self, x: Tensor) -> Tensor:
        """`(..., in)` to `(..., out)`."""
        y: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, "none", [], "")
        return y


def _lay_out(parent: nn.Module, name: str, linear: nn.Linear, *, can_pack: bool) -> None:
    weight = linear.weight
    if weight.dtype == torch.bfloat16 and can_pack:
        setattr(parent, name, PackedLinear(weight, linear.bias))
    elif weight.dtype == torch.float32 and weight.shape[0] >= weight.shape[1]:
        weight.data = _by_columns(weight.data)


def _lay_out_tied_head(model: Decoder, *, can_pack: bool) -> None:
    """The head of a model whose embedding it is: looked up by rows, multiplied as a matrix."""
    weight = model.embedding.weight
    if model.head is not None:
        return
    if weight.dtype == torch.bfloat16 and can_pack:
        model.tied_head = PackedLinear(weight, None)
    elif weight.dtype == torch.float32:
        weight.data = _by_columns(weight.data)


def _by_columns(weight: Tensor) -> Tensor:
    return weight.t().contiguous().t()


def _can_pack() -> bool:
    """Whether this build and this CPU multiply packed bf16 matrices."""
    try:
        if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
            return False
        small = torch.ones(8, 4, dtype=torch.bfloat16)
        y = PackedLinear(small, None)(small[:1])
    except (AttributeError, NotImplementedError, RuntimeError):
        return False
    return bool((y == 4).all())
