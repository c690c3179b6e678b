"""Calibration: what each matrix meets on sample text, layer after layer, and rounding by it.

Layers go in order: the text runs through a layer once to see what its matrices meet, the matrices
are stored, and the text runs through it again, so that the layers behind it see what they will see
in use. Of all tokens only sums are kept: x x^T and |x| of every input.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from worthit.errors import SpecError
from worthit.nn.attention.gqa import GroupedQueryAttention
from worthit.nn.decoder import Block, Decoder
from worthit.nn.ffn import ACTIVATIONS, FeedForward
from worthit.nn.norm import LayerNorm, RMSNorm
from worthit.nn.quant import awq
from worthit.nn.quant.gptq import gptq
from worthit.nn.quant.grid import Grid
from worthit.nn.quant.linear import StoredLinear
from worthit.nn.tokens import Tokens, tokens_of

# Sequences that go through a layer together.
BATCH = 4
# The scores of a query and a key: the authors of AWQ found that clipping them hurts.
UNCLIPPED = ("q_proj", "k_proj")

OnProgress = Callable[[int, int], None]


@dataclass
class Seen:
    """Sums over all tokens that an input of `width` channels had."""

    width: int
    hessian: Tensor = field(init=False)
    total: Tensor = field(init=False)
    n: int = 0

    def __post_init__(self) -> None:
        self.hessian = torch.zeros(self.width, self.width)
        self.total = torch.zeros(self.width)

    @property
    def magnitude(self) -> Tensor:
        """Mean absolute value of each channel."""
        return self.total / max(self.n, 1)

    def add(self, x: Tensor) -> None:
        """Count the rows of `x` `(..., width)`."""
        rows = x.detach().reshape(-1, self.width).float()
        self.hessian.addmm_(rows.T, rows)
        self.total += rows.abs().sum(0)
        self.n += len(rows)


@contextmanager
def watched(linears: dict[str, nn.Linear]) -> Iterator[dict[str, Seen]]:
    """What goes into `linears` while this is open; those that read the same input share it."""
    seen: dict[str, Seen] = {}
    # Of the input that was read last: the sums that it went into.
    last: list[tuple[Tensor, Seen]] = []

    def hook_of(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            x = inputs[0]
            if last and last[0][0] is x and seen.setdefault(name, last[0][1]) is last[0][1]:
                return
            found = seen.setdefault(name, Seen(x.shape[-1]))
            found.add(x)
            last[:] = [(x, found)]

        return hook

    handles = [m.register_forward_pre_hook(hook_of(name)) for name, m in linears.items()]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def quantize_layers(
    model: Decoder,
    grid: Grid,
    ids: Tensor,
    *,
    method: str,
    act_order: bool = True,
    on_progress: OnProgress | None = None,
) -> tuple[str, ...]:
    """Store the matrices of all layers in `grid` by `method`, in place.

    Args:
        ids: calibration text, `(sequences, n)`.
        on_progress: called with how many layers are done, of how many.

    Returns:
        What the method could not do.

    Raises:
        SpecError: a layer whose inputs are not finite.
    """
    from worthit.nn.quant.quantize import put, targets

    linears, _ = targets(model, grid)
    notes: dict[str, None] = {}
    with torch.no_grad():
        hidden = [_embedded(model, batch) for batch in ids.to(model.device).split(BATCH)]
        for i, block in enumerate(model.layers):
            prefix = f"layers.{i}."
            own = {n.removeprefix(prefix): t for n, t in linears.items() if n.startswith(prefix)}
            with watched({name: linear for name, (linear, _) in own.items()}) as seen:
                for x, tokens in hidden:
                    block(x, tokens)
            for name, found in seen.items():
                if not found.hessian.isfinite().all():
                    raise SpecError(f"layers.{i}.{name}: its inputs are not finite on this text")
            if method == "awq":
                notes |= dict.fromkeys(_scale(block, own, seen))
            for name, (linear, its) in own.items():
                put(block, name, _stored(name, linear, seen.get(name), its, method, act_order))
            if i + 1 < len(model.layers):
                hidden = [(block(x, tokens), tokens) for x, tokens in hidden]
            if on_progress is not None:
                on_progress(i + 1, len(model.layers))
    return tuple(notes)


def _embedded(model: Decoder, ids: Tensor) -> tuple[Tensor, Tokens]:
    tokens = tokens_of(ids, past=0, attention_mask=None)
    tokens.relative_bias, tokens.low_rank = model.relative_bias, model.low_rank
    return model.embed(ids, tokens), tokens


def _stored(
    name: str, linear: nn.Linear, seen: Seen | None, grid: Grid, method: str, act_order: bool
) -> StoredLinear:
    weight = linear.weight.detach()
    bias = None if linear.bias is None else linear.bias.detach()
    if seen is None:  # the text never came here
        return StoredLinear.of(linear, grid)
    if method == "gptq":
        parts = gptq(weight, seen.hessian, grid, act_order=act_order, dtype=weight.dtype)
        return StoredLinear(grid, *parts, bias)
    if name.rpartition(".")[2] not in UNCLIPPED:
        linear.weight.data = awq.clipped(weight, seen.hessian, grid)
    return StoredLinear.of(linear, grid)


# --- AWQ's scales, and where they go --------------------------------------------------------------


@dataclass(frozen=True)
class Fold:
    """Matrices that read one input, and what stands before them and can be divided.

    Attributes:
        readers: names of the matrices.
        divide: divides what comes before by `s`, and returns what it was really divided by.
        shared: makes the channels of a magnitude equal that must have one scale.
    """

    readers: tuple[str, ...]
    divide: Callable[[Tensor], Tensor]
    shared: Callable[[Tensor], Tensor] = lambda magnitude: magnitude


def _scale(
    block: nn.Module, linears: dict[str, tuple[nn.Linear, Grid]], seen: dict[str, Seen]
) -> list[str]:
    folds = [f for f in folds_of(block) if all(n in linears and n in seen for n in f.readers)]
    for fold in folds:
        found = seen[fold.readers[0]]
        own = [linears[name][0] for name in fold.readers]
        grid = linears[fold.readers[0]][1]
        weights = [linear.weight for linear in own]
        s, alpha = awq.search_scale(weights, fold.shared(found.magnitude), found.hessian, grid)
        if alpha == 0:
            continue
        s = fold.divide(s)
        for linear in own:
            linear.weight.data = (linear.weight.float() * s).to(linear.weight.dtype)
        # The input is smaller now.
        found.hessian /= s[:, None] * s[None]
        found.total /= s
    scaled = {name for fold in folds for name in fold.readers}
    left = sorted({name.rpartition(".")[2] for name in linears if name not in scaled})
    return [f"awq: nothing to divide before {name}: clipped and rounded only" for name in left]


def folds_of(block: nn.Module) -> list[Fold]:
    """Where the scales of a block's inputs can go without changing what it computes."""
    if not isinstance(block, Block) or len(block.mixers) > 1 or block.spec.token_fraction < 1:
        return []
    mixer = block.mixers[0] if len(block.mixers) else None
    attention = mixer if type(mixer) is GroupedQueryAttention else None
    dense = block.ffn if type(block.ffn) is FeedForward else None
    qkv = tuple(f"mixers.0.{part}_proj" for part in "qkv") if attention else ()
    up = ("ffn.up",) if dense else ()
    if block.is_parallel and block.spec.has_one_norm:
        # Both halves must be able to take the scale.
        after_norm = [(block.mixer_norm, qkv + up if qkv and up else ())]
    else:
        after_norm = [(block.mixer_norm, qkv), (block.ffn_norm, up)]
    folds = [
        Fold(readers, _norm_divider(norm))
        for norm, readers in after_norm
        if readers and isinstance(norm, (RMSNorm, LayerNorm)) and norm.weight is not None
    ]
    if attention is not None and attention.spec.qkv_clip is None:
        folds.append(_after_values(attention))
    if dense is not None:
        ffn = dense.spec
        if (ffn.is_gated and ffn.activation in ACTIVATIONS) or ffn.activation == "relu":
            folds.append(Fold(("ffn.down",), _row_divider(dense.up, ffn.d_ff)))
    return folds


