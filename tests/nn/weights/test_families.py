"""Every model type against transformers: a tiny random checkpoint, written by it and read by us.

Each variant is built, written by `save_pretrained` and loaded once; then logits, gradients, greedy
continuations through both sides' own caches, and what `save_model` writes are compared.
"""

from __future__ import annotations

import copy
import functools
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from worthit.cost.cache import layer_cache
from worthit.cost.params import count_params

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from nn.tolerances import assert_near  # noqa: E402  # torch may be absent
from safetensors.torch import load_file  # noqa: E402

from worthit.nn.decoder import Decoder  # noqa: E402
from worthit.nn.load import load_model, save_model  # noqa: E402

Config = dict[str, Any]
# Longer than every window below, and than the contexts that rotary scaling stretches.
PROMPT_LEN = 21
PAD_LEN = 6
NEW_LEN = 9

BASE: Config = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 44,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
TIED, UNTIED = {"tie_word_embeddings": True}, {"tie_word_embeddings": False}
FOUR = {"num_hidden_layers": 4}
MOE = {"num_experts_per_tok": 2, "moe_intermediate_size": 12}
LATENT: Config = MOE | {
    "num_key_value_heads": 4,
    "kv_lora_rank": 16,
    "q_lora_rank": 12,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 8,
    "v_head_dim": 6,
    "n_routed_experts": 8,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
}


def scaled(kind: str, **settings: Any) -> Config:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10_000.0, **settings}}


LINEAR = scaled("linear", factor=4.0)
DYNAMIC = scaled("dynamic", factor=2.0) | {"max_position_embeddings": 16}
YARN = scaled("yarn", factor=4.0, original_max_position_embeddings=16)
DEEPSEEK_YARN = scaled(
    "yarn", factor=8.0, original_max_position_embeddings=16, mscale=1.0, mscale_all_dim=0.7
)
LLAMA3 = scaled(
    "llama3",
    factor=8.0,
    original_max_position_embeddings=16,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
)


def longrope(original: int) -> Config:
    factors = {"short_factor": [1.0, 1.5, 2.0, 3.0], "long_factor": [2.0, 3.0, 5.0, 9.0]}
    return scaled("longrope", original_max_position_embeddings=original, **factors) | {
        "original_max_position_embeddings": original
    }


