"""A model laid out for decoding computes what it did before."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers
from nn.tolerances import assert_near

import worthit
from worthit.errors import WorthitError
from worthit.nn import inference
from worthit.nn.decoder import Decoder, build
from worthit.nn.inference import PackedLinear, optimize
from worthit.spec.hf import from_config

SIZES = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
MODELS = {
    "tied": {"model_type": "llama", **SIZES, "tie_word_embeddings": True},
    "biases": {"model_type": "qwen2", **SIZES, "tie_word_embeddings": False},
    "experts": {
        "model_type": "mixtral",
        **SIZES,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "tie_word_embeddings": False,
    },
    "latents": {
        "model_type": "deepseek_v2",
        **SIZES,
        "num_key_value_heads": 4,
        "q_lora_rank": None,
        "kv_lora_rank": 16,
        "qk_nope_head_dim": 8,
        "qk_rope_head_dim": 8,
        "v_head_dim": 8,
        "first_k_dense_replace": 2,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "n_shared_experts": 1,
        "moe_intermediate_size": 16,
    },
    "no GQA at all": {
        "model_type": "mamba",
        "vocab_size": 96,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "state_size": 4,
    },
}


def made(kind: str, dtype: torch.dtype) -> Decoder:
    torch.manual_seed(0)
    return build(from_config(MODELS[kind])).to(dtype).eval()


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_logits_stay_the_same(kind: str, dtype: torch.dtype) -> None:
    model = made(kind, dtype)
    ids = torch.randint(0, 96, (2, 9))
    with torch.inference_mode():
        before = model(ids)
        optimize(model)
        assert_near(model(ids), before)
        cache = model.new_cache()
        parts = [model(ids[:, :5], cache=cache)]
        parts += [model(ids[:, i : i + 1], cache=cache) for i in range(5, 9)]
        assert_near(torch.cat(parts, dim=1), before)
        optimize(model)  # once is enough
        assert_near(model(ids), before)


def test_control_something_was_laid_out() -> None:
    model = optimize(made("tied", torch.float32))
    assert not model.embedding.weight.is_contiguous()
    packed = [
        m for m in optimize(made("tied", torch.bfloat16)).modules() if type(m) is PackedLinear
    ]
    assert packed or not inference._can_pack()


def test_without_packing_it_still_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inference, "_can_pack", lambda: False)
    model = made("tied", torch.bfloat16)
    ids = torch.randint(0, 96, (1, 7))
    with torch.inference_mode():
        before = model(ids)
        assert_near(optimize(model)(ids), before)


def test_it_cannot_be_saved(tmp_path: Path) -> None:
    transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES)).save_pretrained(tmp_path)
    model = optimize(worthit.load_model(tmp_path))
    with pytest.raises(WorthitError, match="load it again"):
        worthit.save_model(model, tmp_path / "again")
