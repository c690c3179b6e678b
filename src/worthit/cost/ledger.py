"""The ledger: what one forward pass computes and moves, one `Op` a kernel.

`build(model, p)` lists the operations of a `Pass` on one device, layer kind by layer kind. Nothing
here knows a device: FLOPs, bytes by stream and bytes to send are exact consequences of shapes;
`worthit.cost.clock` turns them into seconds. Every size may be a NumPy array over cases.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np

from worthit._record import record
from worthit.cost.params import n_norms
from worthit.spec.formats import format_of
from worthit.spec.model import EarlyExit, Layer, ModelSpec, Precision

# A float, or a NumPy array over cases: every formula takes either.
Number = Any
Phase = Literal["prefill", "decode", "train"]
Kernel = Literal["gemm", "moe", "attention", "scan", "elementwise", "comm"]
KERNELS: tuple[Kernel, ...] = ("gemm", "moe", "attention", "scan", "elementwise", "comm")

# Bytes moved per element of a fused element-wise step: read once, write once.
READ_AND_WRITE = 2


@record
class Pass:
    """One forward pass on one device.

    Args:
        batch: sequences on this device's replica.
        new: tokens of each sequence that are computed.
        past: tokens of each sequence that stand in the cache already (a mean).
        width, depth: multiply every width and every layer count, to ask about another size.
        tensor, expert: how many devices share a matrix, and the experts.
        logits: tokens a sequence whose logits are needed; None for all of them.
    """

    phase: Phase
    batch: Number
    new: Number
    past: Number = 0.0
    width: Number = 1.0
    depth: Number = 1.0
    tensor: Number = 1.0
    expert: Number = 1.0
    context: Number = 1.0
    logits: Number | None = None
    is_fused: bool = True
    is_compiled: bool = True
    kept_tokens: int | None = None
    precision: Precision = field(default_factory=Precision)

    @cached_property
    def tokens(self) -> Number:
        """Tokens computed on this device's replica."""
        return self.batch * self.new

    @cached_property
    def is_split(self) -> bool:
        """Whether anywhere more than one device shares a matrix."""
        return bool(np.any(np.asarray(self.tensor) > 1))

    @cached_property
    def is_expert_split(self) -> bool:
        """Whether anywhere more than one device shares the experts."""
        return bool(np.any(np.asarray(self.expert) > 1))

    def visible(self, reach: float | None = None) -> Number:
        """Mean keys that one new token attends to under a causal mask, itself included.

        With `reach` only the last that many: the mean over the new tokens of min(position, reach).
        """
        end = self.past + self.new
        if reach is None:
            return self.past + (self.new + 1) / 2
        return (_capped_sum(end, reach) - _capped_sum(self.past, reach)) / self.new

    def sharded(self, n_heads: Number) -> Number:
        """Heads that one of `tensor` devices holds; at least one (replicated beyond that)."""
        return np.maximum(n_heads / self.tensor, 1.0)


def _capped_sum(n: Number, reach: float) -> Number:
    """Sum over positions 1..n of min(position, reach)."""
    inside = np.minimum(n, reach)
    return inside * (inside + 1) / 2 + reach * (n - inside)


@dataclass(slots=True)
class Op:
    """One kernel: FLOPs, bytes by stream, bytes sent to other devices.

    `math` names the arithmetic; `storage` the format of its weights, where that slows reading.
    Attention that is not fused is `launches` plain kernels in place of one of its own.
    """

    name: str
    kernel: Kernel
    flops: Number = 0.0
    weights: Number = 0.0
    cache: Number = 0.0
    scores: Number = 0.0
    other: Number = 0.0
    sent: Number = 0.0
    launches: Number = 1.0
    math: str = "bf16"
    storage: str = ""
    is_fused: bool = True
    layer: str = ""
    count: Number = 1.0
    is_around: bool = False

    @property
    def bytes(self) -> Number:
        """Bytes read and written, all streams."""
        return self.weights + self.cache + self.scores + self.other


def matmul(
    name: str,
    p: Pass,
    rows: Number,
    columns: Number,
    *,
    tokens: Number | None = None,
    storage: str | None = None,
    kernel: Kernel = "gemm",
) -> Op:
    """A weight matrix `rows x columns` applied to every token, split over `tensor` devices."""
    tokens = p.tokens if tokens is None else tokens
    storage = p.precision.weights if storage is None else storage
    size = rows * columns / p.tensor
    return Op(
        name=name,
        kernel=kernel,
        flops=2.0 * tokens * size,
        weights=size * format_of(storage).bytes,
        other=tokens * (operand_bytes(p) * rows + activation_bytes(p) * columns) / p.tensor,
        math=p.precision.math_of(storage),
        storage=storage,
    )


