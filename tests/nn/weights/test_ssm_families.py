"""State-space models, RWKV and hybrids against transformers: tiny random checkpoints of each type.

As `test_families`, with one difference: greedy continuations are compared with the reference's full
forward pass of each row alone. Its own caches are wrong in places (RWKV's single tokens of a batch,
Bamba's positions, Mamba-2's unbounded steps) and some of these types ignore padding.
"""

from __future__ import annotations

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

from worthit.nn.decoder import Decoder  # noqa: E402
from worthit.nn.load import load_model, save_model  # noqa: E402

Config = dict[str, Any]
PROMPT_LEN = 21
PAD_LEN = 6
NEW_LEN = 8

SMALL: Config = {
    "vocab_size": 97,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
HYBRID: Config = SMALL | {
    "intermediate_size": 44,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
MAMBA2: Config = {
    "mamba_n_heads": 8,
    "mamba_d_head": 8,
    "mamba_d_state": 8,
    "mamba_n_groups": 1,
    "mamba_chunk_size": 4,
}
JAMBA: Config = HYBRID | {
    "attn_layer_period": 2,
    "attn_layer_offset": 1,
    "expert_layer_period": 2,
    "expert_layer_offset": 1,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "mamba_d_state": 8,
    "mamba_dt_rank": 4,
}
GRANITE: Config = (
    HYBRID
    | MAMBA2
    | {
        "layer_types": ["mamba", "attention"] * 2,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "shared_intermediate_size": 20,
        "position_embedding_type": "nope",
    }
)
NEMOTRON: Config = HYBRID | {
    "hybrid_override_pattern": "M-*E",
    "mamba_num_heads": 8,
    "mamba_head_dim": 8,
    "ssm_state_size": 8,
    "n_groups": 2,
    "head_dim": 8,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "moe_shared_expert_intermediate_size": 24,
    "n_group": 1,
    "topk_group": 1,
}
QWEN_NEXT: Config = HYBRID | {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    # Narrower keys are now and then so short that making them unit vectors magnifies rounding.
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 6,
    "head_dim": 8,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 20,
}

VARIANTS: dict[str, dict[str, Config]] = {
    "mamba": {
        "plain": SMALL | {"state_size": 8},
        "biases": SMALL
        | {"state_size": 4, "use_bias": True, "use_conv_bias": False, "time_step_rank": 5}
        | {"tie_word_embeddings": False, "expand": 3, "conv_kernel": 3},
    },
    "falcon_mamba": {"plain": SMALL | {"state_size": 8, "mixer_rms_eps": 1e-3}},
    "mamba2": {
        "groups": SMALL
        | {"state_size": 8, "num_heads": 8, "head_dim": 8, "n_groups": 2, "chunk_size": 4},
        "biases, bounded steps": SMALL
        | {"state_size": 8, "num_heads": 4, "head_dim": 16, "n_groups": 4, "chunk_size": 256}
        | {"use_bias": True, "use_conv_bias": False, "tie_word_embeddings": True}
        | {"time_step_limit": (0.3, 1.5)},
    },
    "rwkv": {
        "plain": SMALL | {"attention_hidden_size": 32, "intermediate_size": 48},
        # Every second layer's halving in fp16 inference takes itself out again.
        "rescaled": SMALL | {"rescale_every": 1, "tie_word_embeddings": True},
    },
    "jamba": {
        "mixture": JAMBA,
        "dense, biased": JAMBA
        | {"num_experts": 1, "num_experts_per_tok": 1, "mamba_proj_bias": True}
        | {"tie_word_embeddings": True},
    },
    "bamba": {
        "plain": HYBRID | MAMBA2 | {"attn_layer_indices": [1]},
        "groups, biased": HYBRID
        | MAMBA2
        | {"attn_layer_indices": [0, 3], "mamba_n_groups": 2, "attention_bias": True}
        | {"mlp_bias": True, "tie_word_embeddings": True},
    },
    "granitemoehybrid": {
        "mixture": GRANITE,
        "dense, rope, multipliers": GRANITE
        | {"num_local_experts": 0, "position_embedding_type": "rope"}
        | {"embedding_multiplier": 12.0, "residual_multiplier": 0.22}
        | {"attention_multiplier": 0.1, "logits_scaling": 8.0, "tie_word_embeddings": True},
    },
    "falcon_h1": {
        "plain": HYBRID | MAMBA2 | {"mamba_d_ssm": 64},
        "norm, multipliers": HYBRID
        | MAMBA2
        | {"mamba_d_ssm": 64, "mamba_rms_norm": True, "mamba_norm_before_gate": False}
        | {"ssm_in_multiplier": 1.25, "ssm_out_multiplier": 0.25, "key_multiplier": 0.4}
        | {"ssm_multipliers": [0.35, 0.25, 0.35, 0.5, 0.7], "mlp_multipliers": [0.9, 0.3]}
        | {"attention_in_multiplier": 1.5, "attention_out_multiplier": 0.9}
        | {"embedding_multiplier": 5.6, "lm_head_multiplier": 0.04},
    },
    "nemotron_h": {
        "every kind": NEMOTRON,
        "groups of experts": NEMOTRON
        | {"n_routed_experts": 8, "n_group": 4, "topk_group": 2, "use_bias": True}
        | {"moe_latent_size": 12, "routed_scaling_factor": 2.5, "norm_topk_prob": False},
    },
    "qwen3_next": {
        "three to one": QWEN_NEXT,
        "one to one, half dense": QWEN_NEXT
        | {"full_attention_interval": 2, "decoder_sparse_step": 2, "norm_topk_prob": False}
        | {"attention_bias": True, "tie_word_embeddings": True},
    },
}
CASES = [(kind, name) for kind, variants in VARIANTS.items() for name in variants]
each_variant = pytest.mark.parametrize(("kind", "name"), CASES)
KINDS = pytest.mark.parametrize(
    ("kind", "name"), [(kind, next(iter(variants))) for kind, variants in VARIANTS.items()]
)


@dataclass(frozen=True)
class Pair:
    """One set of weights on both sides, and the folder that they met in."""

    reference: Any
    ours: Decoder
    folder: Path


@pytest.fixture(autouse=True)
def _quiet() -> None:
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)


def experts_option(config: Config) -> Config:
    # The grouped product wants widths in multiples of 16 bytes.
    return {"experts_implementation": "eager"} if "num_experts_per_tok" in config else {}


def fill(model: Any) -> None:
    """Random weights everywhere, so that nothing is 0 or 1; decays and steps stay moderate."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.normal_(0, 0.3 if p.dim() == 1 else p.shape[-1] ** -0.5, generator=generator)
            if p.dim() == 1 and ("norm" in name or "ln" in name):
                p.add_(0.8)
            if "time_mix" in name:
                p.sigmoid_()
        for name, buffer in model.named_buffers():
            if name.endswith("e_score_correction_bias"):
                buffer.normal_(0, 0.1, generator=generator)


def written(model: Any, folder: Path) -> None:
    transformers.utils.logging.disable_progress_bar()
    model.save_pretrained(folder)


@functools.cache
def pair(kind: str, name: str) -> Pair:
    config = VARIANTS[kind][name]
    reference = transformers.AutoModelForCausalLM.from_config(
        transformers.AutoConfig.for_model(kind, **config),
        attn_implementation="eager",
        **experts_option(config),
    )
    # In evaluation RWKV would halve its own weights, in place: written before, used in training.
    reference = reference.float().train(kind == "rwkv")
    fill(reference)
    folder = Path(tempfile.mkdtemp())
    written(reference, folder)
    return Pair(reference, load_model(folder), folder)


def prompts() -> tuple[Any, Any]:
    """Two prompts, the first shorter by its left padding, and their mask."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, SMALL["vocab_size"], (2, PROMPT_LEN), generator=generator)
    mask = torch.ones_like(ids)
    ids[0, :PAD_LEN], mask[0, :PAD_LEN] = 0, 0
    return ids, mask


def their_logits(reference: Any, ids: Any) -> Any:
    with torch.no_grad():
        return reference(ids, use_cache=False).logits


@each_variant
def test_logits(kind: str, name: str) -> None:
    both = pair(kind, name)
    ids, _ = prompts()
    with torch.no_grad():
        assert_near(both.ours(ids), their_logits(both.reference, ids))


@each_variant
def test_parameters(kind: str, name: str) -> None:
    both = pair(kind, name)
    n_theirs = sum(p.numel() for p in both.reference.parameters())
    assert sum(p.numel() for p in both.ours.parameters()) == n_theirs
    assert count_params(both.ours.spec).total == n_theirs


@each_variant
def test_greedy_continuation_of_a_padded_batch(kind: str, name: str) -> None:
    both = pair(kind, name)
    ids, mask = prompts()
    rows = [ids[:1, PAD_LEN:], ids[1:]]
    for _ in range(NEW_LEN):
        rows = [
            torch.cat([row, their_logits(both.reference, row)[:, -1:].argmax(-1)], dim=1)
            for row in rows
        ]
    got, cache = ids, both.ours.new_cache()
    with torch.no_grad():
        logits = both.ours(ids, cache=cache, attention_mask=mask, last_only=True)
        for i in range(NEW_LEN):
            got = torch.cat([got, logits[:, -1].argmax(-1, keepdim=True)], dim=1)
            if i < NEW_LEN - 1:
                logits = both.ours(got[:, -1:], cache=cache)
    assert got[0, PAD_LEN:].tolist() == rows[0][0].tolist()
    assert got[1].tolist() == rows[1][0].tolist()

    n = PROMPT_LEN + NEW_LEN - 1
    kept = [
        elements.per_token * n + elements.fixed + elements.conv
        for layer in both.ours.spec.layers
        for elements in layer_cache(layer, both.ours.spec.d_model)
    ]
    assert cache.nbytes == 2 * sum(kept) * 4  # two rows in fp32


@each_variant
def test_chunks_of_a_padded_batch(kind: str, name: str) -> None:
    both = pair(kind, name)
    ids, mask = prompts()
    cache = both.ours.new_cache()
    with torch.no_grad():
        parts = [
            both.ours(ids[:, begin:end], cache=cache, attention_mask=mask[:, :end])
            for begin, end in ((0, 8), (8, 15), (15, 16), (16, PROMPT_LEN))
        ]
    got = torch.cat(parts, dim=1)
    # The padded row is what the reference makes of it by itself.
    assert_near(got[0, PAD_LEN:], their_logits(both.reference, ids[:1, PAD_LEN:])[0])
    assert_near(got[1], their_logits(both.reference, ids[1:])[0])


@KINDS
def test_gradients(kind: str, name: str, tmp_path: Path) -> None:
    both = pair(kind, name)
    # There the padding token's embedding has no gradient.
    ids = prompts()[0].clamp_min(3)
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


@KINDS
def test_what_is_written_is_what_transformers_writes(kind: str, name: str, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    both = pair(kind, name)
    save_model(both.ours, tmp_path)
    want = load_file(both.folder / "model.safetensors")
    got = load_file(tmp_path / "model.safetensors")
    assert got.keys() == want.keys()
    for tensor_name, tensor in want.items():
        assert torch.equal(got[tensor_name], tensor), tensor_name


@pytest.mark.parametrize("kind", ["mamba", "mamba2"])
def test_older_names_are_read(kind: str, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    both = pair(kind, next(iter(VARIANTS[kind])))
    tensors = load_file(both.folder / "model.safetensors")
    tensors["backbone.embedding.weight"] = tensors.pop("backbone.embeddings.weight")
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((both.folder / "config.json").read_text())
    ids, _ = prompts()
    with torch.no_grad():
        assert torch.equal(load_model(tmp_path)(ids), both.ours(ids))
