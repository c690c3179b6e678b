"""GGUF metadata of state-space models and hybrids back into their Hugging Face configs."""

from __future__ import annotations

from collections.abc import Callable

from worthit.spec._gguf_config import granite_scales, qwen_moe
from worthit.spec._gguf_model import Config, GgufModel, decoder, dense_layers, mixture, stream


def _qwen3next(file: GgufModel) -> Config:
    n_value_heads = file.size("ssm.time_step_rank")
    return {
        **qwen_moe(file, "qwen3_next"),
        "shared_expert_intermediate_size": file.width("ffn_up_shexp.weight", 0),
        "layer_types": [
            "full_attention" if "attn_k.weight" in file.layers.get(i, {}) else "linear_attention"
            for i in range(file.n_layers)
        ],
        "linear_num_key_heads": file.size("ssm.group_count"),
        "linear_num_value_heads": n_value_heads,
        "linear_key_head_dim": file.size("ssm.state_size"),
        "linear_value_head_dim": file.size("ssm.inner_size") // max(1, n_value_heads),
        "linear_conv_kernel_dim": file.size("ssm.conv_kernel"),
    }


def _mamba(file: GgufModel) -> Config:
    is_falcon = bool(file.get("ssm.dt_b_c_rms", False))
    return {
        **stream(file, "falcon_mamba" if is_falcon else "mamba"),
        "intermediate_size": file.size("ssm.inner_size"),
        "state_size": file.size("ssm.state_size"),
        "conv_kernel": file.size("ssm.conv_kernel"),
        "time_step_rank": file.size("ssm.time_step_rank"),
        "layer_norm_epsilon": file.get("attention.layer_norm_rms_epsilon", 1e-5),
        "use_bias": file.has("ssm_in.bias"),
        "use_conv_bias": file.has("ssm_conv1d.bias"),
        "max_position_embeddings": file.size("context_length"),
    }


def _mamba2(file: GgufModel) -> Config:
    inner, n_heads = file.size("ssm.inner_size"), file.size("ssm.time_step_rank")
    around = stream(file, "mamba2")
    return {
        **around,
        "num_heads": n_heads,
        "head_dim": inner // max(1, n_heads),
        "expand": inner // max(1, around["hidden_size"]),
        "state_size": file.size("ssm.state_size"),
        "n_groups": file.size("ssm.group_count"),
        "conv_kernel": file.size("ssm.conv_kernel"),
        "layer_norm_epsilon": file.get("attention.layer_norm_rms_epsilon", 1e-5),
        "use_bias": file.has("ssm_in.bias"),
        "use_conv_bias": file.has("ssm_conv1d.bias"),
        "max_position_embeddings": file.size("context_length"),
    }


def _jamba(file: GgufModel) -> Config:
    sparse = set(range(file.n_layers)) - set(dense_layers(file))
    attention = {i for i, n in enumerate(file.per_layer("attention.head_count_kv")) if n}
    config = decoder(file, "jamba")
    d_model = config["hidden_size"]
    return {
        **config,
        **mixture(file),
        **_period(file, "attn", attention),
        **_period(file, "expert", sparse),
        "mamba_expand": file.size("ssm.inner_size") // max(1, d_model),
        "mamba_d_state": file.size("ssm.state_size"),
        "mamba_d_conv": file.size("ssm.conv_kernel"),
        "mamba_dt_rank": file.size("ssm.time_step_rank"),
        "mamba_proj_bias": file.has("ssm_in.bias"),
        "mamba_conv_bias": file.has("ssm_conv1d.bias"),
    }


def _period(file: GgufModel, kind: str, layers: set[int]) -> Config:
    """The period and offset that pick out `layers`."""
    n_layers = file.n_layers
    for period in range(1, n_layers + 1):
        offset = min(layers, default=n_layers) % period
        if {i for i in range(n_layers) if i % period == offset} == layers:
            return {f"{kind}_layer_period": period, f"{kind}_layer_offset": offset}
    if not layers:
        # One layer in a period longer than the model.
        return {f"{kind}_layer_period": n_layers + 1, f"{kind}_layer_offset": n_layers}
    file.problems.append(f"{file.architecture}: {kind} layers {sorted(layers)} have no period")
    return {}


