"""The models that experiments train: the grammar tutor, and a small decoder of today's parts.

Vocabulary and context come from the data (see `worthit.lab.context`).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from worthit.lab.experiment import Budget
from worthit.spec.load import load_preset
from worthit.spec.model import (
    Attention,
    FeedForward,
    Ffn,
    Layer,
    Mixer,
    ModelSpec,
    Norm,
    Position,
    Precision,
)

FP32 = Precision(weights="fp32", embeddings="fp32", activations="fp32", cache="fp32", state="fp32")
# Of the tutor's heads.
HEAD_DIM = 32


def tutor(budget: Budget) -> ModelSpec:
    """The grammar tutor: one layer, 500k parameters; narrower where the budget has a `d_model`."""
    spec = load_preset("grammar-tutor")
    d_model = budget.sizes.get("d_model", spec.d_model)
    if d_model == spec.d_model:
        return spec
    n_heads = d_model // HEAD_DIM

    def narrower(layer: Layer) -> Layer:
        (attention,), ffn = layer.mixers, layer.ffn
        assert isinstance(attention, Attention)
        assert isinstance(ffn, FeedForward)
        heads = replace(attention, n_heads=n_heads, n_kv_heads=n_heads)
        return replace(layer, mixers=(heads,), ffn=replace(ffn, d_ff=4 * d_model))

    name = f"{spec.name}-{d_model}"
    return replace(spec.map_layers(narrower), name=name, d_model=d_model)


def attention(d_model: int, head_dim: int = 16, **changes: Any) -> Attention:
    """Multi-head attention over `d_model` channels."""
    n_heads = d_model // head_dim
    return Attention(**{"n_heads": n_heads, "n_kv_heads": n_heads, "head_dim": head_dim, **changes})


def decoder(
    d_model: int = 64,
    *,
    n_layers: int = 2,
    mixers: tuple[Mixer, ...] | Mixer | None = None,
    ffn: Ffn | None = None,
    has_ffn: bool = True,
    position: str | Position = "rope",
    norm: str | Norm = "rmsnorm",
    placement: str = "pre",
    **changes: Any,
) -> ModelSpec:
    """A small decoder: attention, SwiGLU, RMSNorm before, rotary positions, tied embeddings.

    Args:
        mixers: one mixer for every layer, or one a layer; attention of heads of 16 by default.
        ffn: the feed-forward of every layer; SwiGLU of `8/3 d_model` by default, none where not
            `has_ffn`.
        changes: fields of `ModelSpec`.
    """
    if mixers is None:
        mixers = attention(d_model)
    each = mixers if isinstance(mixers, tuple) else (mixers,) * n_layers
    place = Position(kind=position) if isinstance(position, str) else position  # type: ignore[arg-type]  # a name
    if place.kind == "rope":
        each = tuple(rotated(mixer) for mixer in each)
    if has_ffn and ffn is None:
        ffn = FeedForward(d_ff=8 * d_model // 3)
    kind = Norm(kind=norm) if isinstance(norm, str) else norm  # type: ignore[arg-type]  # a name
    layers = {
        mixer: Layer(
            mixers=(mixer,),
            ffn=ffn if has_ffn else None,
            norm=kind,
            placement=placement,  # type: ignore[arg-type]  # a name of `Placement`
        )
        for mixer in each
    }
    fields: dict[str, Any] = {
        "name": "small",
        "d_model": d_model,
        "vocab_size": 64,
        "context_len": 64,
        "layers": tuple(layers[mixer] for mixer in each),
        "position": place,
        "norm": kind,
        "has_tied_embeddings": True,
        "precision": FP32,
    }
    if place.kind == "learned":
        fields["n_positions"] = 64
    return ModelSpec(**{**fields, **changes})


def rotated(mixer: Mixer) -> Mixer:
    """Attention whose whole heads are turned, unless it says which share or is told no order."""
    if isinstance(mixer, Attention) and mixer.rotary_dim is None and not mixer.is_position_free:
        return replace(mixer, rotary_dim=mixer.head_dim)
    return mixer
