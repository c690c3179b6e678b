"""Quantized models in files: what `save_model` writes and `load_model` reads of them.

A folder of `config.json` and safetensors, under worthit's own names. A stored matrix is
`NAME.codes` with `NAME.scales`, and `NAME.zeros` where its format has them; codes are packed as
`worthit.nn.quant.grid` says, E4M3 as E4M3. The config is that of the model, and says in
`quantization_config` what is stored how:

    {"quant_method": "worthit", "weights": "int4-g64", "embeddings": "int8", "experts": null,
     "method": "gptq", "formats": {"layers.3.ffn.down": "int8"}}

`formats` names the matrices that differ from `weights` and `embeddings`; `method` is for readers.
A BitNet's layers round what they multiply too: `"inputs": {"bits": 8, "has_sub_norm": true}`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from worthit.errors import InputError, SpecError
from worthit.nn.decoder import Decoder
from worthit.nn.moe.experts import Experts
from worthit.nn.quant.grid import E4M3, Grid, grid_of
from worthit.nn.quant.linear import (
    Int8Inputs,
    Stored,
    StoredEmbedding,
    StoredLinear,
    StoredStack,
    dense,
)
from worthit.nn.quant.quantize import QUANT_METHOD, TABLES, put


def quantization_of(config: object) -> dict[str, Any] | None:
    """What a `config.json` says of a model that worthit quantized; None for any other."""
    table = config.get("quantization_config") if isinstance(config, Mapping) else None
    if not isinstance(table, Mapping) or table.get("quant_method") != QUANT_METHOD:
        return None
    return dict(table)


def prepare(model: Decoder, quantization: Mapping[str, Any], stored: Iterable[str]) -> list[str]:
    """Put stored matrices without memory into `model`, wherever `stored` has codes.

    Args:
        stored: the names of all tensors in the files.

    Returns:
        What is wrong: codes of what has no matrix.
    """
    problems = []
    for name in [tensor.removesuffix(".codes") for tensor in stored if tensor.endswith(".codes")]:
        try:
            here = _matrix_at(model, name)
        except AttributeError:
            problems.append(f"{name}.codes: not a matrix of this model")
            continue
        grid = format_at(quantization, name)
        rows, columns = here.shape[-2:]
        if grid is None:
            problems.append(f"{name}.codes: the config does not say what they are stored in")
        elif not grid.fits(columns):
            problems.append(f"{name}: {columns} columns do not go into {grid.name}")
        else:
            inputs = None if name in TABLES else inputs_of(quantization)
            _put_empty(model, name, grid, rows, columns, inputs)
    return problems


def format_at(quantization: Mapping[str, Any], name: str) -> Grid | None:
    """The format of the matrix `name`; None where the config names none."""
    formats = quantization.get("formats") or {}
    kind = "embeddings" if name in TABLES else "weights"
    said = formats.get(name) or quantization.get(kind)
    return None if said is None else grid_of(str(said))


def _matrix_at(model: Decoder, name: str) -> Tensor:
    owner, _, leaf = name.rpartition(".")
    parent = model.get_submodule(owner)
    here = getattr(parent, leaf)
    if isinstance(here, (nn.Linear, nn.Embedding)):
        weight: Tensor = here.weight
        return weight
    if isinstance(parent, Experts) and isinstance(here, nn.Parameter) and here.ndim == 3:
        return here
    raise AttributeError(name)


def inputs_of(quantization: Mapping[str, Any]) -> Int8Inputs | None:
    """What the layers' matrices do to their inputs."""
    said = quantization.get("inputs")
    return None if said is None else Int8Inputs(has_sub_norm=bool(said.get("has_sub_norm")))


def _put_empty(
    model: Decoder, name: str, grid: Grid, rows: int, columns: int, inputs: Int8Inputs | None
) -> None:
    here = model.get_submodule(name.rpartition(".")[0])
    old = getattr(here, name.rpartition(".")[2])
    n = old.shape[0] if isinstance(old, nn.Parameter) else 1
    size, width = grid.scales_shape(rows, columns)
    with torch.device("meta"):
        codes = torch.empty(n * rows, grid.codes_shape(rows, columns)[1], dtype=grid.codes_dtype)
        scales = torch.empty(n * size, width)
        zeros = torch.empty(n * size, width) if grid.has_zeros else None
    new: Stored
    if isinstance(old, nn.Parameter):
        new = StoredStack(grid, codes, scales, zeros, n)
    elif isinstance(old, nn.Embedding):
        new = StoredEmbedding(grid, codes, scales, zeros)
    else:
        bias = None if old.bias is None else old.bias.detach()
        new = StoredLinear(grid, codes, scales, zeros, bias, inputs=inputs)
    put(model, name, new)


def fill(
    model: Decoder, read: Callable[[str], Tensor], dtype: torch.dtype, device: str | torch.device
) -> None:
    """Read every tensor of `model`, prepared as above, and put it in place."""
    for name, old in model.state_dict(keep_vars=True).items():
        owner, _, leaf = name.rpartition(".")
        module, tensor = model.get_submodule(owner), read(name)
        if leaf == "codes":
            tensor = tensor.view(torch.uint8) if tensor.dtype == E4M3 else tensor
            module.register_buffer(leaf, tensor.to(device).contiguous())
        elif isinstance(old, nn.Parameter):
            new = tensor.to(device=device, dtype=dtype).contiguous()
            module.register_parameter(leaf, nn.Parameter(new, requires_grad=old.requires_grad))
        else:
            kept = old.dtype if not isinstance(module, Stored) else dtype
            module.register_buffer(leaf, tensor.to(device=device, dtype=kept).contiguous())


def tensors(model: Decoder) -> dict[str, Tensor]:
    """Every tensor of a quantized model as files hold it."""
    held = dict(model.state_dict())
    for name, module in model.named_modules():
        if isinstance(module, Stored) and module.grid.kind == "float":
            held[f"{name}.codes"] = module.codes.view(E4M3)
    return held


def unpack(model: Decoder) -> Decoder:
    """Widen every stored matrix of `model`, in place: an ordinary model of the same numbers."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, StoredLinear):
                setattr(parent, name, dense(child))
            elif isinstance(child, StoredEmbedding):
                setattr(parent, name, nn.Embedding.from_pretrained(child.weight))
            elif isinstance(child, StoredStack):
                whole = torch.stack([child[i] for i in range(child.n)])
                delattr(parent, name)
                setattr(parent, name, nn.Parameter(whole, requires_grad=False))
    model.quantization = None
    return model


def check(config: Mapping[str, Any], where: str) -> None:
    """Refuse formats that a config names and nobody stores.

    Raises:
        SpecError: what is not understood.
    """
    inputs, formats = config.get("inputs"), config.get("formats")
    if inputs is not None and (not isinstance(inputs, Mapping) or inputs.get("bits") != 8):
        raise SpecError(f"inputs: expected {{'bits': 8}}, got {inputs!r:.60}", context=where)
    if formats is not None and not isinstance(formats, Mapping):
        raise SpecError(
            f"formats: expected an object from matrices to formats, got {formats!r:.60}",
            context=where,
        )
    named = [config.get("weights"), config.get("embeddings"), *(formats or {}).values()]
    for name in named:
        if name is not None:
            try:
                grid_of(str(name))
            except InputError as error:
                raise error.within(where) from None
