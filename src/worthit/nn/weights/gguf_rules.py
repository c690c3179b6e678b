"""What stands in a `.gguf` under which name: llama.cpp's names, and what its converter rearranged.

Most tensors are the published ones under another name, which the `gguf` package knows: the way to
ours is then that of safetensors, `worthit.nn.weights.names`. `_undo` puts right those that were
changed one by one; those that were split, joined or piled up are tied to ours directly, `_direct`.

| converter | here |
|---|---|
| rows of Llama's queries and keys go in pairs | `halves`: channel i with i + d/2 |
| Gemma's and Qwen3-Next's norms are stored as 1 + weight | `ONE_MORE` |
| GPT-2's matrices are turned to (out, in) | `TRANSPOSED` |
| Mamba's A is stored as -exp(A_log) | `NEGATIVE_EXP` |
| experts are piled up, one tensor a projection | `GATE_AND_VALUE` |
| query, key and value of NeoX and BLOOM stand one below another | `split` |
| latent attention's way up is split into keys, turned, and values | `latent_up` |
| Mamba-2's norm goes by groups | `GROUPED` |
| Qwen3-Next's projections by key heads are put in order of parts | `split` |
| Falcon-H1's multipliers are folded into the weights | the spec's are 1 |
| dimensions of size 1 are dropped or added | `GgufTensors.read` takes the shape that is wanted |

Source:
    llama.cpp's `convert_hf_to_gguf.py`, https://github.com/ggml-org/llama.cpp, as of May 2026.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from worthit.nn.weights.gguf import import_gguf
from worthit.nn.weights.names import (
    SAME,
    STACKED,
    TRANSPOSED,
    Entry,
    Layout,
    Rule,
    bind,
    choose,
    each,
    is_better,
    names_of,
    split,
)
from worthit.spec.model import (
    Attention,
    LatentAttention,
    LinearAttention,
    Mamba2,
    Mixer,
    ModelSpec,
    MoE,
)

_PAIRED = ("llama", "granite", "smollm3", "granitehybrid", "nemotron_h", "nemotron_h_moe")
_ONE_MORE = ("gemma", "gemma2", "gemma3", "qwen3next")
_FUSED = ("gptneox", "bloom")
# Factors of rotary frequencies, which belong to the spec; tables that llama.cpp computes itself.
_NOT_WEIGHTS = re.compile(
    r"^rope_(freqs|factors_long|factors_short)\.weight$|\.rope_freqs\.weight$"
)
MIXER, BLOCK = "layers.*.mixers.0", "blk.*"


def halves(n_heads: int) -> Layout:
    """Rows in pairs (0, d/2, 1, d/2 + 1, ...) within each head, as two halves."""
    return each(
        lambda t: t.unflatten(0, (n_heads, -1, 2)).transpose(1, 2).flatten(0, 2),
        lambda t: t.unflatten(0, (n_heads, 2, -1)).transpose(1, 2).flatten(0, 2),
    )


def latent_up(a: LatentAttention) -> Layout:
    """Keys `(n_heads, kv_lora_rank, qk_nope_head_dim)`, values `(n_heads, v_head_dim, rank)`."""
    widths = (a.qk_nope_head_dim, a.v_head_dim)

    def to_ours(theirs: Sequence[Tensor]) -> list[Tensor]:
        keys, values = theirs
        return [torch.cat([keys.transpose(1, 2), values], dim=1).flatten(0, 1)]

    def to_theirs(ours: Sequence[Tensor]) -> list[Tensor]:
        keys, values = ours[0].unflatten(0, (a.n_heads, -1)).split(widths, dim=1)
        return [keys.transpose(1, 2), values]

    return Layout(to_ours, to_theirs)


def grouped(n_groups: int) -> Layout:
    """One row a group of channels."""
    return each(lambda t: t.flatten(), lambda t: t.unflatten(0, (n_groups, -1)))


ONE_MORE = each(lambda t: t - 1, lambda t: t + 1)
NEGATIVE_EXP = each(lambda t: torch.log(-t), lambda t: -torch.exp(t))
# Gate and value of all experts, `(n_experts, d_ff, d_model)` each, as one pile.
GATE_AND_VALUE = Layout(lambda ts: [torch.cat(list(ts), 1)], lambda ts: list(ts[0].chunk(2, 1)))


def rules(
    spec: ModelSpec, architecture: str, ours: Collection[str], stored: Collection[str]
) -> list[Rule]:
    """The rules that fill the parameters `ours` from the tensors `stored` of a file."""
    gguf = import_gguf()
    number = {name: arch for arch, name in gguf.MODEL_ARCH_NAMES.items()}[architecture]
    names = gguf.get_tensor_name_map(number, spec.n_layers)

    def translated(rule: Rule) -> Rule | None:
        found = [_name_of(name, names) for name in rule.theirs]
        undo = [_undo(architecture, spec, name) for name in rule.theirs]
        theirs = tuple(name for name in found if name is not None)
        if len(theirs) < len(found):
            return None
        return Rule(rule.ours, theirs, _one_each(undo).then(rule.layout))

    found = choose(_direct(spec, architecture), ours, spec.n_layers, stored)
    for rule in bind(names_of(spec), ours, spec.n_layers):
        direct, published = found.get(rule.ours[0]), translated(rule)
        assert direct or published, f"{architecture}: no name for {rule.theirs}"
        if direct is None or (published and is_better(published, direct, stored)):
            assert published is not None
            found.update(dict.fromkeys(rule.ours, published))
    return list(dict.fromkeys(found.values()))


def _name_of(published: str, names: Any) -> str | None:
    """llama.cpp's name of a published tensor, in the architecture of `names`."""
    suffixes = (".weight", ".bias")
    # BLOOM's first checkpoints had no prefix.
    for name in (published, published.removeprefix("transformer.")):
        found: str | None = names.get_name(name, try_suffixes=suffixes)
        if found is not None:
            return found
    return None


