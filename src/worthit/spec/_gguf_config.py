"""GGUF metadata of transformers back into the Hugging Face configs they were converted from."""

from __future__ import annotations

from collections.abc import Callable

from worthit.spec._gguf_model import Config, GgufModel, decoder, dense_layers, mixture, stream

SIGMOID = 2  # llama.cpp's number of the gating function


def _llama(file: GgufModel) -> Config:
    if file.size("expert_count", 0):
        config = {**decoder(file, "mixtral"), **mixture(file, "num_local_experts")}
        return {**config, "intermediate_size": file.width("ffn_up_exps.weight", -2)}
    return decoder(file, "llama")


def _qwen2(file: GgufModel) -> Config:
    return {**decoder(file, "qwen2"), "use_sliding_window": False}


def _qwen3(file: GgufModel) -> Config:
    return {**decoder(file, "qwen3"), "use_sliding_window": False}


def qwen_moe(file: GgufModel, model_type: str) -> Config:
    dense = dense_layers(file)
    return {
        **decoder(file, model_type),
        **mixture(file),
        "moe_intermediate_size": file.width("ffn_up_exps.weight", -2),
        "mlp_only_layers": dense,
        "use_sliding_window": False,
        # Not in the metadata: what the published models of each type say.
        "norm_topk_prob": model_type != "qwen2_moe",
    }


def _qwen2moe(file: GgufModel) -> Config:
    shared = file.width("ffn_up_shexp.weight", 0)
    return {**qwen_moe(file, "qwen2_moe"), "shared_expert_intermediate_size": shared}


def _qwen3moe(file: GgufModel) -> Config:
    return qwen_moe(file, "qwen3_moe")


def _gemma(file: GgufModel) -> Config:
    return decoder(file, "gemma")


def _gemma_scalar(file: GgufModel, config: Config, largest: int) -> Config:
    """The scale of scores: of the whole stream in each generation's largest model alone."""
    is_largest = config["num_hidden_layers"] == largest
    per_head = config["hidden_size"] / max(1, config["num_attention_heads"])
    return {"query_pre_attn_scalar": per_head if is_largest else config.get("head_dim", 256)}


def _gemma2(file: GgufModel) -> Config:
    config = decoder(file, "gemma2")
    return {
        **config,
        **_gemma_scalar(file, config, 46),
        "sliding_window": file.get("attention.sliding_window", 4096),
        "attn_logit_softcapping": file.get("attn_logit_softcapping", 50.0),
        "final_logit_softcapping": file.get("final_logit_softcapping", 30.0),
    }


def _gemma3(file: GgufModel) -> Config:
    config = decoder(file, "gemma3_text")
    return {
        **config,
        **_gemma_scalar(file, config, 62),
        "sliding_window": file.get("attention.sliding_window", 1024),
        "rope_local_base_freq": file.get("rope.freq_base_swa", 10_000.0),
        "final_logit_softcapping": file.get("final_logit_softcapping"),
    }


def _phi3(file: GgufModel) -> Config:
    window = file.get("attention.sliding_window")
    return {**decoder(file, "phi3"), "sliding_window": window or None}


def _gpt2(file: GgufModel) -> Config:
    table = file.tensors.get("position_embd.weight")
    around = stream(file, "gpt2")
    return {
        "model_type": "gpt2",
        "n_embd": around["hidden_size"],
        "n_layer": around["num_hidden_layers"],
        "n_head": file.size("attention.head_count"),
        "n_positions": table.shape[0] if table else file.size("context_length"),
        "n_inner": file.size("feed_forward_length", 0) or None,
        "vocab_size": around["vocab_size"],
        "layer_norm_epsilon": file.get("attention.layer_norm_epsilon", 1e-5),
        "tie_word_embeddings": around["tie_word_embeddings"],
    }


def _gptneox(file: GgufModel) -> Config:
    config = decoder(file, "gpt_neox", eps="layer_norm_eps")
    del config["num_key_value_heads"]
    config.setdefault("partial_rotary_factor", 1.0)
    return {**config, "use_parallel_residual": bool(file.get("use_parallel_residual", True))}


def _starcoder2(file: GgufModel) -> Config:
    return decoder(file, "starcoder2", eps="norm_epsilon")


def _stablelm(file: GgufModel) -> Config:
    config = decoder(file, "stablelm", eps="layer_norm_eps")
    config.setdefault("partial_rotary_factor", 1.0)
    return {
        **config,
        "use_qkv_bias": file.has("attn_q.bias"),
        "qk_layernorm": file.has("attn_q_norm.weight"),
        "use_parallel_residual": not file.has("ffn_norm.weight"),
    }


def _olmo2(file: GgufModel) -> Config:
    return decoder(file, "olmo2")


def _olmoe(file: GgufModel) -> Config:
    return {
        **decoder(file, "olmoe"),
        **mixture(file),
        "intermediate_size": file.width("ffn_up_exps.weight", -2),
        "clip_qkv": file.get("attention.clamp_kqv"),
    }


