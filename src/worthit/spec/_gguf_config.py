"""GGUF metadata back into the Hugging Face config they were converted from, per architecture.

Keys are named without their architecture: `block_count` is `llama.block_count`. A key that no
reader asked for is reported as a warning, since it may change the computation.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from worthit.errors import SpecError
from worthit.spec._gguf_header import Header, TensorInfo

Config = dict[str, Any]

# Rotary scaling whose factors are tensors: they need the weights, and change no size.
_UNREADABLE_SCALING = ("longrope", "none")
# Keys without effect on shapes, cache or arithmetic, or said again by the tensors.
_HARMLESS = re.compile(
    r"^(vocab_size|tensor_data_layout|pooling_type|attention\.causal|rope\.dimension_sections"
    r"|attention\.max_alibi_bias|attention\.(key|value)_length.*|rope\.(scaling\.|dimension_).*"
    r"|n_deepstack_layers|use_parallel_residual|attention\.sliding_window_pattern"
    r"|feed_forward_length|(expert_|expert_shared_)feed_forward_length|expert_shared_count"
    r"|leading_dense_block_count|moe_every_n_layers|interleave_moe_layer_step|expert_gating_func"
    r"|attention\.layer_norm_(rms_)?epsilon|rope\.freq_base|context_length)$"
)
REFUSED = dict.fromkeys(
    ("rwkv6", "rwkv7", "rwkv6qwen2", "arwkv7"),
    "its layers are of a later RWKV than the version 4 that is understood",
)
SIGMOID = 2  # llama.cpp's number of the gating function


class GgufModel:
    """Metadata of one architecture and the tensors by name, with what is missing collected."""

    def __init__(self, header: Header, *, where: str) -> None:
        self.where = where
        self.metadata = header.metadata
        self.tensors: dict[str, TensorInfo] = {t.name: t for t in header.tensors}
        name = header.metadata.get("general.architecture")
        if not isinstance(name, str):
            raise SpecError(f"{where}: general.architecture: expected a name, got {name!r:.40}")
        self.architecture: str = name
        self.problems: list[str] = []
        self._read: set[str] = set()
        # Names of a layer's tensors, by layer; `attn_q.weight` of any layer is the common question.
        self.layers: dict[int, dict[str, TensorInfo]] = {}
        for tensor in header.tensors:
            if match := re.match(r"blk\.(\d+)\.(.+)", tensor.name):
                self.layers.setdefault(int(match[1]), {})[match[2]] = tensor

    def get(self, key: str, default: Any = None) -> Any:
        """The metadata value of `key`."""
        self._read.add(key)
        return self.metadata.get(f"{self.architecture}.{key}", default)

    def size(self, key: str, default: int | None = None) -> int:
        """A whole number; the largest where there is one for each layer."""
        value = self.get(key, default)
        if isinstance(value, list) and value:
            value = max(value, key=lambda n: n if isinstance(n, int | float) else -1)
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            found = "missing" if value is None else f"must be a whole number, got {value!r:.40}"
            self.problems.append(f"{self.architecture}.{key}: {found}")
            return 1
        return value

    def per_layer(self, key: str) -> list[Any]:
        """One value a layer, the same in all where there is one."""
        n_layers = self.n_layers
        value = self.get(key)
        if not isinstance(value, list):
            return [value] * n_layers
        if len(value) < n_layers:
            self.problems.append(
                f"{self.architecture}.{key}: must have {n_layers} entries, got {len(value)}"
            )
            return [0] * n_layers
        return value[:n_layers]

    @property
    def n_layers(self) -> int:
        """Layers, without those that predict further tokens."""
        n_layers = self.size("block_count") - self.size("nextn_predict_layers", 0)
        if not 0 < n_layers <= len(self.layers):
            self.problems.append(
                f"{self.architecture}.block_count: must be the {len(self.layers)} layers that "
                f"have tensors, got {n_layers}"
            )
            return 1
        return n_layers

    def has(self, name: str) -> bool:
        """Whether any layer has a tensor of that name."""
        return any(name in layer for layer in self.layers.values())

    def width(self, name: str, axis: int) -> int:
        """A size of the first layer's tensor of that name: 0 where none has it.

        `axis` 0 is what a matrix gives out, -1 what it takes in.
        """
        for layer in self.layers.values():
            if name in layer and layer[name].shape:
                return layer[name].shape[axis]
        return 0

    def finish(self) -> None:
        """Raise if anything needed was missing."""
        if self.problems:
            raise SpecError(*dict.fromkeys(self.problems), context=self.where)

    def warnings(self) -> tuple[str, ...]:
        """One for the metadata that no reader asked for."""
        prefix = self.architecture + "."
        keys = [key.removeprefix(prefix) for key in self.metadata if key.startswith(prefix)]
        # Switched off or empty, a feature changes nothing.
        unread = [
            key
            for key in keys
            if key not in self._read and self.metadata[prefix + key] and not _HARMLESS.match(key)
        ]
        if not unread:
            return ()
        return (f"metadata of {self.architecture} without a meaning here: {', '.join(unread)}",)


def _stream(file: GgufModel, model_type: str) -> Config:
    """What every model has: the stream, the table, the head, how many layers."""
    table = file.tensors.get("token_embd.weight")
    if table is None or len(table.shape) != 2:
        file.problems.append("tensor token_embd.weight: missing; its rows are the vocabulary")
    return {
        "model_type": model_type,
        "hidden_size": file.size("embedding_length"),
        "num_hidden_layers": file.n_layers,
        "vocab_size": table.shape[0] if table is not None and table.shape else 1,
        "tie_word_embeddings": "output.weight" not in file.tensors,
    }


def _decoder(file: GgufModel, model_type: str, *, eps: str = "rms_norm_eps") -> Config:
    """A decoder with attention: heads, rotary positions, norms and the feed-forward's width."""
    d_model, n_heads = file.size("embedding_length"), file.size("attention.head_count")
    norm = "layer_norm_rms_epsilon" if eps == "rms_norm_eps" else "layer_norm_epsilon"
    config = {
        **_stream(file, model_type),
        "max_position_embeddings": file.size("context_length"),
        "num_attention_heads": n_heads,
        "num_key_value_heads": file.size("attention.head_count_kv", n_heads),
        "intermediate_size": file.size("feed_forward_length", 0) or None,
        "head_dim": file.get("attention.key_length"),
        "rope_theta": file.get("rope.freq_base"),
        eps: file.get("attention." + norm),
    }
    rotated = file.get("rope.dimension_count")
    head_dim = file.size("attention.key_length", 0) or d_model // max(1, n_heads)
    if isinstance(rotated, int) and 0 < rotated < head_dim:
        config["partial_rotary_factor"] = rotated / head_dim
    config["rope_scaling"] = _rope_scaling(file)
    return {key: value for key, value in config.items() if value is not None}


