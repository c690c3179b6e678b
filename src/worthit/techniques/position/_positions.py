"""Change how a model knows order, and stretch rotary positions; papers that records share."""

from __future__ import annotations

from dataclasses import replace

from worthit.errors import NotApplicable
from worthit.spec.case import Case
from worthit.spec.model import (
    Attention,
    LatentAttention,
    Mixer,
    Position,
    PositionKind,
    PositionScaling,
    ScalingKind,
)
from worthit.techniques._change import with_model
from worthit.techniques._mixers import Softmax, layer_names, softmax_mixers
from worthit.techniques._record import Source

PENG_2023_YARN = Source(
    cite="Peng et al. 2023",
    title="YaRN: Efficient Context Window Extension of Large Language Models",
    id="arXiv:2309.00071",
    where="section 3",
)
PRESS_2021 = Source(
    cite="Press, Smith and Lewis 2021",
    title="Train Short, Test Long: Attention with Linear Biases Enables Input Length Extrapolation",
    id="arXiv:2108.12409",
    where="section 3",
)
KAZEMNEJAD_2023 = Source(
    cite="Kazemnejad et al. 2023",
    title="The Impact of Positional Encoding on Length Generalization in Transformers",
    id="arXiv:2305.19466",
    where="section 4",
)
VASWANI_2017 = Source(
    cite="Vaswani et al. 2017",
    title="Attention Is All You Need",
    id="arXiv:1706.03762",
    where="section 3.5",
)
HSIEH_2024 = Source(
    cite="Hsieh et al. 2024",
    title="RULER: What's the Real Context Size of Your Long-Context Language Models?",
    id="arXiv:2404.06654",
    where="section 4",
)
# T5: 32 buckets of distance, one bias a head, shared by all layers (Raffel et al. 2019, 2.1).
N_BUCKETS = 32
BIAS_EXTRA = "relative position bias"


def require_order(case: Case, name: str) -> tuple[Softmax, ...]:
    """The model's softmax attentions, or `NotApplicable`: other mixers know the order already."""
    found = softmax_mixers(case)
    if not found:
        raise NotApplicable(
            f"{name} tells softmax attention the order of the tokens, and this model has none: its "
            f"layers ({layer_names(case.model)}) read the tokens one after the other"
        )
    return found


def is_kind(case: Case, kind: PositionKind) -> bool:
    """Whether the model's softmax attention knows order by `kind`."""
    return bool(softmax_mixers(case)) and case.model.position.kind == kind


def has_free_layers(case: Case) -> bool:
    """Whether some softmax attention of a model with positions is told none."""
    return case.model.position.kind != "nope" and any(
        m.qk_rope_head_dim == 0 if isinstance(m, LatentAttention) else m.is_position_free
        for m in softmax_mixers(case)
    )


def set_position(case: Case, name: str, position: Position) -> Case:
    """`case` with another position scheme in every softmax attention, tables and biases included.

    Latent attention has channels set apart for the rotation: it takes rotary positions or none.
    """
    found = require_order(case, name)
    model = case.model
    if model.position.kind == position.kind and not has_free_layers(case):
        raise NotApplicable(f"{name} is in place already: it is how this model knows order")
    if position.kind not in ("rope", "nope") and any(isinstance(m, LatentAttention) for m in found):
        raise NotApplicable(
            f"{name} cannot pass through a latent cache: this model's attention carries order in "
            "rotary channels of their own, and the alternatives there are rope and nope"
        )
    is_rotary = position.kind == "rope"

    def change(mixer: Mixer) -> Mixer:
        if isinstance(mixer, LatentAttention):
            channels = mixer.qk_rope_head_dim or 2 * (mixer.qk_nope_head_dim // 4)
            return replace(mixer, qk_rope_head_dim=channels if is_rotary else 0)
        if isinstance(mixer, Attention):
            share = (mixer.rotary_dim or mixer.head_dim) if is_rotary else None
            return replace(mixer, position=None, rotary_dim=share, is_position_free=False)
        return mixer

    changed = replace(model.map_mixers(change), position=position, n_positions=0)
    if position.kind == "learned":
        changed = replace(changed, n_positions=model.context_len)
    n_biases = N_BUCKETS * max(m.n_heads for m in found)
    extra = model.extra
    if BIAS_EXTRA in extra:
        extra = extra.removesuffix(BIAS_EXTRA).removesuffix("; ")
        changed = replace(changed, n_extra_params=changed.n_extra_params - n_biases, extra=extra)
    if position.kind == "relative-bias":
        changed = replace(
            changed,
            n_extra_params=changed.n_extra_params + n_biases,
            extra=f"{extra}; {BIAS_EXTRA}" if extra else BIAS_EXTRA,
        )
    return with_model(case, changed)


def without_position(case: Case) -> Case:
    """`case` with a model that is told nothing about order."""
    return set_position(case, "nope", Position(kind="nope"))


def is_scaled(case: Case, *kinds: ScalingKind) -> bool:
    """Whether rotary positions are stretched by one of `kinds`."""
    scaling = case.model.position.scaling
    return scaling is not None and scaling.kind in kinds and is_kind(case, "rope")


def stretch(case: Case, name: str, kind: ScalingKind, *, max_factor: float | None = None) -> Case:
    """`case` with rotary positions stretched by `kind` to what the workload needs.

    The context grows by a power of two until the longest sequence fits; it does not grow when it
    fits already, and the factor is then 1 (or what the model's own scaling had). The original
    length stays the one that the model was trained on before any scaling; `max_factor` bounds the
    stretch from there, and sequences may then still be too long.
    """
    found = require_order(case, name)
    model = case.model
    rotates = any(
        m.qk_rope_head_dim > 0 if isinstance(m, LatentAttention) else not m.is_position_free
        for m in found
    )
    if model.position.kind != "rope" or not rotates:
        raise NotApplicable(
            f"{name} stretches the angles of rotary positions, and this model's positions are "
            f"{model.position.kind}; only a model with rope can be extended so"
        )
    scaling = model.position.scaling
    needed, context = case.workload.context, model.context_len
    if scaling is not None and scaling.kind == kind and needed <= context:
        raise NotApplicable(
            f"{name} is in place already: positions are stretched by {scaling.factor:g} to "
            f"{context} tokens, and sequences have {needed}"
        )
    original = model.context_len if scaling is None else scaling.original_context_len
    while context < needed and (max_factor is None or 2 * context <= max_factor * original):
        context *= 2
    stretched = PositionScaling(kind=kind, factor=context / original, original_context_len=original)
    position = replace(model.position, scaling=stretched)
    return with_model(case, replace(model, position=position, context_len=context))


def unstretch(case: Case) -> Case:
    """`case` with unscaled rotary positions and the context that they were trained for."""
    model = case.model
    scaling = model.position.scaling
    if scaling is None:
        return case
    return with_model(
        case,
        replace(
            model,
            position=replace(model.position, scaling=None),
            context_len=scaling.original_context_len,
        ),
    )