VARIANTS: dict[str, dict[str, Config]] = {
    "llama": {
        "plain": {},
        "biased": {"attention_bias": True, "mlp_bias": True} | TIED,
        "wide heads, one key": {"head_dim": 12, "num_key_value_heads": 1},
        "linear": LINEAR,
        "dynamic": DYNAMIC,
        "yarn": YARN,
        "llama3": LLAMA3,
    },
    "mistral": {"window": {"sliding_window": 5}, "full": {"sliding_window": None} | TIED},
    "mixtral": {
        "window": {"sliding_window": 5, "num_local_experts": 4, "num_experts_per_tok": 2},
        "one expert": {"num_local_experts": 3, "num_experts_per_tok": 1},
    },
    "smollm3": {
        "no rope every second": FOUR | {"no_rope_layer_interval": 2},
        "local": FOUR
        | {"use_sliding_window": True, "sliding_window": 5, "no_rope_layer_interval": 2}
        | UNTIED,
    },
    "granite": {
        "multipliers": {
            "embedding_multiplier": 12.0,
            "residual_multiplier": 0.22,
            "attention_multiplier": 0.05,
            "logits_scaling": 8.0,
        },
        "plain": {"attention_bias": True, "mlp_bias": True} | TIED,
    },
    "phi3": {
        "window": {"sliding_window": 5},
        "partial": scaled("default", partial_rotary_factor=0.5) | TIED,
        "short factors": longrope(64),
        "long factors": longrope(8),
        "from short to long": longrope(PROMPT_LEN + 3),
    },
    "stablelm": {
        "plain": {"use_qkv_bias": True},
        "parallel": {"use_parallel_residual": True, "qk_layernorm": True} | TIED,
    },
    "qwen2": {
        "plain": {},
        "local": FOUR
        | {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 2}
        | TIED,
    },
    "qwen3": {"plain": {"head_dim": 10}, "yarn": YARN | {"attention_bias": True} | TIED},
    "qwen2_moe": {
        "mixed": FOUR
        | MOE
        | {"num_experts": 4, "shared_expert_intermediate_size": 20, "decoder_sparse_step": 2},
        "normalised": MOE
        | {"num_experts": 4, "shared_expert_intermediate_size": 20, "norm_topk_prob": True}
        | {"qkv_bias": False},
    },
    "qwen3_moe": {
        "normalised": MOE | {"num_experts": 4, "norm_topk_prob": True, "head_dim": 8},
        "dense first": MOE | {"num_experts": 4, "mlp_only_layers": [0]} | TIED,
    },
    "gemma": {"plain": {"head_dim": 12}},
    "gemma2": {
        "local and capped": {"head_dim": 8, "sliding_window": 5, "query_pre_attn_scalar": 16},
        "uncapped": {
            "head_dim": 8,
            "attn_logit_softcapping": None,
            "final_logit_softcapping": None,
        },
    },
    "gemma3_text": {
        "five to one": {
            "num_hidden_layers": 6,
            "head_dim": 8,
            "sliding_window": 5,
            "query_pre_attn_scalar": 16,
        },
        "stretched": {
            "head_dim": 8,
            "sliding_window": 5,
            "layer_types": ["sliding_attention", "full_attention"],
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            },
            # There and never read: its queries and keys are normalised instead.
            "attn_logit_softcapping": 1.0,
        },
    },
    "gpt2": {
        "plain": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},
        "scaled by depth": {
            "n_embd": 24,
            "n_layer": 2,
            "n_head": 3,
            "n_positions": 64,
            "n_inner": 40,
            "scale_attn_by_inverse_layer_idx": True,
        }
        | UNTIED,
    },
    "gpt_neox": {
        "parallel": {"hidden_size": 64},
        "one after another": {"use_parallel_residual": False, "rotary_pct": 0.5} | TIED,
    },
    "gpt_oss": {
        "alternating": {
            "head_dim": 8,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "sliding_window": 5,
        }
        | scaled(
            "yarn",
            factor=8.0,
            truncate=False,
            original_max_position_embeddings=16,
            beta_fast=32.0,
            beta_slow=1.0,
        ),
    },
    "opt": {
        "plain": {"ffn_dim": 44},
        "narrow, norms after": {
            "ffn_dim": 44,
            "word_embed_proj_dim": 20,
            "do_layer_norm_before": False,
        },
        "without affine": {
            "ffn_dim": 44,
            "layer_norm_elementwise_affine": False,
            "enable_bias": False,
        },
    },
    "bloom": {
        "plain": {"hidden_size": 32, "n_layer": 2, "n_head": 4},
        "six heads": {"hidden_size": 48, "n_layer": 2, "n_head": 6} | UNTIED,
    },
    "starcoder2": {
        "window": {"sliding_window": 5},
        "full": {"sliding_window": None, "use_bias": False} | UNTIED,
    },
    "olmo2": {"plain": {}, "biased": {"attention_bias": True} | TIED},
    "olmoe": {
        "clipped": {"num_experts": 4, "num_experts_per_tok": 2, "clip_qkv": 0.5},
        "normalised": {"num_experts": 4, "num_experts_per_tok": 2, "norm_topk_prob": True},
    },
    "cohere": {"plain": {}, "normed": {"use_qk_norm": True, "attention_bias": True} | UNTIED},
    "deepseek_v2": {
        "greedy": LATENT | {"topk_method": "greedy", "q_lora_rank": None},
        "groups": LATENT
        | {"topk_method": "group_limited_greedy", "n_group": 4, "topk_group": 2}
        | {"attention_bias": True, "mlp_bias": True, "routed_scaling_factor": 3.0},
        "yarn": LATENT | DEEPSEEK_YARN,
    },
    "deepseek_v3": {
        "groups": LATENT | {"n_group": 4, "topk_group": 2},
        "half layout": LATENT
        | {"rope_interleave": False, "attention_bias": True, "norm_topk_prob": False},
        "yarn": LATENT | DEEPSEEK_YARN | {"q_lora_rank": None},
    },
    "llama4_text": {
        "chunked": FOUR
        | {
            "head_dim": 8,
            "num_local_experts": 4,
            "num_experts_per_tok": 1,
            "intermediate_size_mlp": 40,
            "interleave_moe_layer_step": 2,
            "no_rope_layer_interval": 2,
            "attention_chunk_size": 8,
            "floor_scale": 8,
        },
        "two experts, no norm": {
            "head_dim": 8,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "intermediate_size_mlp": 40,
            "use_qk_norm": False,
            "attention_bias": True,
        },
    },
}
# Types that do not have some of the usual keys.
SIZES = tuple(key for key in BASE if not key.endswith("token_id") and key != "vocab_size")
WITHOUT: dict[str, tuple[str, ...]] = {
    "gpt2": SIZES,
    "bloom": SIZES,
    "gpt_neox": ("num_key_value_heads",),
    "opt": ("num_key_value_heads", "intermediate_size"),
}
CASES = [(kind, name) for kind, variants in VARIANTS.items() for name in variants]
each_variant = pytest.mark.parametrize(("kind", "name"), CASES)
KINDS = pytest.mark.parametrize(
    ("kind", "name"), [(kind, next(iter(variants))) for kind, variants in VARIANTS.items()]
)