def _rope_scaling(file: GgufModel) -> Config | None:
    kind = file.get("rope.scaling.type")
    factor = file.get("rope.scaling.factor")
    if kind is None or kind in _UNREADABLE_SCALING or factor is None:
        return None
    scaling = {
        "rope_type": kind,
        "factor": factor,
        "original_max_position_embeddings": file.get("rope.scaling.original_context_length"),
        "beta_fast": file.get("rope.scaling.yarn_beta_fast"),
        "beta_slow": file.get("rope.scaling.yarn_beta_slow"),
        "attention_factor": file.get("rope.scaling.yarn_attn_factor"),
    }
    return {key: value for key, value in scaling.items() if value is not None}


def _mixture(file: GgufModel, experts: str = "num_experts") -> Config:
    """How many experts there are and how many are used, by metadata."""
    return {
        experts: file.size("expert_count"),
        "num_experts_per_tok": file.size("expert_used_count"),
    }


def _llama(file: GgufModel) -> Config:
    if file.size("expert_count", 0):
        config = {**_decoder(file, "mixtral"), **_mixture(file, "num_local_experts")}
        return {**config, "intermediate_size": file.width("ffn_up_exps.weight", -2)}
    return _decoder(file, "llama")


def _qwen2(file: GgufModel) -> Config:
    return {**_decoder(file, "qwen2"), "use_sliding_window": False}


