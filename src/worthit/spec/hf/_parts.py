"""What the families share: sizes under their common names, rotary positions, usual layers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from worthit.spec.hf._fields import MAX_SIZE, Fields
from worthit.spec.model import (
    Activation,
    Attention,
    FeedForward,
    Ffn,
    Layer,
    Mixer,
    ModelSpec,
    MoE,
    Norm,
    NormKind,
    Position,
    PositionScaling,
    ScalingKind,
)

# Every layer becomes an entry of the spec: a slip of a few digits must not fill the memory.
MAX_LAYERS = 10_000

ACTIVATION_NAMES: dict[str, Activation] = {
    "relu": "relu",
    "relu2": "relu2",
    "gelu": "gelu",
    "gelu_new": "gelu-tanh",
    "gelu_fast": "gelu-tanh",
    "gelu_pytorch_tanh": "gelu-tanh",
    "silu": "silu",
    "swish": "silu",
}
SCALING_NAMES: dict[str, ScalingKind] = {
    "linear": "linear",
    "dynamic": "dynamic",
    "yarn": "yarn",
    "llama3": "llama3",
    "longrope": "longrope",
    # Phi-3's first name for LongRoPE.
    "su": "longrope",
}


@dataclass(frozen=True, kw_only=True)
class Rotary:
    """Rotary positions as read: the position, the share of each head, the stretched context."""

    position: Position
    fraction: float
    context_len: int


class Decoder:
    """The sizes that most families name alike, and the parts built from them.

    Args:
        fields: the config being read.
        theta: the type's rotary base where the file gives none.
        fraction: the type's rotated share of each head where the file gives none.
        head_dim: the type's head size where the key is absent; None derives it.
        kv_heads: the type's number of key/value heads where the key is absent; None is MHA.
        has_groups: whether the type knows key/value heads and head sizes of their own at all.
        context_len: the type's context where the key is absent; None requires it.
        n_layers: the number of layers where another key implies it; None requires it.
        names: the type's own keys, best first, in place of a common one.
        norm: the kind of the norms.
        eps: the key of the norms' epsilon, and its value where absent.
    """

    def __init__(
        self,
        fields: Fields,
        *,
        theta: float = 10_000.0,
        fraction: float = 1.0,
        is_interleaved: bool = False,
        head_dim: int | None = None,
        kv_heads: int | None = None,
        norm: NormKind = "rmsnorm",
        eps: tuple[str, float] = ("rms_norm_eps", 1e-6),
        has_rope: bool = True,
        has_groups: bool = True,
        context_len: int | None = None,
        n_layers: int | None = None,
        names: Mapping[str, tuple[str, ...]] | None = None,
        **norm_options: bool,
    ) -> None:
        self.fields = fields
        self._names = names or {}
        self.d_model = self._size("hidden_size")
        self.n_layers = self._size("num_hidden_layers", default=n_layers, at_most=MAX_LAYERS)
        self.vocab_size = self._size("vocab_size")
        self.context_len = self._size("max_position_embeddings", default=context_len)
        self.n_heads = self._size("num_attention_heads")
        self.n_kv_heads = self.n_heads
        given_head_dim = None
        if has_groups:
            kv = "num_key_value_heads"
            self.n_kv_heads = fields.optional_size(kv, absent=kv_heads) or self.n_heads
            fields.divides(kv, self.n_kv_heads, "num_attention_heads", self.n_heads)
            given_head_dim = fields.optional_size("head_dim", absent=head_dim)
        self.head_dim = given_head_dim or self._derived_head_dim()
        self.norm = Norm(kind=norm, eps=fields.number(*eps), **norm_options)
        self.rotary: Rotary | None = None
        if has_rope:
            self.rotary = rotary(
                fields,
                self.context_len,
                theta=theta,
                fraction=fraction,
                is_interleaved=is_interleaved,
            )
            self.context_len = self.rotary.context_len

    def _size(self, name: str, *, default: int | None = None, at_most: int = MAX_SIZE) -> int:
        names = self._names.get(name, (name,))
        return self.fields.size(*names, default=default, at_most=at_most)

    def _derived_head_dim(self) -> int:
        heads, width = (
            self._names.get(name, (name,))[0] for name in ("num_attention_heads", "hidden_size")
        )
        self.fields.divides(heads, self.n_heads, width, self.d_model)
        return max(1, self.d_model // self.n_heads)

    def attention(self, **options: Any) -> Attention:
        """Softmax attention over the heads read; `options` are further fields of it."""
        if self.rotary is not None and not options.get("is_position_free"):
            options.setdefault("rotary_dim", self._rotary_dim(self.rotary.fraction))
        return self.fields.part(
            Attention,
            n_heads=self.n_heads,
            n_kv_heads=self.n_kv_heads,
            head_dim=self.head_dim,
            **options,
        )

    def _rotary_dim(self, fraction: float) -> int:
        """Rotated channels of a head: they come in pairs."""
        # An odd share is rounded up: the reference's tables hold one angle a pair.
        rotary_dim = 2 * math.ceil(int(self.head_dim * fraction) / 2)
        if not 0 < rotary_dim <= self.head_dim:
            self.fields.inconsistent(
                "head_dim" if fraction == 1 else "partial_rotary_factor",
                f"must rotate an even number of a head's {self.head_dim} channels, "
                f"got {rotary_dim}",
            )
        return rotary_dim

    def gated_ffn(self, *, has_bias: bool = False, width: str = "intermediate_size") -> FeedForward:
        """The gated feed-forward of `width`, activated by `hidden_act`."""
        return self.fields.part(
            FeedForward,
            d_ff=self.fields.size(width),
            activation=activation(self.fields, "hidden_act", "silu"),
            has_bias=has_bias,
        )

    def plain_ffn(self, d_ff: int, kind: Activation, *, has_bias: bool = True) -> FeedForward:
        """A feed-forward of two matrices."""
        return self.fields.part(
            FeedForward, d_ff=d_ff, is_gated=False, activation=kind, has_bias=has_bias
        )

    def mixture(self, experts: str, alias: str, expert: FeedForward, **options: Any) -> MoE:
        """A mixture of as many `expert`s as the key `experts`, or else `alias`, says."""
        n_experts = self.fields.size(experts, alias)
        n_used = self.fields.size("num_experts_per_tok")
        self.fields.at_most("num_experts_per_tok", n_used, experts, n_experts)
        return self.fields.part(
            MoE, n_experts=n_experts, n_experts_per_token=n_used, expert=expert, **options
        )

    def layer(self, mixer: Mixer, ffn: Ffn, **options: Any) -> Layer:
        """One layer with the norms read."""
        return self.fields.part(
            Layer, mixers=(mixer,), ffn=ffn, norm=options.pop("norm", self.norm), **options
        )

    def model(self, layers: Iterable[Layer], *, is_tied: bool, **options: Any) -> ModelSpec:
        """The model of these layers; `is_tied` is the type's own default."""
        if self.rotary is not None:
            options.setdefault("position", self.rotary.position)
        return self.fields.part(
            ModelSpec,
            name="",
            d_model=self.d_model,
            vocab_size=self.vocab_size,
            layers=shared(layers),
            context_len=self.context_len,
            norm=self.norm,
            has_tied_embeddings=self.fields.flag("tie_word_embeddings", is_tied),
            **options,
        )