@dataclass(frozen=True)
class Pair:
    """One set of weights on both sides, and the tensors of the file that they met in."""

    reference: Any
    ours: Decoder
    tensors: dict[str, Any]


def written(model: Any, folder: Path) -> None:
    transformers.utils.logging.disable_progress_bar()
    model.save_pretrained(folder)


def experts_option(config: Config) -> Config:
    # The grouped product wants widths in multiples of 16 bytes.
    return {"experts_implementation": "eager"} if "num_experts_per_tok" in config else {}


def config_of(kind: str, name: str) -> Config:
    usual = {key: BASE[key] for key in BASE if key not in WITHOUT.get(kind, ())}
    return usual | VARIANTS[kind][name]


def fill(model: Any) -> None:
    """Random weights everywhere, norms and buffers included, so that nothing is 0 or 1."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.normal_(0, 0.3 if p.dim() == 1 else p.shape[-1] ** -0.5, generator=generator)
            if p.dim() == 1 and "norm" in name:
                p.add_(0.8)
        for name, buffer in model.named_buffers():
            if name.endswith("e_score_correction_bias"):
                buffer.normal_(0, 0.1, generator=generator)


@functools.cache
def pair(kind: str, name: str) -> Pair:
    config = config_of(kind, name)
    reference = transformers.AutoModelForCausalLM.from_config(
        transformers.AutoConfig.for_model(kind, **config),
        attn_implementation="eager",
        **experts_option(config),
    )
    reference = reference.float().eval()
    fill(reference)
    # No end: both sides continue for as long as asked.
    reference.generation_config.eos_token_id = None
    with tempfile.TemporaryDirectory() as folder:
        written(reference, Path(folder))
        return Pair(reference, load_model(folder), load_file(f"{folder}/model.safetensors"))


@pytest.fixture(autouse=True)
def _quiet() -> None:
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)


def prompts(kind: str, name: str) -> tuple[Any, Any]:
    """Two prompts, the first shorter by its left padding, and their mask."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, BASE["vocab_size"], (2, PROMPT_LEN), generator=generator)
    mask = torch.ones_like(ids)
    ids[0, :PAD_LEN], mask[0, :PAD_LEN] = 0, 0
    return ids, mask


@each_variant
def test_logits(kind: str, name: str) -> None:
    both = pair(kind, name)
    ids, _ = prompts(kind, name)
    with torch.no_grad():
        got, want = both.ours(ids), both.reference(ids, use_cache=False).logits
    assert got.shape == (2, PROMPT_LEN, BASE["vocab_size"])
    assert_near(got, want)


@each_variant
def test_parameters(kind: str, name: str) -> None:
    both = pair(kind, name)
    n_theirs = sum(p.numel() for p in both.reference.parameters())
    assert sum(p.numel() for p in both.ours.parameters()) == n_theirs
    assert count_params(both.ours.spec).total == n_theirs


@each_variant
def test_greedy_continuation_of_a_padded_batch(kind: str, name: str) -> None:
    both = pair(kind, name)
    ids, mask = prompts(kind, name)
    want = both.reference.generate(
        ids, attention_mask=mask, max_new_tokens=NEW_LEN, do_sample=False, pad_token_id=0
    )
    got, cache = ids, both.ours.new_cache()
    with torch.no_grad():
        logits = both.ours(ids, cache=cache, attention_mask=mask, last_only=True)
        for i in range(NEW_LEN):
            got = torch.cat([got, logits[:, -1].argmax(-1, keepdim=True)], dim=1)
            if i == NEW_LEN - 1:
                break
            if both.ours.outgrows(cache, 1):
                cache = both.ours.new_cache()
                seen = torch.cat([mask, torch.ones(2, i + 1, dtype=torch.long)], dim=1)
                logits = both.ours(got, cache=cache, attention_mask=seen)
            else:
                logits = both.ours(got[:, -1:], cache=cache)
    assert got.tolist() == want.tolist()

    n = cache.length
    assert n == PROMPT_LEN + NEW_LEN - 1
    kept = [
        elements.per_token * min(n, elements.window or n)
        for layer in both.ours.spec.layers
        for elements in layer_cache(layer, both.ours.spec.d_model)
    ]
    assert cache.nbytes == 2 * sum(kept) * 4  # two rows in fp32