def is_extra(name: str, n_layers: int, expected: Collection[str]) -> bool:
    """Whether a tensor that no rule reads says that the file is not of this model."""
    if name in expected or _NOT_WEIGHTS.search(name):
        return False
    layer = re.match(r"blk\.(\d+)\.", name)
    if layer is not None and int(layer[1]) >= n_layers:  # predicts further tokens
        return False
    # Latent attention's way up once more in two halves, for absorbed decoding.
    halved = re.sub(r"\.attn_[kv]_b\.weight$", ".attn_kv_b.weight", name)
    return halved == name or halved not in expected


def _undo(architecture: str, spec: ModelSpec, published: str) -> Layout:
    """What turns a tensor of the file into the published one."""
    if architecture in _PAIRED and ".q_proj." in published:
        return halves(_first(spec, Attention).n_heads)
    if architecture in _PAIRED and ".k_proj." in published:
        return halves(_first(spec, Attention).n_kv_heads)
    is_norm = published.endswith("norm.weight") and ".linear_attn." not in published
    if architecture in _ONE_MORE and is_norm:
        return ONE_MORE
    if architecture == "gpt2" and re.search(r"\.c_(attn|proj|fc)\.weight$", published):
        return TRANSPOSED
    if published.endswith(".A_log"):
        return NEGATIVE_EXP
    return SAME


def _one_each(layouts: Sequence[Layout]) -> Layout:
    """The i-th layout on the i-th tensor."""

    def to_ours(theirs: Sequence[Tensor]) -> list[Tensor]:
        return [a.to_ours([t])[0] for a, t in zip(layouts, theirs, strict=True)]

    def to_theirs(ours: Sequence[Tensor]) -> list[Tensor]:
        return [a.to_theirs([t])[0] for a, t in zip(layouts, ours, strict=True)]

    return Layout(to_ours, to_theirs)


def _first(spec: ModelSpec, kind: type) -> Any:
    return next(mixer for mixer in spec.mixers if isinstance(mixer, kind))


# --- tensors in another number than published ---------------------------------------------------