def shared(layers: Iterable[Layer]) -> tuple[Layer, ...]:
    """The same layers, equal ones as one object."""
    seen: dict[Layer, Layer] = {}
    return tuple(seen.setdefault(layer, layer) for layer in layers)


def activation(fields: Fields, name: str, default: str = "silu") -> Activation:
    """The activation called `name`."""
    return ACTIVATION_NAMES[fields.choice(name, default, *ACTIVATION_NAMES)]


def windows(
    fields: Fields, n_layers: int, window: int | None, default: Iterable[bool]
) -> list[int | None]:
    """Each layer's window by `layer_types`; `default` says which are local where it is absent."""
    types = fields.per_layer("layer_types", n_layers)
    if types is None:
        return [window if is_local else None for is_local in default]
    known = {"full_attention": False, "sliding_attention": True}
    if strange := sorted({str(t) for t in types} - set(known)):
        fields.problem(
            "layer_types", f"understood here: {', '.join(known)}; got {', '.join(strange)}"
        )
    if window is None and "sliding_attention" in types:
        fields.problem("layer_types", "says sliding_attention, and no sliding_window is in use")
    return [window if known.get(str(t)) else None for t in types]


def rotary(
    fields: Fields,
    context_len: int,
    *,
    theta: float = 10_000.0,
    fraction: float = 1.0,
    is_interleaved: bool = False,
) -> Rotary:
    """Rotary positions, from classic `rope_theta` and `rope_scaling` or from `rope_parameters`."""
    return rotary_table(
        fields,
        fields.table("rope_parameters", "rope_scaling"),
        context_len,
        theta=fields.number("rope_theta", theta, "rotary_emb_base"),
        fraction=fields.number("partial_rotary_factor", fraction, "rotary_pct"),
        is_interleaved=is_interleaved,
    )