def activation_bytes(p: Pass) -> float:
    """Bytes of one activation."""
    return format_of(p.precision.activations).bytes


def operand_bytes(p: Pass) -> float:
    """Bytes moved for one activation that enters a product: read, and cast first where it must be.

    A cast reads the activation and writes the operand, which the product then reads.
    """
    if p.precision.operands is None:
        return activation_bytes(p)
    return activation_bytes(p) + 2 * format_of(p.precision.operands).bytes


def elementwise(name: str, p: Pass, width: Number, *, n: float = 1.0) -> Op:
    """`n` fused element-wise steps over `width` channels of every token."""
    size = format_of(p.precision.activations).bytes
    return Op(
        name=name,
        kernel="elementwise",
        other=READ_AND_WRITE * n * p.tokens * width * size,
        launches=0.0 if p.is_compiled else n,
    )


def all_reduce(name: str, p: Pass, width: Number) -> Op:
    """Ring all-reduce of `width` channels a token over `tensor` devices: 2 (t - 1) / t bytes."""
    size = p.tokens * width * format_of(p.precision.activations).bytes
    return Op(
        name=name,
        kernel="comm",
        sent=2.0 * (p.tensor - 1.0) / p.tensor * size,
        launches=np.where(np.asarray(p.tensor) > 1, 1.0, 0.0),
    )


def build(model: ModelSpec, p: Pass) -> list[Op]:
    """Every operation of one pass, with `layer` and `count` filled in."""
    ops: list[Op] = []
    for layer, n in model.layer_kinds:
        count, kind = np.maximum(n * p.depth, 1.0) * layer.n_loops, layer.kind
        for op in layer_ops(layer, model, p):
            op.layer, op.count = kind, count
            ops.append(op)
    for op in around_ops(model, p):
        op.layer, op.is_around = "around", True
        ops.append(op)
    return ops


def layer_ops(layer: Layer, model: ModelSpec, p: Pass) -> Iterator[Op]:
    """One layer, for the tokens that a mixture of depths lets through."""
    if layer.token_fraction == 1:
        yield from _inside(layer, model, p)
        return
    yield elementwise("token router", p, model.d_model * p.width)
    through = layer.token_fraction
    routed = replace(p, new=p.new * through, past=p.past * through)
    # Weights are read and kernels started only in passes in which some token comes through.
    visited = 1.0 - (1.0 - through) ** p.tokens
    for op in _inside(layer, model, routed):
        op.weights, op.launches = op.weights * visited, op.launches * visited
        yield op


def _inside(layer: Layer, model: ModelSpec, p: Pass) -> Iterator[Op]:
    """Norms and residuals, mixers, feed-forward, and what tensor parallelism sends."""
    from worthit.cost.ops import ffn_ops, mixer_ops

    d = model.d_model * p.width
    n_residuals = 1 if layer.is_parallel else len(layer.mixers) + (layer.ffn is not None)
    yield elementwise("norms and residuals", p, d, n=float(n_norms(layer) + n_residuals))
    for mixer in layer.mixers:
        yield from mixer_ops(mixer, d, p)
        if p.is_split:
            yield all_reduce("all-reduce", p, d)
    if layer.ffn is not None:
        yield from ffn_ops(layer.ffn, d, p)
        if p.is_split and not layer.is_parallel:
            yield all_reduce("all-reduce", p, d)


def around_ops(model: ModelSpec, p: Pass) -> Iterator[Op]:
    """Embedding, final norm, output head; one more head for each early exit that is tried."""
    d = model.d_model * p.width
    yield elementwise("embedding", p, d)
    logits = p.tokens if p.logits is None else p.batch * p.logits
    width: Number = d
    if model.embedding_dim is not None and model.embedding_dim != model.d_model:
        width = model.embedding_dim * p.width
        yield matmul("projection in", p, width, d)
        yield matmul("projection out", p, d, width, tokens=logits)
    head = matmul(
        "output head", p, width, model.vocab_size, tokens=logits, storage=p.precision.embeddings
    )
    exits: EarlyExit | None = model.early_exit
    if exits is not None and p.phase == "decode":
        head.count = 1.0 + len(exits.layers) * exits.mean_depth
    yield head
    if p.phase == "train":
        # Softmax and cross-entropy in fp32: logits written, read, and their gradient written.
        yield Op(name="loss", kernel="elementwise", other=3 * 4 * logits * model.vocab_size)
