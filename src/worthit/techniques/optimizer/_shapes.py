"""The matrices of a model, one by one: what a matrix optimizer costs depends on both their sides.

Tables, norms, biases, routers and convolutions are no matrices here: practice leaves them to AdamW.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import singledispatch

from worthit.cost.params import count_params
from worthit.spec.case import Case, Range
from worthit.spec.model import (
    S4,
    Attention,
    ChannelMix,
    FeedForward,
    LatentAttention,
    LinearAttention,
    Mamba,
    Mamba2,
    ModelSpec,
    MoE,
    Rwkv,
)
from worthit.techniques._change import require_training, with_runtime
from worthit.techniques._record import Source

# AdamW in mixed precision: fp32 master copy, first and second moment (ZeRO, arXiv:1910.02054,
# section 3.1, whose 16 bytes add 2 of bf16 weights and 2 of gradients).
ADAMW_BYTES = 12.0
# Of those, what any optimizer keeps: the master copy, and one fp32 state.
MASTER = 4.0
STATE = 4.0

Shape = tuple[int, int]

WEN_2025 = Source(
    cite="Wen et al. 2025",
    title="Fantastic Pretraining Optimizers and Where to Find Them",
    id="arXiv:2509.02046",
)


def average(model: ModelSpec, each: Callable[[int, int], float], *, rest: float) -> float:
    """The mean over all parameters of `each(rows, columns)` per parameter, `rest` elsewhere."""
    inside = 0
    total = 0.0
    for rows, columns, n in matrices(model):
        inside += n * rows * columns
        total += n * rows * columns * each(rows, columns)
    everything = count_params(model).total
    return (total + rest * (everything - inside)) / everything


def with_optimizer(
    case: Case,
    name: str,
    *,
    bytes_of: Callable[[int, int], float],
    flops_of: Callable[[int, int], float],
    tokens_to_target: Range,
) -> Case:
    """`case` trained with optimizer `name` on its matrices and AdamW on the rest.

    Tokens that the model itself needs more or less of (mixture of depths) multiply.
    """
    require_training(case, name)
    now = case.runtime.tokens_to_target
    if now is not None and case.runtime.optimizer == "adamw":
        tokens_to_target = Range(
            mid=now.mid * tokens_to_target.mid,
            low=now.low * tokens_to_target.low,
            high=now.high * tokens_to_target.high,
        )
    return with_runtime(
        case,
        optimizer=name,
        optimizer_bytes_per_param=average(case.model, bytes_of, rest=ADAMW_BYTES),
        optimizer_flops_per_param=average(case.model, flops_of, rest=0.0),
        tokens_to_target=tokens_to_target,
    )


def with_adamw(case: Case) -> Case:
    """`case` trained with AdamW, on all the tokens that it states."""
    return with_runtime(
        case,
        optimizer="adamw",
        optimizer_bytes_per_param=ADAMW_BYTES,
        optimizer_flops_per_param=0.0,
        tokens_to_target=None,
    )


def matrices(model: ModelSpec) -> Iterator[tuple[int, int, int]]:
    """Rows, columns and number of each shape of matrix in the layers."""
    d = model.d_model
    for layer, n in model.layer_kinds:
        for mixer in layer.mixers:
            for rows, columns in mixer_shapes(mixer, d):
                yield rows, columns, n
        if isinstance(layer.ffn, MoE):
            width = layer.ffn.d_latent or d
            if width != d:
                yield d, width, 2 * n
            for rows, columns in ffn_shapes(layer.ffn.expert, width):
                yield rows, columns, n * layer.ffn.n_experts
            if layer.ffn.shared is not None:
                for rows, columns in ffn_shapes(layer.ffn.shared, d):
                    yield rows, columns, n
        elif layer.ffn is not None:
            for rows, columns in ffn_shapes(layer.ffn, d):
                yield rows, columns, n


def ffn_shapes(ffn: FeedForward | ChannelMix, d: int) -> tuple[Shape, ...]:
    """Matrices of one feed-forward in a stream of `d` channels."""
    if isinstance(ffn, ChannelMix):
        return ((d, ffn.d_ff), (ffn.d_ff, d), *(((d, d),) if ffn.has_receptance else ()))
    return ((d, ffn.d_ff),) * (2 if ffn.is_gated else 1) + ((ffn.d_ff, d),)


@singledispatch
def mixer_shapes(mixer: object, d: int) -> tuple[Shape, ...]:
    """Matrices of one mixer in a stream of `d` channels."""
    raise TypeError(f"no matrix shapes for {type(mixer).__name__}")


@mixer_shapes.register
def _(mixer: Attention, d: int) -> tuple[Shape, ...]:
    q, kv = mixer.n_heads * mixer.head_dim, mixer.n_kv_heads * mixer.head_dim
    queries = ((d, q),) * (2 if mixer.has_output_gate else 1)
    native: tuple[Shape, ...] = ()
    if mixer.sparse_near is not None:
        width = mixer.sparse_blocks[0] * mixer.head_dim
        native = ((width, mixer.head_dim), (width, mixer.head_dim), (d, 3 * mixer.n_heads))
    return (*queries, (d, kv), (d, kv), (q, d), *native)


@mixer_shapes.register
def _(mixer: LatentAttention, d: int) -> tuple[Shape, ...]:
    q = mixer.n_heads * (mixer.qk_nope_head_dim + mixer.qk_rope_head_dim)
    rank = mixer.q_lora_rank
    queries: tuple[Shape, ...] = ((d, q),) if rank is None else ((d, rank), (rank, q))
    up = mixer.n_heads * (mixer.qk_nope_head_dim + mixer.v_head_dim)
    return (
        *queries,
        (d, mixer.kv_lora_rank + mixer.qk_rope_head_dim),
        (mixer.kv_lora_rank, up),
        (mixer.n_heads * mixer.v_head_dim, d),
    )


@mixer_shapes.register
def _(mixer: LinearAttention, d: int) -> tuple[Shape, ...]:
    keys, values = mixer.n_key_heads * mixer.key_dim, mixer.n_value_heads * mixer.value_dim
    gate: tuple[Shape, ...] = ((d, values),) if mixer.has_output_gate else ()
    # Decay and write strength; see `worthit.cost.params`.
    heads = mixer.n_value_heads
    rules: dict[str, tuple[Shape, ...]] = {
        "gated": ((d, keys),),
        "delta": ((d, heads),),
        "gated-delta": ((d, heads), (d, heads)),
    }
    return ((d, keys), (d, keys), (d, values), *rules.get(mixer.kind, ()), *gate, (values, d))


@mixer_shapes.register
def _(mixer: Mamba, d: int) -> tuple[Shape, ...]:
    inner, rank = mixer.d_inner, mixer.dt_rank
    return ((d, 2 * inner), (inner, rank + 2 * mixer.d_state), (rank, inner), (inner, d))


@mixer_shapes.register
def _(mixer: Mamba2, d: int) -> tuple[Shape, ...]:
    groups = mixer.n_groups * mixer.d_state
    return ((d, 2 * mixer.d_inner + 2 * groups + mixer.n_heads), (mixer.d_inner, d))


@mixer_shapes.register
def _(mixer: Rwkv, d: int) -> tuple[Shape, ...]:
    inner, rank, mixes = mixer.d_attention, mixer.rank, mixer.mix_rank
    matrices: tuple[Shape, ...] = ((d, inner),) * (3 if mixer.version in (4, 7) else 4)
    if mixer.version == 6:
        matrices += ((d, 5 * mixes), *(((mixes, d),) * 5), (d, rank), (rank, inner))
    if mixer.version == 7:
        matrices += ((d, rank), (rank, inner)) * (3 + int(mixer.has_value_mix))
    return (*matrices, (inner, d))


@mixer_shapes.register
def _(mixer: S4, d: int) -> tuple[Shape, ...]:
    return ((d, 2 * d),)
