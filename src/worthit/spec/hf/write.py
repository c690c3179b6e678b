"""From a `ModelSpec` to a Hugging Face config, where one of the common types can say it.

Nothing is trusted: a config counts only if reading it gives the very model back.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from worthit.errors import InputError
from worthit.spec.hf._read import from_config
from worthit.spec.model import (
    Attention,
    FeedForward,
    LatentAttention,
    Layer,
    ModelSpec,
    MoE,
    PositionScaling,
)

Config = dict[str, Any]
ACTIVATIONS = {"gelu-tanh": "gelu_pytorch_tanh"}
DTYPES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}


def to_config(model: ModelSpec) -> Config | None:
    """A config that reads as `model`, of its own type where that is known; None where none does."""
    types = sorted(WRITERS, key=lambda name: name != model.model_type)
    for model_type in types:
        config = WRITERS[model_type](model)
        if config is None:
            continue
        config = {"model_type": model_type} | config
        try:
            read = from_config(config)
        except InputError:
            continue
        about_files = {"name", "model_type", "precision", "source"}
        if replace(read, **{key: getattr(model, key) for key in about_files}) == model:
            return config | {"dtype": DTYPES.get(model.precision.weights, "bfloat16")}
    return None


def _sizes(model: ModelSpec) -> Config | None:
    """What the types after Llama name alike; None where there is no attention of one size."""
    attention = next((m for m in model.mixers if isinstance(m, Attention)), None)
    if attention is None:
        return None
    return {
        "vocab_size": model.vocab_size,
        "hidden_size": model.d_model,
        "num_hidden_layers": model.n_layers,
        "num_attention_heads": attention.n_heads,
        "num_key_value_heads": attention.n_kv_heads,
        "head_dim": attention.head_dim,
        "max_position_embeddings": model.context_len,
        "rms_norm_eps": model.norm.eps,
        "tie_word_embeddings": model.has_tied_embeddings,
        **_dense(model),
        **_rope(model),
    }


def _dense(model: ModelSpec) -> Config:
    ffn = next((f for f in model.ffns if isinstance(f, FeedForward)), None)
    if ffn is None:
        return {}
    activation = ACTIVATIONS.get(ffn.activation, ffn.activation)
    return {"intermediate_size": ffn.d_ff, "hidden_act": activation}


def _rope(model: ModelSpec) -> Config:
    position = model.position
    scaling = position.scaling
    return {"rope_theta": position.rope_theta} | (
        {} if scaling is None else {"rope_scaling": _scaling(scaling)}
    )


def _scaling(scaling: PositionScaling) -> Config:
    config: Config = {"rope_type": scaling.kind, "factor": scaling.factor}
    if scaling.kind not in ("linear", "dynamic"):
        config["original_max_position_embeddings"] = scaling.original_context_len
    if scaling.attention_factor is not None:
        config["attention_factor"] = scaling.attention_factor
    if scaling.kind == "yarn":
        config |= {
            "beta_fast": scaling.beta_fast,
            "beta_slow": scaling.beta_slow,
            "truncate": scaling.is_truncated,
        }
        weights = {"mscale": scaling.mscale, "mscale_all_dim": scaling.mscale_all_dim}
        config |= {key: value for key, value in weights.items() if value is not None}
    if scaling.kind == "llama3":
        config |= {
            "low_freq_factor": scaling.low_freq_factor,
            "high_freq_factor": scaling.high_freq_factor,
        }
    if scaling.kind == "longrope":
        config |= {
            "short_factor": list(scaling.short_factors),
            "long_factor": list(scaling.long_factors),
        }
    return config


def _first_attention(model: ModelSpec) -> Attention:
    return next(m for m in model.mixers if isinstance(m, Attention))


def llama(model: ModelSpec) -> Config | None:
    """Biases by two switches."""
    sizes = _sizes(model)
    if sizes is None:
        return None
    ffn = model.ffns[0] if model.ffns else None
    return sizes | {
        "attention_bias": _first_attention(model).has_out_bias,
        "mlp_bias": isinstance(ffn, FeedForward) and ffn.has_bias,
    }


def mistral(model: ModelSpec) -> Config | None:
    """Every layer with one window."""
    sizes = _sizes(model)
    return None if sizes is None else sizes | {"sliding_window": _first_attention(model).window}


def qwen(model: ModelSpec) -> Config | None:
    """Windows layer by layer."""
    sizes = _sizes(model)
    if sizes is None:
        return None
    local = [isinstance(m, Attention) and m.window for m in _mixer_of_each(model)]
    if any(local):
        sizes |= {
            "use_sliding_window": True,
            "sliding_window": max(w for w in local if w),
            "layer_types": [f"{'sliding' if w else 'full'}_attention" for w in local],
        }
    return sizes


def qwen3(model: ModelSpec) -> Config | None:
    """As Qwen 2, with a switch for biases."""
    config = qwen(model)
    if config is None:
        return None
    return config | {"attention_bias": _first_attention(model).has_qkv_bias}


def olmo2(model: ModelSpec) -> Config | None:
    """Heads of d_model / n_heads alone."""
    sizes = _sizes(model)
    if sizes is None:
        return None
    del sizes["head_dim"]
    return sizes | {"attention_bias": _first_attention(model).has_out_bias}


def mixtral(model: ModelSpec) -> Config | None:
    """Every layer a mixture."""
    config, moe = mistral(model), _mixture(model)
    if config is None or moe is None:
        return None
    return config | {
        "num_local_experts": moe.n_experts,
        "num_experts_per_tok": moe.n_experts_per_token,
        "intermediate_size": moe.expert.d_ff,
    }


def qwen3_moe(model: ModelSpec) -> Config | None:
    """Mixtures in all layers but those listed."""
    config, moe = qwen3(model), _mixture(model)
    if config is None or moe is None:
        return None
    config.pop("layer_types", None)
    return config | {
        "num_experts": moe.n_experts,
        "num_experts_per_tok": moe.n_experts_per_token,
        "moe_intermediate_size": moe.expert.d_ff,
        "norm_topk_prob": moe.has_normalised_weights,
        "mlp_only_layers": [
            i for i, layer in enumerate(model.layers) if not isinstance(layer.ffn, MoE)
        ],
    }


def deepseek_v3(model: ModelSpec) -> Config | None:
    """Latent attention; the first layers dense."""
    latent = next((m for m in model.mixers if isinstance(m, LatentAttention)), None)
    moe = _mixture(model)
    if latent is None or moe is None:
        return None
    return {
        "vocab_size": model.vocab_size,
        "hidden_size": model.d_model,
        "num_hidden_layers": model.n_layers,
        "num_attention_heads": latent.n_heads,
        "num_key_value_heads": latent.n_heads,
        "max_position_embeddings": model.context_len,
        "rms_norm_eps": model.norm.eps,
        "tie_word_embeddings": model.has_tied_embeddings,
        "kv_lora_rank": latent.kv_lora_rank,
        "q_lora_rank": latent.q_lora_rank,
        "qk_nope_head_dim": latent.qk_nope_head_dim,
        "qk_rope_head_dim": latent.qk_rope_head_dim,
        "v_head_dim": latent.v_head_dim,
        "attention_bias": latent.has_bias,
        "rope_interleave": model.position.is_interleaved,
        "n_routed_experts": moe.n_experts,
        "n_shared_experts": moe.n_shared_experts,
        "num_experts_per_tok": moe.n_experts_per_token,
        "moe_intermediate_size": moe.expert.d_ff,
        "n_group": moe.n_groups,
        "topk_group": moe.n_groups_per_token,
        "norm_topk_prob": moe.has_normalised_weights,
        "routed_scaling_factor": moe.weight_scale,
        "first_k_dense_replace": sum(not isinstance(x.ffn, MoE) for x in model.layers),
        **_dense(model),
        **_rope(model),
    }


def gpt2(model: ModelSpec) -> Config | None:
    """Learned positions, biases everywhere."""
    sizes = _sizes(model)
    if sizes is None:
        return None
    return {
        "vocab_size": model.vocab_size,
        "n_embd": model.d_model,
        "n_layer": model.n_layers,
        "n_head": sizes["num_attention_heads"],
        "n_positions": model.context_len,
        "n_inner": sizes.get("intermediate_size"),
        "activation_function": {"gelu-tanh": "gelu_new"}.get(
            getattr(model.ffns[0], "activation", "") if model.ffns else "", sizes.get("hidden_act")
        ),
        "layer_norm_epsilon": model.norm.eps,
        "tie_word_embeddings": model.has_tied_embeddings,
    }


def _mixer_of_each(model: ModelSpec) -> list[object]:
    def only(layer: Layer) -> object:
        return layer.mixers[0] if layer.mixers else None

    return [only(layer) for layer in model.layers]


def _mixture(model: ModelSpec) -> MoE | None:
    return next((f for f in model.ffns if isinstance(f, MoE)), None)


# In order of preference: what more tools read comes first.
WRITERS: dict[str, Callable[[ModelSpec], Config | None]] = {
    "llama": llama,
    "mistral": mistral,
    "qwen2": qwen,
    "qwen3": qwen3,
    "olmo2": olmo2,
    "mixtral": mixtral,
    "qwen3_moe": qwen3_moe,
    "deepseek_v3": deepseek_v3,
    "gpt2": gpt2,
}