def _direct(spec: ModelSpec, architecture: str) -> list[Entry]:
    """Our names beside llama.cpp's; the file decides between several for one of ours."""
    entries = [*_experts(spec)]
    if architecture in _FUSED:
        attention = _first(spec, Attention)
        width = attention.n_heads * attention.head_dim
        parts = tuple(f"{MIXER}.{part}_proj" for part in "qkv")
        entries += [Entry(parts, f"{BLOCK}.attn_qkv", split(width, width, width))]
    if architecture == "stablelm":
        entries += [
            Entry(f"{MIXER}.qk_norm.{part}.weight", f"{BLOCK}.attn_{part[0]}_norm.weight")
            for part in ("query", "key")
        ]
    if architecture == "gpt-oss":
        entries += [Entry(f"{MIXER}.sinks", f"{BLOCK}.attn_sinks.weight")]
    if architecture == "granitehybrid":
        entries += [*_dense("layers.*.ffn", ""), *_dense("layers.*.ffn.shared.ffn", "_shexp")]
    kinds: dict[type[Mixer], Any] = {
        LatentAttention: _latent,
        Mamba2: _mamba2,
        LinearAttention: _gated_delta,
    }
    for i in range(max(len(layer.mixers) for layer in spec.layers)):
        there = {type(x.mixers[i]): x.mixers[i] for x in spec.layers if len(x.mixers) > i}
        for kind, mixer in there.items():
            if kind in kinds:
                entries += kinds[kind](f"layers.*.mixers.{i}", mixer)
    return entries


def _experts(spec: ModelSpec) -> Iterable[Entry]:
    """Routed experts in piles, and the bias that balances their choice."""
    moe = next((ffn for ffn in spec.ffns if isinstance(ffn, MoE)), None)
    if moe is None:
        return
    ffn = "layers.*.ffn"
    for ours, leaf in (("up", "weight"), ("up_bias", "bias")):
        up = f"{BLOCK}.ffn_up_exps.{leaf}"
        if moe.expert.is_gated:
            gate = f"{BLOCK}.ffn_gate_exps.{leaf}"
            yield Entry(f"{ffn}.experts.{ours}", (gate, up), GATE_AND_VALUE)
            yield Entry(f"{ffn}.experts.{ours}", f"{BLOCK}.ffn_gate_up_exps.{leaf}")
        else:
            yield Entry(f"{ffn}.experts.{ours}", up)
    yield Entry(f"{ffn}.experts.down", f"{BLOCK}.ffn_down_exps.weight")
    yield Entry(f"{ffn}.experts.down_bias", f"{BLOCK}.ffn_down_exps.bias")
    for name in ("exp_probs_b.bias", "exp_probs_b"):
        yield Entry(f"{ffn}.router.selection_bias", f"{BLOCK}.{name}")


def _dense(ours: str, suffix: str) -> Iterable[Entry]:
    gate, up, down = (f"{BLOCK}.ffn_{part}{suffix}" for part in ("gate", "up", "down"))
    yield Entry(f"{ours}.up", (gate, up), STACKED)
    yield Entry(f"{ours}.down", down)


def _latent(ours: str, attention: LatentAttention) -> Iterable[Entry]:
    # Files from before the absorbed form was decoded have the published matrix alone, some both.
    halves = tuple(f"{BLOCK}.attn_{part}_b.weight" for part in "kv")
    yield Entry(f"{ours}.kv_up.weight", f"{BLOCK}.attn_kv_b.weight")
    yield Entry(f"{ours}.kv_up.weight", halves, latent_up(attention))


def _mamba2(ours: str, mamba2: Mamba2) -> Iterable[Entry]:
    yield Entry(f"{ours}.step_bias", f"{BLOCK}.ssm_dt.bias")
    yield Entry(f"{ours}.norm.weight", f"{BLOCK}.ssm_norm.weight", grouped(mamba2.n_groups))


def _gated_delta(ours: str, linear: LinearAttention) -> Iterable[Entry]:
    keys = linear.n_key_heads * linear.key_dim
    values = linear.n_value_heads * linear.value_dim
    q, k, v, gate = (f"{ours}.{part}_proj.weight" for part in ("q", "k", "v", "gate"))
    yield Entry((q, k, v), f"{BLOCK}.attn_qkv.weight", split(keys, keys, values))
    yield Entry(gate, f"{BLOCK}.attn_gate.weight")
    yield Entry(f"{ours}.step_bias", f"{BLOCK}.ssm_dt.bias")
