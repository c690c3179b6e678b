"""A loaded model made fast for one token at a time on a CPU: same numbers, other layouts.

Decoding a single sequence multiplies every weight by one vector, so that time is bytes over
bandwidth at best, and what decides is how near a kernel comes to that. `optimize` changes a model
in place, for inference alone:

- queries, keys and values are one product, and not three;
- fp32 matrices that are no wider than tall are stored column by column, where the library's product
  with one vector streams through memory, and is no slower for many;
- bf16 matrices are packed for oneDNN, whose product then starts without reordering them;
- matrices stored in few bits take the form of PyTorch's packed products (`nn.quant.kernels`), or
  are widened once to the model's own type where there is none.

Where all layers are of the common shape and the machine can compile (`worthit.nn.native`), none of
this is needed: a pass is one call. Where this build of torch has no such packing, that step is left
out. `products` says what a model is multiplied by.
"""

from __future__ import annotations

from collections import Counter

import torch
from torch import Tensor, nn

from worthit.nn.attention.gqa import GroupedQueryAttention
from worthit.nn.decoder import Decoder
from worthit.nn.native.decoder import make_native
from worthit.nn.native.linear import NativeLinear
from worthit.nn.quant.kernels import Int4Linear, Int8Head, Int8Linear, fast, fast_stack, fast_table
from worthit.nn.quant.linear import StoredEmbedding, StoredLinear, StoredStack, dense


def optimize(model: Decoder, *, has_wide_copies: bool = False, has_native: bool = True) -> Decoder:
    """Lay the weights of `model` out for decoding, in place; it can no longer be trained or saved.

    Weights elsewhere than on a CPU stay as they are.

    Args:
        has_wide_copies: keep a bf16 copy beside each matrix of few bits, for prompts and batches of
            many rows: two bytes a weight more, and their products as fast as those of bf16. Not
            with compiled layers, whose products take as long with many rows as those of bf16.
        has_native: compile the layers, where they, the machine and its compiler allow it.
    """
    if model.is_optimized or model.device.type != "cpu":
        return model
    model.requires_grad_(requires_grad=False)
    for module in model.modules():
        if type(module) is GroupedQueryAttention:
            module.fuse()
    if has_native:
        model.native = make_native(model)
        if model.native is not None:
            model.is_optimized = True
            return model
    can_pack = _can_pack()
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, StoredStack):
                setattr(parent, name, fast_stack(child) or child)
            # What is read as a matrix must stay one.
            is_read = name in getattr(parent, "weights_read", ())
            if isinstance(child, StoredLinear):
                quick = None if is_read else fast(child, is_head=child is model.head)
                if quick is not None and has_wide_copies and child.inputs is None:
                    quick.wide_copy = dense(child)
                    _lay_out(quick, "wide_copy", quick.wide_copy, can_pack=can_pack)
                child = quick or dense(child)
                setattr(parent, name, child)
            if not is_read and type(child) is nn.Linear:
                _lay_out(parent, name, child, can_pack=can_pack)
    _lay_out_tied_head(model, can_pack=can_pack)
    model.is_optimized = True
    return model


def lay_out(module: nn.Module) -> None:
    """Lay the dense products of any module out for inference, in place: heads beside a model."""
    can_pack = _can_pack()
    for part in list(module.modules()):
        if type(part) is GroupedQueryAttention:
            part.fuse()
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear:
                _lay_out(parent, name, child, can_pack=can_pack)


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
    if model.head is not None:
        return
    if isinstance(model.embedding, StoredEmbedding):
        model.tied_head = fast_table(model.embedding)
        if model.tied_head is None:
            table = model.embedding.weight
            model.embedding = nn.Embedding.from_pretrained(table)
        else:
            return
    weight = model.embedding.weight
    if weight.dtype == torch.bfloat16 and can_pack:
        model.tied_head = PackedLinear(weight, None)
    elif weight.dtype == torch.float32:
        weight.data = _by_columns(weight.data)


def products(model: Decoder) -> dict[str, int]:
    """How many matrices of `model` are multiplied by which product, most first.

    `int4` and `int8` are the packed products, `stored` unpacks at every call, `dense` is any other;
    compiled products are called by what they multiply: `fp32`, `bf16`, `int8`, `int4`.
    """
    kinds = {
        Int4Linear: "int4",
        Int8Linear: "int8",
        Int8Head: "int8",
        StoredLinear: "stored",
        PackedLinear: "dense",
        NativeLinear: "",
        nn.Linear: "dense",
    }
    copies = {id(m.wide_copy) for m in model.modules() if isinstance(m, Int4Linear | Int8Linear)}
    counted = Counter(
        m.kind if isinstance(m, NativeLinear) else kinds[type(m)]
        for m in model.modules()
        if type(m) in kinds and id(m) not in copies
    )
    if model.head is None and model.tied_head is None:
        counted["stored" if isinstance(model.embedding, StoredEmbedding) else "dense"] += 1
    return dict(counted.most_common())


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