def _norm_divider(norm: nn.Module) -> Callable[[Tensor], Tensor]:
    def divide(s: Tensor) -> Tensor:
        offset = 1.0 if getattr(norm, "has_unit_offset", False) else 0.0
        old = norm.weight.float() + offset
        norm.weight.data = (old / s - offset).to(norm.weight.dtype)
        if norm.bias is not None:
            norm.bias.data = (norm.bias.float() / s).to(norm.bias.dtype)
            return s
        # What a rounded weight really divides by; a channel that is off stays off.
        new = norm.weight.float() + offset
        return torch.where((old == 0) | (new == 0), s, old / new)

    return divide


def _row_divider(linear: nn.Linear, n: int) -> Callable[[Tensor], Tensor]:
    """Divides the last `n` rows of `linear`: the values beside a gate, or all."""

    def divide(s: Tensor) -> Tensor:
        rows = linear.weight.data[-n:]
        rows.copy_(rows.float() / s[:, None])
        if linear.bias is not None:
            linear.bias.data[-n:] = linear.bias.data[-n:].float() / s
        return s

    return divide


def _after_values(mixer: GroupedQueryAttention) -> Fold:
    """The output projection reads values: each of their channels goes to several query heads."""
    n_kv, dim = mixer.spec.n_kv_heads, mixer.spec.head_dim
    share = mixer.spec.n_heads // n_kv

    def shared(magnitude: Tensor) -> Tensor:
        heads = magnitude.view(n_kv, share, dim)
        return heads.mean(1, keepdim=True).expand_as(heads).flatten()

    divide_rows = _row_divider(mixer.v_proj, n_kv * dim)

    def divide(s: Tensor) -> Tensor:
        divide_rows(s.view(n_kv, share, dim)[:, 0].flatten())
        return s

    return Fold(("mixers.0.o_proj",), divide, shared)
