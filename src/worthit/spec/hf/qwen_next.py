"""Qwen3-Next: three gated-delta layers to one of gated attention, mixtures of experts."""

from __future__ import annotations

from worthit.spec.hf._fields import Fields
from worthit.spec.hf._parts import Decoder, activation
from worthit.spec.hf._read import Reader
from worthit.spec.model import Ffn, LinearAttention, ModelSpec, MoE


def qwen3_next(fields: Fields) -> ModelSpec:
    """Qwen3-Next; layers for predicting further tokens are not counted, nor built by default."""
    decoder = Decoder(
        fields,
        fraction=0.25,
        head_dim=256,
        kv_heads=2,
        eps=("rms_norm_eps", 1e-6),
        has_unit_offset=True,
    )
    fields.choice("use_sliding_window", False, False)
    fields.ignore("sliding_window", "max_window_layers")
    has_bias = fields.flag("attention_bias", False)
    attention = decoder.attention(
        has_qkv_bias=has_bias, has_out_bias=has_bias, qk_norm="head", has_output_gate=True
    )
    delta = _gated_delta(fields, decoder.norm.eps)
    layers = [
        decoder.layer(delta if is_linear else attention, ffn)
        # Of unequal lengths only where the number of layers was refused already.
        for is_linear, ffn in zip(
            _linear_layers(fields, decoder.n_layers), _ffns(decoder), strict=False
        )
    ]
    return decoder.model(layers, is_tied=False)


def _gated_delta(fields: Fields, eps: float) -> LinearAttention:
    n_value_heads = fields.size("linear_num_value_heads")
    n_key_heads = fields.size("linear_num_key_heads")
    fields.divides("linear_num_key_heads", n_key_heads, "linear_num_value_heads", n_value_heads)
    return fields.part(
        LinearAttention,
        kind="gated-delta",
        n_key_heads=n_key_heads,
        n_value_heads=n_value_heads,
        key_dim=fields.size("linear_key_head_dim"),
        value_dim=fields.size("linear_value_head_dim"),
        d_conv=fields.size("linear_conv_kernel_dim", default=4),
        norm_eps=eps,
        activation=activation(fields, "hidden_act"),
    )


def _linear_layers(fields: Fields, n_layers: int) -> list[bool]:
    """Which layers are gated-delta, by `layer_types` or all but every n-th."""
    interval = fields.size("full_attention_interval", default=4)
    types = fields.per_layer("layer_types", n_layers)
    if types is None:
        return [(i + 1) % interval != 0 for i in range(n_layers)]
    if strange := sorted({str(t) for t in types} - {"linear_attention", "full_attention"}):
        fields.problem(
            "layer_types",
            f"understood here: linear_attention, full_attention; got {', '.join(strange)}",
        )
    return [t == "linear_attention" for t in types]


def _ffns(decoder: Decoder) -> list[Ffn]:
    fields, n_layers = decoder.fields, decoder.n_layers
    step = fields.size("decoder_sparse_step", default=1)
    dense_layers = fields.indices("mlp_only_layers") or []
    n_experts = fields.size("num_experts", at_least=0)
    is_sparse = [
        i not in dense_layers and n_experts > 0 and (i + 1) % step == 0 for i in range(n_layers)
    ]
    # A file gives the sizes of both kinds, also when no layer is of one of them.
    fields.ignore(
        "intermediate_size",
        "moe_intermediate_size",
        "shared_expert_intermediate_size",
        "num_experts_per_tok",
        "norm_topk_prob",
    )
    kinds: dict[bool, Ffn] = {
        sparse: _moe(decoder, n_experts) if sparse else decoder.gated_ffn()
        for sparse in dict.fromkeys(is_sparse)
    }
    return [kinds[sparse] for sparse in is_sparse]


def _moe(decoder: Decoder, n_experts: int) -> MoE:
    fields = decoder.fields
    n_used = fields.size("num_experts_per_tok")
    fields.at_most("num_experts_per_tok", n_used, "num_experts", n_experts)
    return fields.part(
        MoE,
        n_experts=n_experts,
        n_experts_per_token=n_used,
        expert=decoder.gated_ffn(width="moe_intermediate_size"),
        shared=decoder.gated_ffn(width="shared_expert_intermediate_size"),
        n_shared_experts=1,
        has_shared_gate=True,
        has_normalised_weights=fields.flag("norm_topk_prob", True),
    )


READERS: dict[str, Reader] = {"qwen3_next": qwen3_next}
