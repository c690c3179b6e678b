"""Blocks of a `.gguf` kept as they are: codes and scales taken apart, rows put in our order.

| ggml's block of 32 numbers | grid |
|---|---|
| Q4_0: fp16 d, 16 bytes; d (q - 8) | `int4-g32` |
| Q4_1: fp16 d and m, 16 bytes; d q + m = d (q - 8) + (m + 8 d) | `q4_1` |
| Q8_0: fp16 d, 32 bytes; d q | `int8-g32` |

Nothing is rounded: in a model that computes in fp32 the numbers are those that the blocks stand
for. In bf16 scales and zeros lose three of their eleven bits.

What stands between a file's tensor and ours is a `Layout`, a function of numbers. Where it only
moves whole rows, which rows it moves where is found by giving it the numbers of rows: blocks lie
within rows, so they can follow. Whatever else a layout does, the tensor is widened.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from worthit.nn.decoder import Decoder
from worthit.nn.moe.experts import Experts
from worthit.nn.quant import kernels
from worthit.nn.quant.grid import CENTRE, GRIDS, Grid
from worthit.nn.quant.linear import Stored, StoredEmbedding, StoredLinear, StoredStack
from worthit.nn.quant.quantize import QUANT_METHOD, TABLES, put
from worthit.nn.weights.names import Rule
from worthit.spec._gguf_header import TensorInfo

GRID_OF = {"Q4_0": "int4-g32", "Q4_1": "q4_1", "Q8_0": "int8-g32"}
# Bytes of a block before its codes: d, or d and m.
_HEAD = {"Q4_0": 2, "Q4_1": 4, "Q8_0": 2}
_BLOCK_BYTES = {"Q4_0": 18, "Q4_1": 20, "Q8_0": 34}


@dataclass(frozen=True)
class Rows:
    """Stored rows: packed codes, scales, and zeros where the grid has them."""

    grid: Grid
    codes: Tensor
    scales: Tensor
    zeros: Tensor | None

    def take(self, rows: Tensor, dtype: torch.dtype, device: str | torch.device) -> Rows:
        """These of the rows, in this order and there; scales and zeros in `dtype`."""
        zeros = None if self.zeros is None else self.zeros[rows].to(device, dtype)
        scales = self.scales[rows].to(device, dtype)
        return Rows(self.grid, self.codes[rows].to(device), scales, zeros)


def read_rows(info: TensorInfo) -> Rows:
    """The blocks of a tensor, taken apart; scales and zeros in fp32."""
    assert info.path is not None
    raw = np.memmap(info.path, np.uint8, "r", offset=info.offset, shape=(info.n_bytes,))
    columns = info.shape[-1]
    blocks = np.asarray(raw).reshape(-1, columns // 32, _BLOCK_BYTES[info.type])
    head = _HEAD[info.type]
    scales = _halves(blocks[..., :2])
    zeros = _halves(blocks[..., 2:4]) + CENTRE * scales if head == 4 else None
    codes = torch.from_numpy(blocks[..., head:].copy()).flatten(-2)
    grid = GRIDS[GRID_OF[info.type]]
    return Rows(grid, codes.view(grid.codes_dtype), scales, zeros)


def _halves(raw: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]) -> Tensor:
    numbers = np.ascontiguousarray(raw).view("<f2")[..., 0]
    return torch.from_numpy(numbers.astype(np.float32))


def moved(rule: Rule, shapes: Sequence[Sequence[int]]) -> list[Tensor] | None:
    """Which row of theirs, counted through all tensors, each row of ours is; None if no row is.

    Args:
        shapes: of the file's tensors.

    Returns:
        For each tensor of ours the numbers, in its own shape without the columns.
    """
    given, start = [], 0
    for shape in shapes:
        n = int(np.prod(shape[:-1]))
        # Two columns: what changes numbers or columns does not leave a pair as it was.
        pairs = 2.0 * torch.arange(start, start + n, dtype=torch.float64)[:, None]
        given.append((pairs + torch.tensor([0.0, 1.0])).view(*shape[:-1], 2))
        start += n
    try:
        found = rule.layout.to_ours(given)
    except (RuntimeError, ValueError, IndexError):
        return None
    rows = []
    for tensor in found:
        if tensor.ndim < 2 or tensor.shape[-1] != 2:
            return None
        number = tensor[..., 0] / 2
        is_whole = (number == number.round()) & (number >= 0) & (number < start)
        if not (is_whole & (tensor[..., 1] == tensor[..., 0] + 1)).all():
            return None
        rows.append(number.long())
    return rows


def joined(parts: Sequence[Rows]) -> Rows:
    """Rows of one grid below one another."""
    zeros = [part.zeros for part in parts if part.zeros is not None]
    return Rows(
        parts[0].grid,
        torch.cat([part.codes for part in parts]),
        torch.cat([part.scales for part in parts]),
        torch.cat(zeros) if zeros else None,
    )


def keep(
    model: Decoder,
    rules: Iterable[Rule],
    stored: Mapping[str, TensorInfo],
    dtype: torch.dtype,
    device: str | torch.device,
) -> list[Rule]:
    """Put what can stay in blocks into `model`; returns the rules of everything else."""
    left = []
    for rule in rules:
        infos = [stored[name] for name in rule.theirs]
        kinds = {info.type for info in infos}
        places = [_place(model, name, dtype) for name in rule.ours]
        rows = None
        if len(kinds) == 1 and kinds <= GRID_OF.keys() and None not in places:
            rows = moved(rule, [info.shape for info in infos])
        if rows is None:
            left.append(rule)
            continue
        held = joined([read_rows(info) for info in infos])
        for name, make, own in zip(rule.ours, places, rows, strict=True):
            assert make is not None
            put(model, name.removesuffix(".weight"), make(held.take(own.flatten(), dtype, device)))
    model.quantization = described(model)
    return left


def described(model: Decoder) -> dict[str, object] | None:
    """What `config.json` says of the stored matrices of `model`; None where it has none."""
    found = {name: m.grid.name for name, m in model.named_modules() if isinstance(m, Stored)}
    if not found:
        return None
    inside = Counter(grid for name, grid in found.items() if name not in TABLES)
    usual = {
        "weights": inside.most_common(1)[0][0] if inside else None,
        "embeddings": next((found[name] for name in TABLES if name in found), None),
    }
    other = {
        name: grid
        for name, grid in found.items()
        if grid != usual["embeddings" if name in TABLES else "weights"]
    }
    config: dict[str, object] = {
        "quant_method": QUANT_METHOD,
        **usual,
        "experts": None,
        "method": "gguf",
    }
    return config | ({"formats": other} if other else {})


Make = Callable[[Rows], Stored]


def _place(model: Decoder, name: str, dtype: torch.dtype) -> Make | None:
    """What makes the stored form of the parameter `name`; None where it must stay a tensor."""
    owner, _, leaf = name.rpartition(".")
    module = model.get_submodule(owner)
    if isinstance(module, Experts) and leaf in ("up", "down"):
        n = module.n_experts
        return lambda r: StoredStack(r.grid, r.codes, r.scales, r.zeros, n)
    if leaf != "weight":
        return None
    if isinstance(module, nn.Embedding) and owner in TABLES:
        return lambda r: StoredEmbedding(r.grid, r.codes, r.scales, r.zeros)
    parent, _, child = owner.rpartition(".")
    is_read = child in getattr(model.get_submodule(parent), "weights_read", ())
    if type(module) is not nn.Linear or is_read:
        return None
    # The bias comes by a rule of its own.
    bias = None if module.bias is None else module.bias.detach().to(dtype)
    return lambda r: StoredLinear(r.grid, r.codes, r.scales, r.zeros, bias)


def pays(stored: Mapping[str, TensorInfo], dtype: str | torch.dtype | None) -> bool:
    """Whether a file's blocks should stay packed on this machine: products that read them so exist.

    They compute in bf16, and most bytes of matrices must be in blocks that they know.
    """
    if dtype not in (None, "bf16", "bfloat16", torch.bfloat16):
        return False
    bytes_of = Counter[str]()
    for info in stored.values():
        bytes_of[info.type] += info.n_bytes if len(info.shape) > 1 else 0
    known = sum(n for kind, n in bytes_of.items() if kind in GRID_OF)
    if 2 * known < sum(bytes_of.values()):
        return False
    return kernels.can_multiply_int8() and kernels.can_multiply_int4(32)
