"""What a `.gguf` says of its model: metadata by key, tensors by name; parts many readers share.

Keys are named without their architecture: `block_count` is `llama.block_count`. A key that no
reader asked for is reported as a warning, since it may change the computation.
"""

from __future__ import annotations

import re
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


def stream(file: GgufModel, model_type: str) -> Config:
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


def decoder(file: GgufModel, model_type: str, *, eps: str = "rms_norm_eps") -> Config:
    """A decoder with attention: heads, rotary positions, norms and the feed-forward's width."""
    d_model, n_heads = file.size("embedding_length"), file.size("attention.head_count")
    norm = "layer_norm_rms_epsilon" if eps == "rms_norm_eps" else "layer_norm_epsilon"
    config = {
        **stream(file, model_type),
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


def mixture(file: GgufModel, experts: str = "num_experts") -> Config:
    """How many experts there are and how many are used, by metadata."""
    return {
        experts: file.size("expert_count"),
        "num_experts_per_tok": file.size("expert_used_count"),
    }


def dense_layers(file: GgufModel) -> list[int]:
    return [i for i in range(file.n_layers) if "ffn_gate_inp.weight" not in file.layers.get(i, {})]