@each_variant
def test_chunks_of_a_padded_batch(kind: str, name: str) -> None:
    both = pair(kind, name)
    ids, mask = prompts(kind, name)
    cache = both.ours.new_cache()
    with torch.no_grad():
        parts = [
            both.ours(ids[:, begin:end], cache=cache, attention_mask=mask[:, :end])
            for begin, end in ((0, 8), (8, 15), (15, 16), (16, PROMPT_LEN))
        ]
        # The padded row is what the reference makes of it by itself.
        want = [
            both.reference(ids[:1, PAD_LEN:], use_cache=False).logits[0],
            both.reference(ids[1:], use_cache=False).logits[0],
        ]
    got = torch.cat(parts, dim=1)
    if changes_with_length(kind, name):
        # Keys keep the rotation of the length that they were cached at, there as here.
        return
    assert_near(got[0, PAD_LEN:], want[0])
    assert_near(got[1], want[1])


def changes_with_length(kind: str, name: str) -> bool:
    rope = VARIANTS[kind][name].get("rope_parameters", {})
    return rope.get("rope_type") in ("dynamic", "longrope")


@KINDS
def test_gradients(kind: str, name: str, tmp_path: Path) -> None:
    both = pair(kind, name)
    # There the padding token's embedding has no gradient.
    ids = prompts(kind, name)[0].clamp_min(3)
    for model in (both.reference, both.ours):
        model.zero_grad()
        logits = model(ids, use_cache=False).logits if model is both.reference else model(ids)
        loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
        loss.backward()
    kept = {n: p.detach().clone() for n, p in both.reference.named_parameters()}
    with torch.no_grad():
        # Gradients written as weights come back in our layout.
        for p in both.reference.parameters():
            p.copy_(torch.zeros_like(p) if p.grad is None else p.grad)
        written(both.reference, tmp_path)
        for n, p in both.reference.named_parameters():
            p.copy_(kept[n])
    want = dict(load_model(tmp_path).named_parameters())
    for n, p in both.ours.named_parameters():
        # A frozen part or an expert without tokens has none.
        assert_near(torch.zeros_like(p) if p.grad is None else p.grad, want[n])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@KINDS
def test_half_precision(kind: str, name: str, dtype: Any, tmp_path: Path) -> None:
    # Both sides round on their own ways: ours may be no further from fp32 than theirs.
    both = pair(kind, name)
    ids, _ = prompts(kind, name)
    theirs = copy.deepcopy(both.reference).to(dtype)
    written(theirs, tmp_path)
    ours = load_model(tmp_path)
    assert {p.dtype for p in ours.parameters()} == {dtype}
    with torch.no_grad():
        want = load_model(tmp_path, dtype="fp32")(ids)
        got, reference = ours(ids), theirs(ids, use_cache=False).logits
    assert got.dtype == dtype
    errors = [(x.float() - want).square().mean(-1).sqrt().median() for x in (got, reference)]
    # The median over tokens: near a tie a router may send single ones elsewhere, on either side.
    assert errors[0] <= 1.5 * errors[1] + 1e-6


@KINDS
def test_what_is_written_is_what_transformers_writes(kind: str, name: str, tmp_path: Path) -> None:
    both = pair(kind, name)
    save_model(both.ours, tmp_path)
    got, want = load_file(tmp_path / "model.safetensors"), both.tensors
    assert got.keys() == want.keys()
    for tensor_name, tensor in want.items():
        assert torch.equal(got[tensor_name], tensor), tensor_name

    back = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, attn_implementation="eager", **experts_option(config_of(kind, name))
    )
    ids, _ = prompts(kind, name)
    with torch.no_grad():
        a, b = back.eval()(ids, use_cache=False), both.reference(ids, use_cache=False)
    assert_near(a.logits, b.logits)
