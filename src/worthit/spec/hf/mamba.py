"""Models of state-space layers alone: Mamba, Mamba-2, Falcon-Mamba; and both layers' readers.

The layers' readers serve the hybrids too, which name the same sizes otherwise.
"""

from __future__ import annotations

import math
from typing import Any

from worthit.spec.hf._fields import Fields
from worthit.spec.hf._parts import MAX_LAYERS, activation, shared
from worthit.spec.hf._read import Reader
from worthit.spec.model import Layer, Mamba, Mamba2, ModelSpec, Norm, Position

# These files state no length and nothing in the computation bounds it: what converters write.
UNSTATED_CONTEXT_LEN = 2**20
# How the step's projection was initialised, how the scan is run, how the residual is stored.
WITHOUT_EFFECT = (
    "time_step_min",
    "time_step_max",
    "time_step_floor",
    "time_step_scale",
    "time_step_init_scheme",
    "rescale_prenorm_residual",
    "residual_in_fp32",
    "use_mambapy",
    "use_falcon_mambapy",
    "use_associative_scan",
    # Left over from the original repository's files.
    "fused_add_norm",
    "pad_vocab_size_multiple",
    "ssm_cfg",
)


def mamba(fields: Fields) -> ModelSpec:
    """Mamba: the state-space layer is the whole block."""
    mixer = fields.part(Mamba, **_mamba_sizes(fields))
    return _model(fields, mixer, is_tied=True)


def falcon_mamba(fields: Fields) -> ModelSpec:
    """Falcon-Mamba: Mamba with weightless norms on the step, B and C."""
    mixer = fields.part(
        Mamba,
        **_mamba_sizes(fields),
        has_inner_norms=True,
        has_inner_norm_weights=False,
        norm_eps=fields.number("mixer_rms_eps", 1e-6),
    )
    return _model(fields, mixer, is_tied=True)


def mamba2(fields: Fields) -> ModelSpec:
    """Mamba-2: one state matrix a head."""
    d_model = fields.size("hidden_size")
    has_bias = fields.flag("use_bias", False)
    dt_min, dt_max = step_limits(fields)
    n_heads, head_dim = fields.size("num_heads"), fields.size("head_dim")
    _require_inner(fields, n_heads, head_dim, int(fields.number("expand", 2) * d_model))
    mixer = fields.part(
        Mamba2,
        n_heads=n_heads,
        head_dim=head_dim,
        d_state=fields.size("state_size"),
        n_groups=groups(fields, "n_groups", n_heads, "num_heads", default=8),
        d_conv=fields.size("conv_kernel", default=4),
        chunk=fields.size("chunk_size", default=256),
        has_bias=has_bias,
        has_out_bias=has_bias,
        has_conv_bias=fields.flag("use_conv_bias", True),
        norm_eps=fields.number("layer_norm_epsilon", 1e-5),
        activation=activation(fields, "hidden_act"),
        dt_min=dt_min,
        dt_max=dt_max,
    )
    # Mamba-1's: Mamba-2 has no low-rank step, and its width follows from `expand`. The gate comes
    # before the norm in the reference code whatever the file says.
    fields.ignore("time_step_rank", "intermediate_size", "norm_before_gate")
    return _model(fields, mixer, is_tied=False)


def _mamba_sizes(fields: Fields) -> dict[str, Any]:
    d_model = fields.size("hidden_size")
    expanded = max(1, int(fields.number("expand", 2) * d_model))
    return {
        # Falcon-Mamba's file gives the width and, beside it, an `expand` that is not its ratio.
        "d_inner": fields.size("intermediate_size", default=expanded),
        "d_state": fields.size("state_size", default=16),
        "d_conv": fields.size("conv_kernel", default=4),
        "dt_rank": step_rank(fields, "time_step_rank", d_model),
        "has_bias": fields.flag("use_bias", False),
        "has_conv_bias": fields.flag("use_conv_bias", True),
        "activation": activation(fields, "hidden_act"),
    }


def _model(fields: Fields, mixer: Mamba | Mamba2, *, is_tied: bool) -> ModelSpec:
    fields.ignore(*WITHOUT_EFFECT)
    d_model = fields.size("hidden_size")
    n_layers = fields.size("num_hidden_layers", at_most=MAX_LAYERS)
    # Copies of the sizes under the original repository's names.
    for name, value in (("d_model", d_model), ("n_layer", n_layers), ("rms_norm", True)):
        fields.choice(name, value, value)
    if isinstance(mixer, Mamba):
        fields.choice("d_inner", mixer.d_inner, mixer.d_inner)
    norm = Norm(eps=fields.number("layer_norm_epsilon", 1e-5))
    layer = fields.part(Layer, mixers=(mixer,), ffn=None, norm=norm)
    return fields.part(
        ModelSpec,
        name="",
        d_model=d_model,
        vocab_size=fields.size("vocab_size"),
        layers=shared([layer] * n_layers),
        context_len=fields.size("max_position_embeddings", default=UNSTATED_CONTEXT_LEN),
        position=Position(kind="nope"),
        norm=norm,
        has_tied_embeddings=fields.flag("tie_word_embeddings", is_tied),
    )


def step_rank(fields: Fields, name: str, d_model: int) -> int:
    """The width of the step's low-rank input; `"auto"` is a sixteenth of the stream."""
    if fields.get(name, "auto") == "auto":
        return math.ceil(d_model / 16)
    return fields.size(name)


def groups(fields: Fields, name: str, n_heads: int, heads_name: str, *, default: int) -> int:
    """How many groups of heads share B and C."""
    n_groups = fields.size(name, default=default)
    fields.divides(name, n_groups, heads_name, n_heads)
    return n_groups


def step_limits(fields: Fields, name: str = "time_step_limit") -> tuple[float, float | None]:
    """The least and the greatest step; None where unbounded."""
    value = fields.get(name, (0.0, math.inf))
    limits = [_number(end) for end in value] if isinstance(value, list | tuple) else []
    if len(limits) != 2 or any(end is None or math.isnan(end) for end in limits):
        fields.problem(name, f"must be two numbers, got {value!r}")
        return 0.0, None
    low, high = (float(end) for end in limits if end is not None)
    return low, None if math.isinf(high) else high


def _number(value: object) -> float | None:
    # JSON has no infinity: Python writes `Infinity`, transformers {"__float__": "Infinity"}.
    if isinstance(value, dict):
        return math.inf if value.get("__float__") == "Infinity" else None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value)


def _require_inner(fields: Fields, n_heads: int, head_dim: int, d_inner: int) -> None:
    if not fields.problems and n_heads * head_dim != d_inner:
        fields.problem(
            "num_heads",
            f"num_heads * head_dim must be expand * hidden_size = {d_inner}, "
            f"got {n_heads} * {head_dim} = {n_heads * head_dim}",
        )


READERS: dict[str, Reader] = {"mamba": mamba, "mamba2": mamba2, "falcon_mamba": falcon_mamba}