def _deepseek2(file: GgufModel) -> Config:
    config = decoder(file, "deepseek_v2")
    for key in ("head_dim", "partial_rotary_factor"):
        config.pop(key, None)
    # The file counts the one latent that all heads read.
    config["num_key_value_heads"] = config["num_attention_heads"]
    is_v3 = file.get("expert_gating_func") == SIGMOID or file.has("exp_probs_b.bias")
    rope = file.size("rope.dimension_count")
    # Before latents were cached as such, the lengths were those of a head.
    is_latent = file.get("attention.key_length_mla") is not None
    suffix = "_mla" if is_latent else ""
    key_length = file.size("attention.key_length" + suffix)
    n_groups = file.size("expert_group_count", 1)
    config |= {
        "model_type": "deepseek_v3" if is_v3 else "deepseek_v2",
        "q_lora_rank": file.get("attention.q_lora_rank"),
        "kv_lora_rank": file.size("attention.kv_lora_rank"),
        "qk_rope_head_dim": rope,
        "qk_nope_head_dim": key_length - rope,
        "v_head_dim": file.size("attention.value_length" + suffix),
        **mixture(file, "n_routed_experts"),
        "n_shared_experts": file.size("expert_shared_count", 0),
        "moe_intermediate_size": file.size("expert_feed_forward_length"),
        "first_k_dense_replace": file.size("leading_dense_block_count", 0),
        "routed_scaling_factor": file.get("expert_weights_scale", 1.0),
        "norm_topk_prob": bool(file.get("expert_weights_norm", is_v3)),
        "n_group": n_groups,
        "topk_group": file.size("expert_group_used_count", 1),
    }
    if not is_v3:
        config["topk_method"] = "group_limited_greedy" if n_groups > 1 else "greedy"
    scaling = config.get("rope_scaling")
    log_multiplier = file.get("rope.scaling.yarn_log_multiplier")
    if scaling is not None and log_multiplier:
        # Written as a tenth of the weight that DeepSeek gives the logarithm.
        scaling["mscale"] = scaling["mscale_all_dim"] = 10 * log_multiplier
    return config


def _granite(file: GgufModel) -> Config:
    return {**decoder(file, "granite"), **granite_scales(file)}


def granite_scales(file: GgufModel) -> Config:
    scales = {
        "attention_multiplier": file.get("attention.scale"),
        "embedding_multiplier": file.get("embedding_scale"),
        "residual_multiplier": file.get("residual_scale"),
        "logits_scaling": file.get("logit_scale"),
    }
    config = {key: value for key, value in scales.items() if value}
    if "attention_multiplier" not in config:
        # What llama.cpp takes where a file says nothing.
        n_heads = max(1, file.size("attention.head_count"))
        head_dim = file.size("attention.key_length", 0) or file.size("embedding_length") // n_heads
        config["attention_multiplier"] = max(1, head_dim) ** -0.5
    return config


def _gpt_oss(file: GgufModel) -> Config:
    config = {
        **decoder(file, "gpt_oss"),
        **mixture(file, "num_local_experts"),
        "intermediate_size": file.width("ffn_up_exps.weight", -2),
        "sliding_window": file.get("attention.sliding_window", 128),
    }
    if "rope_scaling" in config:
        config["rope_scaling"]["truncate"] = False
    return config


def _bloom(file: GgufModel) -> Config:
    around = stream(file, "bloom")
    return {
        "model_type": "bloom",
        "hidden_size": around["hidden_size"],
        "n_layer": around["num_hidden_layers"],
        "n_head": file.size("attention.head_count"),
        "seq_length": file.size("context_length"),
        "vocab_size": around["vocab_size"],
        "layer_norm_epsilon": file.get("attention.layer_norm_epsilon", 1e-5),
        "tie_word_embeddings": around["tie_word_embeddings"],
    }


def _command_r(file: GgufModel) -> Config:
    return {
        **decoder(file, "cohere", eps="layer_norm_eps"),
        "logit_scale": file.get("logit_scale", 0.0625),
        "use_qk_norm": file.has("attn_q_norm.weight"),
    }


def _smollm3(file: GgufModel) -> Config:
    return decoder(file, "smollm3")


TRANSFORMERS: dict[str, Callable[[GgufModel], Config]] = {
    "llama": _llama,
    "qwen2": _qwen2,
    "qwen3": _qwen3,
    "qwen2moe": _qwen2moe,
    "qwen3moe": _qwen3moe,
    "gemma": _gemma,
    "gemma2": _gemma2,
    "gemma3": _gemma3,
    "phi3": _phi3,
    "gpt2": _gpt2,
    "gptneox": _gptneox,
    "starcoder2": _starcoder2,
    "stablelm": _stablelm,
    "olmo2": _olmo2,
    "olmoe": _olmoe,
    "deepseek2": _deepseek2,
    "granite": _granite,
    "gpt-oss": _gpt_oss,
    "bloom": _bloom,
    "command-r": _command_r,
    "smollm3": _smollm3,
}
