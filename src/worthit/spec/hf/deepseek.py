"""DeepSeek V2 and V3 (and R1): latent attention, fine-grained experts, first layers dense.

The multi-token-prediction layers that V3's files add are training aids and are left out, as in
the published total. So is the router's correction bias, a buffer that balancing sets and no
gradient does: 256 numbers in each of V3's 58 sparse layers.
"""

from __future__ import annotations

import math

from worthit.spec.hf._fields import Fields
from worthit.spec.hf._parts import Decoder, activation, usual_sizes
from worthit.spec.hf._read import Reader
from worthit.spec.model import FeedForward, LatentAttention, ModelSpec, MoE, PositionScaling


def deepseek_v2(fields: Fields) -> ModelSpec:
    """DeepSeek V2: softmax scores, groups ranked by their best expert."""
    decoder = _decoder(fields, is_interleaved=True)
    fields.choice("scoring_func", "softmax", "softmax")
    method = fields.choice("topk_method", "greedy", "greedy", "group_limited_greedy")
    groups = _groups(fields) if method == "group_limited_greedy" else {}
    fields.ignore("n_group", "topk_group")
    # The authors' code then normalises and does not scale, transformers does neither: no published
    # file asks for it.
    fields.choice("norm_topk_prob", False, False)
    has_bias = fields.flag("mlp_bias", False)
    moe = _moe(
        decoder,
        has_shared_bias=has_bias,
        score="softmax",
        has_normalised_weights=False,
        weight_scale=fields.number("routed_scaling_factor", 1.0),
        **groups,
    )
    n_dense = fields.size("first_k_dense_replace", default=0, at_least=0)
    return _model(decoder, moe, n_dense, has_bias=has_bias)


def deepseek_v3(fields: Fields) -> ModelSpec:
    """DeepSeek V3: sigmoid scores balanced by a bias, groups ranked by their two best experts."""
    decoder = _decoder(fields, is_interleaved=fields.flag("rope_interleave", True))
    fields.choice("scoring_func", "sigmoid", "sigmoid")
    fields.choice("topk_method", "noaux_tc", "noaux_tc")
    fields.ignore("num_nextn_predict_layers", "num_mtp_layers")
    moe = _moe(
        decoder,
        has_shared_bias=False,
        score="sigmoid",
        balance="bias",
        n_group_scores=2,
        has_normalised_weights=fields.flag("norm_topk_prob", True),
        weight_scale=fields.number("routed_scaling_factor", 2.5),
        **_groups(fields),
    )
    n_dense = fields.size("first_k_dense_replace", default=3, at_least=0)
    return _model(decoder, moe, n_dense, has_bias=False)


def _decoder(fields: Fields, *, is_interleaved: bool) -> Decoder:
    # Head sizes are latent attention's own; copies of them come from some writers.
    fields.ignore("head_dim", "qk_head_dim", "num_key_value_heads", "seq_aux")
    decoder = Decoder(fields, is_interleaved=is_interleaved, has_groups=False)
    fields.choice("moe_layer_freq", 1, 1)
    return decoder


def _groups(fields: Fields) -> dict[str, int]:
    n_groups, n_used = fields.size("n_group", default=1), fields.size("topk_group", default=1)
    fields.at_most("topk_group", n_used, "n_group", n_groups)
    n_experts = fields.size("n_routed_experts", "num_local_experts")
    fields.divides("n_group", n_groups, "n_routed_experts", n_experts)
    return {"n_groups": n_groups, "n_groups_per_token": n_used}


def _moe(decoder: Decoder, *, has_shared_bias: bool, **options: object) -> MoE:
    fields = decoder.fields
    expert = decoder.gated_ffn(width="moe_intermediate_size")
    n_shared = fields.size("n_shared_experts", at_least=0)
    shared = None
    if n_shared:
        # Shared experts are one feed-forward of their joint width.
        shared = fields.part(
            FeedForward,
            d_ff=n_shared * fields.size("moe_intermediate_size"),
            activation=activation(fields, "hidden_act", "silu"),
            has_bias=has_shared_bias,
        )
    return decoder.mixture(
        "n_routed_experts",
        "num_local_experts",
        expert,
        shared=shared,
        n_shared_experts=n_shared,
        **options,
    )


def _model(decoder: Decoder, moe: MoE, n_dense: int, *, has_bias: bool) -> ModelSpec:
    fields = decoder.fields
    nope, rope = fields.size("qk_nope_head_dim"), fields.size("qk_rope_head_dim")
    assert decoder.rotary is not None
    attention = fields.part(
        LatentAttention,
        n_heads=decoder.n_heads,
        kv_lora_rank=fields.size("kv_lora_rank"),
        q_lora_rank=fields.optional_size("q_lora_rank", absent=1536),
        qk_nope_head_dim=nope,
        qk_rope_head_dim=rope,
        v_head_dim=fields.size("v_head_dim"),
        has_bias=fields.flag("attention_bias", False),
        scale=_scale(nope + rope, decoder.rotary.position.scaling),
    )
    ffn = decoder.gated_ffn(has_bias=has_bias)
    layers = [
        decoder.layer(attention, ffn if i < n_dense else moe) for i in range(decoder.n_layers)
    ]
    return decoder.model(layers, is_tied=False)


def _scale(head_dim: int, scaling: PositionScaling | None) -> float | None:
    """The scores' scale where YaRN's temperature is moved into it."""
    if scaling is None or not scaling.mscale_all_dim:
        return None
    temperature = 1.0
    if scaling.factor > 1:
        temperature += 0.1 * scaling.mscale_all_dim * math.log(scaling.factor)
    return temperature**2 / math.sqrt(head_dim)


READERS: dict[str, Reader] = {"deepseek_v2": deepseek_v2, "deepseek_v3": deepseek_v3}
TEXT_DEFAULTS: dict[str, dict[str, int]] = {
    "deepseek_v2": usual_sizes(
        102_400,
        4096,
        11_008,
        32,
        32,
        2048,
        n_routed_experts=64,
        n_shared_experts=2,
        moe_intermediate_size=1407,
        kv_lora_rank=512,
        qk_nope_head_dim=128,
        qk_rope_head_dim=64,
        v_head_dim=128,
    ),
    "deepseek_v3": usual_sizes(
        129_280,
        7168,
        18_432,
        61,
        128,
        4096,
        num_experts_per_tok=8,
        n_routed_experts=256,
        n_shared_experts=1,
        moe_intermediate_size=2048,
        kv_lora_rank=512,
        qk_nope_head_dim=128,
        qk_rope_head_dim=64,
        v_head_dim=128,
        n_group=8,
        topk_group=4,
    ),
}