def rotary_table(
    fields: Fields,
    table: Fields | None,
    context_len: int,
    *,
    theta: float,
    fraction: float = 1.0,
    is_interleaved: bool = False,
) -> Rotary:
    """Rotary positions from one table of settings; without it, unscaled."""
    scaling = None
    if table is not None:
        theta = table.number("rope_theta", theta)
        fraction = table.number("partial_rotary_factor", fraction)
        scaling = _scaling(fields, table, context_len)
        fields.absorb(table)
    return Rotary(
        position=Position(rope_theta=theta, scaling=scaling, is_interleaved=is_interleaved),
        fraction=fraction,
        context_len=stretched(scaling, context_len),
    )


def stretched(scaling: PositionScaling | None, context_len: int) -> int:
    """The context after `scaling`: some files give it, some the one it stretches."""
    # Linear and dynamic scaling name no original length: the file's context is taken as it is.
    if scaling is None or scaling.kind in ("linear", "dynamic", "ntk"):
        return context_len
    if context_len > scaling.original_context_len:
        return context_len
    return int(scaling.factor * scaling.original_context_len)


def _scaling(fields: Fields, table: Fields, context_len: int) -> PositionScaling | None:
    kind = table.choice(
        "rope_type" if table.has("rope_type") else "type", "default", "default", *SCALING_NAMES
    )
    table.ignore("rope_type", "type")
    name = "original_max_position_embeddings"
    original = table.optional_size(name) or fields.optional_size(name)
    if kind == "default":
        # Some files spell out that nothing is scaled.
        table.ignore("factor", "attention_factor")
        return None
    given = table.optional_number("factor")
    if given is None:
        if original is None or kind not in ("longrope", "su", "yarn"):
            table.number("factor")
            return None
        given = context_len / original
    if original is None:
        original = max(1, round(context_len / given)) if kind == "linear" else context_len
        if kind == "llama3":
            table.size(name)
    if kind in ("longrope", "su"):
        # The lengths decide here, and a factor beside them is not read.
        given = max(1.0, context_len / original)
    table.ignore("finetuned", "short_mscale", "long_mscale")
    return fields.part(
        PositionScaling,
        kind=SCALING_NAMES[kind],
        factor=given,
        original_context_len=original,
        attention_factor=table.optional_number("attention_factor"),
        beta_fast=table.number("beta_fast", 32.0),
        beta_slow=table.number("beta_slow", 1.0),
        is_truncated=table.flag("truncate", True),
        mscale=table.optional_number("mscale"),
        mscale_all_dim=table.optional_number("mscale_all_dim"),
        low_freq_factor=table.number("low_freq_factor", 1.0),
        high_freq_factor=table.number("high_freq_factor", 4.0),
        short_factors=table.numbers("short_factor"),
        long_factors=table.numbers("long_factor"),
    )


def usual_sizes(
    vocab: int, d_model: int, d_ff: int, n_layers: int, n_heads: int, context_len: int, **more: int
) -> dict[str, int]:
    """A type's default sizes under their common keys."""
    return {
        "vocab_size": vocab,
        "hidden_size": d_model,
        "intermediate_size": d_ff,
        "num_hidden_layers": n_layers,
        "num_attention_heads": n_heads,
        "max_position_embeddings": context_len,
        **more,
    }