def _qwen3(file: GgufModel) -> Config:
    return {**_decoder(file, "qwen3"), "use_sliding_window": False}


def _dense_layers(file: GgufModel) -> list[int]:
    return [i for i in range(file.n_layers) if "ffn_gate_inp.weight" not in file.layers.get(i, {})]


def _qwen_moe(file: GgufModel, model_type: str) -> Config:
    dense = _dense_layers(file)
    return {
        **_decoder(file, model_type),
        **_mixture(file),
        "moe_intermediate_size": file.width("ffn_up_exps.weight", -2),
        "mlp_only_layers": dense,
        "use_sliding_window": False,
        # Not in the metadata: what the published models of each type say.
        "norm_topk_prob": model_type != "qwen2_moe",
    }


def _qwen2moe(file: GgufModel) -> Config:
    shared = file.width("ffn_up_shexp.weight", 0)
    return {**_qwen_moe(file, "qwen2_moe"), "shared_expert_intermediate_size": shared}


def _qwen3moe(file: GgufModel) -> Config:
    return _qwen_moe(file, "qwen3_moe")


def _qwen3next(file: GgufModel) -> Config:
    n_value_heads = file.size("ssm.time_step_rank")
    return {
        **_qwen_moe(file, "qwen3_next"),
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


def _gemma(file: GgufModel) -> Config:
    return _decoder(file, "gemma")


def _gemma_scalar(file: GgufModel, config: Config, largest: int) -> Config:
    """The scale of scores: of the whole stream in each generation's largest model alone."""
    is_largest = config["num_hidden_layers"] == largest
    per_head = config["hidden_size"] / max(1, config["num_attention_heads"])
    return {"query_pre_attn_scalar": per_head if is_largest else config.get("head_dim", 256)}


def _gemma2(file: GgufModel) -> Config:
    config = _decoder(file, "gemma2")
    return {
        **config,
        **_gemma_scalar(file, config, 46),
        "sliding_window": file.get("attention.sliding_window", 4096),
        "attn_logit_softcapping": file.get("attn_logit_softcapping", 50.0),
        "final_logit_softcapping": file.get("final_logit_softcapping", 30.0),
    }


def _gemma3(file: GgufModel) -> Config:
    config = _decoder(file, "gemma3_text")
    return {
        **config,
        **_gemma_scalar(file, config, 62),
        "sliding_window": file.get("attention.sliding_window", 1024),
        "rope_local_base_freq": file.get("rope.freq_base_swa", 10_000.0),
        "final_logit_softcapping": file.get("final_logit_softcapping"),
    }


def _phi3(file: GgufModel) -> Config:
    window = file.get("attention.sliding_window")
    return {**_decoder(file, "phi3"), "sliding_window": window or None}


def _gpt2(file: GgufModel) -> Config:
    table = file.tensors.get("position_embd.weight")
    stream = _stream(file, "gpt2")
    return {
        "model_type": "gpt2",
        "n_embd": stream["hidden_size"],
        "n_layer": stream["num_hidden_layers"],
        "n_head": file.size("attention.head_count"),
        "n_positions": table.shape[0] if table else file.size("context_length"),
        "n_inner": file.size("feed_forward_length", 0) or None,
        "vocab_size": stream["vocab_size"],
        "layer_norm_epsilon": file.get("attention.layer_norm_epsilon", 1e-5),
        "tie_word_embeddings": stream["tie_word_embeddings"],
    }


def _gptneox(file: GgufModel) -> Config:
    config = _decoder(file, "gpt_neox", eps="layer_norm_eps")
    del config["num_key_value_heads"]
    config.setdefault("partial_rotary_factor", 1.0)
    return {**config, "use_parallel_residual": bool(file.get("use_parallel_residual", True))}


def _starcoder2(file: GgufModel) -> Config:
    return _decoder(file, "starcoder2", eps="norm_epsilon")


def _stablelm(file: GgufModel) -> Config:
    config = _decoder(file, "stablelm", eps="layer_norm_eps")
    config.setdefault("partial_rotary_factor", 1.0)
    return {
        **config,
        "use_qkv_bias": file.has("attn_q.bias"),
        "qk_layernorm": file.has("attn_q_norm.weight"),
        "use_parallel_residual": not file.has("ffn_norm.weight"),
    }


def _olmo2(file: GgufModel) -> Config:
    return _decoder(file, "olmo2")


def _olmoe(file: GgufModel) -> Config:
    return {
        **_decoder(file, "olmoe"),
        **_mixture(file),
        "intermediate_size": file.width("ffn_up_exps.weight", -2),
        "clip_qkv": file.get("attention.clamp_kqv"),
    }


def _deepseek2(file: GgufModel) -> Config:
    config = _decoder(file, "deepseek_v2")
    for key in ("head_dim", "num_key_value_heads", "partial_rotary_factor"):
        config.pop(key, None)
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
        **_mixture(file, "n_routed_experts"),
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


def _mamba(file: GgufModel) -> Config:
    is_falcon = bool(file.get("ssm.dt_b_c_rms", False))
    return {
        **_stream(file, "falcon_mamba" if is_falcon else "mamba"),
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
    stream = _stream(file, "mamba2")
    return {
        **stream,
        "num_heads": n_heads,
        "head_dim": inner // max(1, n_heads),
        "expand": inner / max(1, stream["hidden_size"]),
        "state_size": file.size("ssm.state_size"),
        "n_groups": file.size("ssm.group_count"),
        "conv_kernel": file.size("ssm.conv_kernel"),
        "layer_norm_epsilon": file.get("attention.layer_norm_rms_epsilon", 1e-5),
        "use_bias": file.has("ssm_in.bias"),
        "use_conv_bias": file.has("ssm_conv1d.bias"),
        "max_position_embeddings": file.size("context_length"),
    }


def _jamba(file: GgufModel) -> Config:
    sparse = set(range(file.n_layers)) - set(_dense_layers(file))
    attention = {i for i, n in enumerate(file.per_layer("attention.head_count_kv")) if n}
    config = _decoder(file, "jamba")
    d_model = config["hidden_size"]
    return {
        **config,
        **_mixture(file),
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


def _granite(file: GgufModel) -> Config:
    return {**_decoder(file, "granite"), **_granite_scales(file)}


def _granite_scales(file: GgufModel) -> Config:
    scales = {
        "attention_multiplier": file.get("attention.scale"),
        "embedding_multiplier": file.get("embedding_scale"),
        "residual_multiplier": file.get("residual_scale"),
        "logits_scaling": file.get("logit_scale"),
    }
    config = {key: value for key, value in scales.items() if value}
    if "attention_multiplier" not in config:
        # Bamba goes by the same architecture, without multipliers.
        n_heads = max(1, file.size("attention.head_count"))
        head_dim = file.size("attention.key_length", 0) or file.size("embedding_length") // n_heads
        config["attention_multiplier"] = max(1, head_dim) ** -0.5
    return config


def _granitehybrid(file: GgufModel) -> Config:
    config = _decoder(file, "granitemoehybrid")
    inner = file.size("ssm.inner_size")
    n_experts = file.size("expert_count", 0)
    is_sparse = file.has("ffn_up_exps.weight")
    config |= {
        **_granite_scales(file),
        **_mamba2_inside(file),
        "mamba_expand": inner // max(1, config["hidden_size"]),
        "layer_types": [
            "attention" if n else "mamba" for n in file.per_layer("attention.head_count_kv")
        ],
        "position_embedding_type": "rope" if file.get("rope.scaling.finetuned") else "nope",
        "num_local_experts": n_experts if is_sparse else 0,
        "num_experts_per_tok": file.size("expert_used_count", 0),
        "intermediate_size": file.width("ffn_up_exps.weight", -2) or None,
        "shared_intermediate_size": file.width(
            "ffn_up_shexp.weight" if is_sparse else "ffn_up.weight", 0
        ),
    }
    return config


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
        **_decoder(file, "falcon_h1"),
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
    config = _decoder(file, "nemotron_h")
    n_heads = file.size("ssm.time_step_rank")
    for key in ("rope_theta", "rope_scaling", "partial_rotary_factor"):
        config.pop(key, None)
    config |= {
        "hybrid_override_pattern": "".join(letters),
        "layer_norm_epsilon": config.pop("rms_norm_eps", 1e-5),
        "mamba_num_heads": n_heads,
        "mamba_head_dim": file.size("ssm.inner_size") // max(1, n_heads),
        "ssm_state_size": file.size("ssm.state_size"),
        "n_groups": file.size("ssm.group_count"),
        "conv_kernel": file.size("ssm.conv_kernel"),
        "use_bias": file.has("ssm_in.bias"),
        "use_conv_bias": file.has("ssm_conv1d.bias"),
        "mlp_bias": file.has("ffn_up.bias"),
        "intermediate_size": file.width("ffn_up.weight", 0) or None,
    }
    if "E" in letters:
        config |= {
            **_mixture(file, "n_routed_experts"),
            "moe_intermediate_size": file.width("ffn_up_exps.weight", -2),
            "moe_shared_expert_intermediate_size": file.width("ffn_up_shexp.weight", 0),
            "moe_latent_size": file.get("moe_latent_size"),
            "routed_scaling_factor": file.get("expert_weights_scale", 1.0),
            "norm_topk_prob": bool(file.get("expert_weights_norm", True)),
            "n_group": file.size("expert_group_count", 1),
            "topk_group": file.size("expert_group_used_count", 1),
        }
    return config


def _gpt_oss(file: GgufModel) -> Config:
    config = {
        **_decoder(file, "gpt_oss"),
        **_mixture(file, "num_local_experts"),
        "intermediate_size": file.width("ffn_up_exps.weight", -2),
        "sliding_window": file.get("attention.sliding_window", 128),
    }
    if "rope_scaling" in config:
        config["rope_scaling"]["truncate"] = False
    return config


def _bloom(file: GgufModel) -> Config:
    stream = _stream(file, "bloom")
    return {
        "model_type": "bloom",
        "hidden_size": stream["hidden_size"],
        "n_layer": stream["num_hidden_layers"],
        "n_head": file.size("attention.head_count"),
        "seq_length": file.size("context_length"),
        "vocab_size": stream["vocab_size"],
        "layer_norm_epsilon": file.get("attention.layer_norm_epsilon", 1e-5),
        "tie_word_embeddings": stream["tie_word_embeddings"],
    }


def _command_r(file: GgufModel) -> Config:
    return {
        **_decoder(file, "cohere", eps="layer_norm_eps"),
        "logit_scale": file.get("logit_scale", 0.0625),
        "use_qk_norm": file.has("attn_q_norm.weight"),
    }


def _smollm3(file: GgufModel) -> Config:
    return _decoder(file, "smollm3")


CONFIGS: dict[str, Callable[[GgufModel], Config]] = {
    "llama": _llama,
    "qwen2": _qwen2,
    "qwen3": _qwen3,
    "qwen2moe": _qwen2moe,
    "qwen3moe": _qwen3moe,
    "qwen3next": _qwen3next,
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
    "mamba": _mamba,
    "mamba2": _mamba2,
    "jamba": _jamba,
    "granite": _granite,
    "granitehybrid": _granitehybrid,
    "falcon-h1": _falcon_h1,
    "nemotron_h": _nemotron_h,
    "nemotron_h_moe": _nemotron_h,
    "gpt-oss": _gpt_oss,
    "bloom": _bloom,
    "command-r": _command_r,
    "smollm3": _smollm3,
}
