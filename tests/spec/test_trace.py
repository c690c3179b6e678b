"""Counting any type by building it without memory: the same numbers as where both can count."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from worthit.cost.cache import layer_cache
from worthit.cost.params import count_params
from worthit.errors import MissingCapability, SpecError, UnknownName
from worthit.spec import trace as module
from worthit.spec.hf import from_config
from worthit.spec.trace import trace

pytest.importorskip("torch")
pytest.importorskip("transformers")

BASE: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 97,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
}
KNOWN: dict[str, dict[str, Any]] = {
    "llama": {**BASE, "dtype": "float32"},
    "mixtral": {**BASE, "num_local_experts": 4, "num_experts_per_tok": 2},
    "gemma3_text": {**BASE, "head_dim": 8, "sliding_window": 16, "tie_word_embeddings": True},
    "deepseek_v3": {
        **BASE,
        "num_key_value_heads": 4,
        "q_lora_rank": 16,
        "kv_lora_rank": 16,
        "qk_rope_head_dim": 4,
        "qk_nope_head_dim": 8,
        "v_head_dim": 8,
        "n_routed_experts": 8,
        "n_shared_experts": 1,
        "n_group": 2,
        "topk_group": 1,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
    },
    "mamba": {"hidden_size": 32, "num_hidden_layers": 2, "vocab_size": 97, "state_size": 8},
}


@pytest.mark.parametrize("model_type", KNOWN)
def test_where_both_count_they_agree(model_type: str) -> None:
    config = {"model_type": model_type, **KNOWN[model_type]}
    traced, spec = trace(config), from_config(config)
    counted = count_params(spec)
    assert traced.n_params == counted.total
    assert traced.n_embedding_params == counted.embedding
    assert sum(traced.params_by_class.values()) == counted.total
    elements = [kept for layer in spec.layers for kept in layer_cache(layer, spec.d_model)]
    assert traced.cache_elements_per_token == sum(e.per_token for e in elements)
    assert traced.fixed_cache_elements == sum(e.fixed + e.conv for e in elements)
    assert traced.precision == spec.precision


def test_a_type_that_is_not_read_is_counted() -> None:
    config = {"model_type": "glm4", **BASE, "head_dim": 8, "torch_dtype": "bfloat16"}
    with pytest.raises(UnknownName, match="--trace"):
        from_config(config)
    traced = trace(config)
    # By hand: attention with biased q, k, v; a gated feed-forward; four norms; two tables.
    attention = 32 * (32 + 16 + 16) + 64 + 32 * 32
    layer = attention + 3 * 32 * 48 + 4 * 32
    assert traced.n_params == 4 * layer + 2 * 97 * 32 + 32
    assert traced.cache_elements_per_token == 4 * 2 * 2 * 8
    assert traced.weights_bytes == 2 * traced.n_params
    record = traced.record(capacity_bytes=1e6)
    assert record["memory"]["fits"] is True
    assert record["params"]["active"] is None
    assert record["time"] is None
    text = "\n".join(traced.lines(capacity_bytes=10.0))
    assert "the weights do not fit" in text
    assert "no model that can be judged" in text


def test_a_cache_that_needs_numbers_is_not_counted() -> None:
    traced = trace({"model_type": "codegen", "n_embd": 32, "n_layer": 2, "n_head": 4})
    assert traced.cache_bytes_per_token is None
    assert any("not counted" in line for line in traced.lines())


def test_other_kinds_than_decoders_are_built() -> None:
    traced = trace({"model_type": "t5", "d_model": 32, "d_ff": 48, "num_layers": 2, "d_kv": 8})
    assert traced.built_class == "T5ForConditionalGeneration"
    assert traced.n_params > 0


def test_a_path_and_a_folder(tmp_path: Path) -> None:
    config = {"model_type": "olmo3", **BASE, "sliding_window": 16}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert trace(tmp_path) == trace(str(tmp_path)).__class__(
        **{**vars(trace(tmp_path / "config.json")), "name": str(tmp_path)}
    )
    with pytest.raises(SpecError, match="no such file or folder"):
        trace(tmp_path / "none" / "config.json")


def test_wrong_configs_are_one_sentence() -> None:
    with pytest.raises(SpecError, match="knows no model type 'no_such_type'"):
        trace({"model_type": "no_such_type"})
    with pytest.raises(SpecError, match="model_type: missing"):
        trace({})
    with pytest.raises(SpecError, match="llama"):
        trace({"model_type": "llama", "hidden_size": "wide"})


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    (tmp_path / "modeling_own.py").write_text(f"open({str(marker)!r}, 'w')\n")
    config = {"model_type": "own", "auto_map": {"AutoConfig": "modeling_own.Config"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(SpecError, match="knows no model type 'own'"):
        trace(tmp_path)
    assert not marker.exists()


def test_without_transformers_the_command_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(MissingCapability, match=r"pip install 'worthit\[trace\]'") as caught:
        trace({"model_type": "glm4"})
    assert caught.value.exit_code == 3


def test_importing_the_module_costs_no_torch() -> None:
    code = "import sys, worthit.spec.trace\nassert not {'torch', 'transformers'} & set(sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr


def test_a_preset_is_traced_from_its_config() -> None:
    traced = trace("mamba-130m")
    assert traced.n_params == 129_135_360
    assert traced.cache_elements_per_token == 0
    with pytest.raises(MissingCapability, match="hf download acme/none"):
        trace("acme/none")
    with pytest.raises(SpecError, match="no such file or folder"):
        trace("no such model")


def test_the_command_prints_a_count(tmp_path: Path) -> None:
    from click.testing import CliRunner

    from worthit.cli.cost import command

    path = tmp_path / "config.json"
    path.write_text(json.dumps({"model_type": "glm4", **BASE, "head_dim": 8}))
    run = CliRunner().invoke(command, [str(path), "--trace", "--on", "h100:2", "--json"])
    assert run.exit_code == 0, run.output
    record = json.loads(run.stdout)
    assert record["memory"]["fits"] is True
    assert record["memory"]["capacity_bytes"] == 160e9
    run = CliRunner().invoke(command, [str(path), "--trace", "--prompt", "100"])
    assert run.exit_code == 0, run.output
    assert "built as Glm4ForCausalLM" in run.stdout
    assert "without effect on a traced model: --prompt" in run.stderr