def _granitehybrid(file: GgufModel) -> Config:
    # Bamba goes by the same architecture, and is the one with rotary positions.
    if file.get("rope.scaling.finetuned"):
        return _bamba(file)
    config = decoder(file, "granitemoehybrid")
    is_sparse = file.has("ffn_up_exps.weight")
    width = file.width("ffn_up_exps.weight", -2) or file.size("feed_forward_length", 0)
    return {
        **config,
        **granite_scales(file),
        **_mamba2_inside(file),
        "mamba_expand": file.size("ssm.inner_size") // max(1, config["hidden_size"]),
        "layer_types": [
            "attention" if n else "mamba" for n in file.per_layer("attention.head_count_kv")
        ],
        "position_embedding_type": "nope",
        "num_local_experts": file.size("expert_count", 0) if is_sparse else 0,
        "num_experts_per_tok": file.size("expert_used_count", 0),
        "intermediate_size": width or None,
        "shared_intermediate_size": file.width(
            "ffn_up_shexp.weight" if is_sparse else "ffn_up.weight", 0
        ),
    }


def _bamba(file: GgufModel) -> Config:
    config = decoder(file, "bamba")
    attends = file.per_layer("attention.head_count_kv")
    per_head = config["hidden_size"] // max(1, config["num_attention_heads"])
    return {
        **config,
        **_mamba2_inside(file),
        "mamba_expand": file.size("ssm.inner_size") // max(1, config["hidden_size"]),
        "attn_layer_indices": [i for i, n in enumerate(attends) if n],
        "attn_rotary_emb": file.size("rope.dimension_count", per_head // 2),
    }


def _mamba2_inside(file: GgufModel) -> Config:
    return {
        "mamba_n_heads": file.size("ssm.time_step_rank"),
        "mamba_n_groups": file.size("ssm.group_count"),
        "mamba_d_state": file.size("ssm.state_size"),
        "mamba_d_conv": file.size("ssm.conv_kernel"),
        "mamba_proj_bias": file.has("ssm_in.bias"),
        "mamba_conv_bias": file.has("ssm_conv1d.bias"),
    }


def _falcon_h1(file: GgufModel) -> Config:
    # The multipliers are folded into the weights.
    return {
        **decoder(file, "falcon_h1"),
        **_mamba2_inside(file),
        "mamba_d_ssm": file.size("ssm.inner_size"),
        "mamba_rms_norm": file.has("ssm_norm.weight"),
        "mamba_norm_before_gate": False,
        "projectors_bias": file.has("ssm_out.bias"),
    }


def _nemotron_h(file: GgufModel) -> Config:
    letters = []
    for i in range(file.n_layers):
        names = file.layers.get(i, {})
        marks = {"ssm_in.weight": "M", "attn_q.weight": "*", "ffn_gate_inp.weight": "E"}
        letters.append(next((letter for name, letter in marks.items() if name in names), "-"))
    config = decoder(file, "nemotron_h")
    n_heads = file.size("ssm.time_step_rank")
    for key in ("rope_theta", "rope_scaling", "partial_rotary_factor"):
        config.pop(key, None)
    config |= {
        "hybrid_override_pattern": "".join(letters),
        "layer_norm_epsilon": config.pop(
            "rms_norm_eps", file.get("attention.layer_norm_epsilon", 1e-5)
        ),
        "mamba_num_heads": n_heads,
        "mamba_head_dim": file.size("ssm.inner_size") // max(1, n_heads),
        "ssm_state_size": file.size("ssm.state_size"),
        "n_groups": file.size("ssm.group_count"),
        "conv_kernel": file.size("ssm.conv_kernel"),
        "use_bias": file.has("ssm_in.bias"),
        "use_conv_bias": file.has("ssm_conv1d.bias"),
        "mlp_bias": file.has("ffn_up.bias"),
    }
    if "-" in letters:
        config["intermediate_size"] = file.width("ffn_up.weight", 0)
    if "E" in letters:
        config |= {
            **mixture(file, "n_routed_experts"),
            "moe_intermediate_size": file.width("ffn_up_exps.weight", -2),
            "moe_shared_expert_intermediate_size": file.width("ffn_up_shexp.weight", 0),
            "moe_latent_size": file.get("moe_latent_size"),
            "routed_scaling_factor": file.get("expert_weights_scale", 1.0),
            "norm_topk_prob": bool(file.get("expert_weights_norm", True)),
            "n_group": file.size("expert_group_count", 1),
            "topk_group": file.size("expert_group_used_count", 1),
        }
    return config


HYBRIDS: dict[str, Callable[[GgufModel], Config]] = {
    "qwen3next": _qwen3next,
    "mamba": _mamba,
    "mamba2": _mamba2,
    "jamba": _jamba,
    "granitehybrid": _granitehybrid,
    "falcon-h1": _falcon_h1,
    "nemotron_h": _nemotron_h,
    "nemotron_h_moe": _nemotron_h,
}
