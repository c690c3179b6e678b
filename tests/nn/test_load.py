"""Checkpoints of every shape that is published, damaged ones, and what is written back."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import worthit
from worthit.errors import MissingCapability, SpecError, UnknownName
from worthit.spec import model as spec

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from safetensors.torch import load_file, save_file  # noqa: E402  # torch may be absent

from worthit.nn.decoder import build  # noqa: E402

Config = dict[str, Any]
Tensors = dict[str, Any]

LLAMA: Config = {
    "vocab_size": 50,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
GPT2: Config = {"vocab_size": 50, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32}
OPT: Config = {
    "vocab_size": 50,
    "hidden_size": 16,
    "word_embed_proj_dim": 16,
    "ffn_dim": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 32,
}
BLOOM: Config = {"vocab_size": 50, "hidden_size": 16, "n_layer": 2, "n_head": 2}
MOE = {"num_local_experts": 3, "num_experts_per_tok": 2}
DEEPSEEK: Config = LLAMA | {
    "num_key_value_heads": 4,
    "kv_lora_rank": 8,
    "q_lora_rank": 6,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 4,
    "v_head_dim": 4,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 8,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
}
IDS = torch.arange(3, 15)[None]


@pytest.fixture(autouse=True)
def _quiet() -> None:
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)


def reference(kind: str = "llama", config: Config = LLAMA, **changes: Any) -> Any:
    torch.manual_seed(0)
    built = transformers.AutoConfig.for_model(kind, **config | changes)
    # The grouped product wants widths in multiples of 16 bytes.
    options = {"experts_implementation": "eager"} if "num_experts_per_tok" in config else {}
    model = transformers.AutoModelForCausalLM.from_config(
        built, attn_implementation="eager", **options
    )
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(0, 0.3)
    return model.float().eval()


def write(folder: Path, model: Any, tensors: Tensors | None = None, **changes: Any) -> Path:
    """A checkpoint as transformers writes it, or of other `tensors` and config keys."""
    model.save_pretrained(folder)
    if tensors is not None:
        save_file(tensors, folder / "model.safetensors")
    if changes:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return folder


def tensors_of(model: Any, folder: Path) -> Tensors:
    model.save_pretrained(folder)
    tensors: Tensors = load_file(folder / "model.safetensors")
    return tensors


def assert_same(folder: Path, model: Any) -> None:
    with torch.no_grad():
        got, want = worthit.load_model(folder)(IDS), model(IDS, use_cache=False).logits
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


def problems(folder: Path) -> tuple[str, ...]:
    with pytest.raises(SpecError) as caught:
        worthit.load_model(folder)
    assert str(folder) in str(caught.value)
    return caught.value.problems


# --- what is published --------------------------------------------------------------------------


def test_shards(tmp_path: Path) -> None:
    model = reference()
    model.save_pretrained(tmp_path, max_shard_size="5KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert_same(tmp_path, model)


@pytest.mark.parametrize(
    ("kind", "config", "base"),
    [
        ("gpt2", GPT2, "transformer."),
        ("bloom", BLOOM, "transformer."),
        ("opt", OPT, "model."),
        ("llama", LLAMA | {"tie_word_embeddings": True}, "model."),
    ],
)
def test_names_without_the_base(kind: str, config: Config, base: str, tmp_path: Path) -> None:
    # As the first GPT-2, BLOOM and OPT files are, and whatever a headless model writes.
    model = reference(kind, config)
    named = {n.removeprefix(base): t for n, t in tensors_of(model, tmp_path).items()}
    assert_same(write(tmp_path, model, named), model)


def test_buffers_that_old_writers_stored(tmp_path: Path) -> None:
    model = reference("gpt2", GPT2)
    tensors = tensors_of(model, tmp_path)
    for i in range(2):
        tensors[f"transformer.h.{i}.attn.bias"] = torch.ones(1, 1, 32, 32)
        tensors[f"transformer.h.{i}.attn.masked_bias"] = torch.tensor(-1e4)
    assert_same(write(tmp_path, model, tensors), model)

    model = reference()
    tensors = tensors_of(model, tmp_path)
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(2)
    assert_same(write(tmp_path, model, tensors), model)


@pytest.mark.parametrize(
    ("kind", "config"),
    [("mixtral", LLAMA | MOE), ("qwen3_moe", LLAMA | {"num_experts": 3, "head_dim": 4} | MOE)],
)
def test_experts_in_one_tensor(kind: str, config: Config, tmp_path: Path) -> None:
    config = {k: v for k, v in config.items() if kind == "mixtral" or k != "num_local_experts"}
    model = reference(kind, config)
    in_memory = {n: t.contiguous() for n, t in model.state_dict().items()}
    assert any(n.endswith("experts.gate_up_proj") for n in in_memory)
    assert_same(write(tmp_path, model, in_memory), model)


def test_layers_that_predict_further_tokens_are_left_out(tmp_path: Path) -> None:
    model = reference("deepseek_v3", DEEPSEEK)
    tensors = tensors_of(model, tmp_path)
    tensors["model.layers.3.eh_proj.weight"] = torch.ones(16, 32)
    tensors["model.layers.3.mlp.experts.0.up_proj.weight"] = torch.ones(8, 16)
    assert_same(write(tmp_path, model, tensors, num_nextn_predict_layers=1), model)


@pytest.mark.parametrize("prefix", ["language_model.model.", "model.language_model."])
def test_the_language_model_of_a_composite(prefix: str, tmp_path: Path) -> None:
    model = reference("gemma3_text", LLAMA | {"head_dim": 4, "sliding_window": 8})
    tensors = {n.replace("model.", prefix, 1): t for n, t in tensors_of(model, tmp_path).items()}
    tensors["vision_tower.patch.weight"] = torch.ones(3, 3)
    tensors["multi_modal_projector.weight"] = torch.ones(3, 3)
    write(tmp_path, model, tensors)
    text = json.loads((tmp_path / "config.json").read_text())
    composite = {"model_type": "gemma3", "dtype": "float32", "text_config": text}
    (tmp_path / "config.json").write_text(json.dumps(composite))
    assert_same(tmp_path, model)

    # Written back, it is the language model alone.
    worthit.save_model(worthit.load_model(tmp_path), tmp_path / "text")
    assert_same(tmp_path / "text", model)
    back = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "text")
    assert type(back).__name__ == "Gemma3ForCausalLM"


def test_a_head_that_repeats_the_embedding(tmp_path: Path) -> None:
    model = reference(tie_word_embeddings=True)
    tensors = tensors_of(model, tmp_path)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    assert_same(write(tmp_path, model, tensors), model)

    tensors["lm_head.weight"][0] += 1
    (problem,) = problems(write(tmp_path, model, tensors))
    assert problem == (
        "lm_head.weight: differs from model.embed_tokens.weight, and the config says that they "
        "are one (tie_word_embeddings); set it to false"
    )


def test_dtypes(tmp_path: Path) -> None:
    model = reference().bfloat16()
    model.save_pretrained(tmp_path)
    stored = worthit.load_model(tmp_path)
    assert {p.dtype for p in stored.parameters()} == {torch.bfloat16}
    assert stored(IDS).dtype == torch.bfloat16
    wide = worthit.load_model(tmp_path, dtype="fp32")
    assert {p.dtype for p in wide.parameters()} == {torch.float32}
    with pytest.raises(UnknownName, match="unknown dtype 'float31'; did you mean"):
        worthit.load_model(tmp_path, dtype="float31")


def test_one_precision_where_files_mix_them(tmp_path: Path) -> None:
    model = reference().bfloat16()
    tensors = tensors_of(model, tmp_path)
    tensors["model.norm.weight"] = tensors["model.norm.weight"].float()
    loaded = worthit.load_model(write(tmp_path, model, tensors))
    assert {p.dtype for p in loaded.parameters()} == {torch.bfloat16}


def test_a_router_bias_keeps_its_precision(tmp_path: Path) -> None:
    model = reference("deepseek_v3", DEEPSEEK)
    model.model.layers[1].mlp.gate.e_score_correction_bias += 0.123456789
    model.save_pretrained(tmp_path)
    loaded = worthit.load_model(tmp_path, dtype="bf16")
    bias = loaded.get_buffer("layers.1.ffn.router.selection_bias")
    assert bias.dtype == torch.float32
    assert bias[0].item() == pytest.approx(0.123456789)


def test_the_local_hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = reference()
    home = tmp_path / "models--some--llama"
    write(home / "snapshots" / "abc", model)
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text("abc")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with torch.no_grad():
        got = worthit.load_model("some/llama")(IDS)
    torch.testing.assert_close(got, model(IDS).logits, rtol=1e-4, atol=1e-4)
    with pytest.raises(MissingCapability, match="not in the local hub cache"):
        worthit.load_model("some/other")


# --- what is damaged ----------------------------------------------------------------------------


def test_everything_that_does_not_fit_at_once(tmp_path: Path) -> None:
    model = reference()
    tensors = tensors_of(model, tmp_path)
    for i in range(3):
        del tensors[f"model.layers.{i}.mlp.up_proj.weight"]
    del tensors["model.layers.1.self_attn.o_proj.weight"]
    tensors["model.norm.weight"] = torch.ones(17)
    tensors["model.layers.0.self_attn.q_proj.bias"] = torch.ones(16)
    tensors["visual.patch.weight"] = torch.ones(2)
    tensors["lm_head.weight"] = tensors["lm_head.weight"].to(torch.int32)
    assert problems(write(tmp_path, model, tensors)) == (
        "model.layers.1.self_attn.o_proj.weight: missing",
        "model.layers.{0-2}.mlp.up_proj.weight: missing (3 tensors)",
        "model.norm.weight: expected the shape [16], got [17]",
        "model.layers.0.self_attn.q_proj.bias: not a tensor of this model",
        "visual.patch.weight: not a tensor of this model",
        "lm_head.weight: expected one of F64, F32, F16, BF16, got I32",
    )


def test_a_config_that_lies(tmp_path: Path) -> None:
    write(tmp_path, reference(), num_hidden_layers=5)
    found = problems(tmp_path)
    assert "model.layers.{3-4}.input_layernorm.weight: missing (2 tensors)" in found
    write(tmp_path, reference(), num_hidden_layers=2)
    found = problems(tmp_path)
    assert "model.layers.2.input_layernorm.weight: not a tensor of this model" in found
    write(tmp_path, reference(), intermediate_size=20)
    (first, *rest) = problems(tmp_path)
    name, shapes = "model.layers.{0-2}.mlp.gate_proj.weight", "shape [20, 16], got [24, 16]"
    assert first == f"{name}: expected the {shapes} (3 tensors)"
    assert len(rest) == 2
    write(tmp_path, reference(), model_type="qwen3")
    assert any("q_norm.weight: missing" in problem for problem in problems(tmp_path))


def test_cut_off(tmp_path: Path) -> None:
    file = write(tmp_path, reference()) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    (problem,) = problems(tmp_path)
    assert problem.endswith("cut off")


def test_a_shard_missing(tmp_path: Path) -> None:
    reference().save_pretrained(tmp_path, max_shard_size="5KB")
    next(tmp_path.glob("*.safetensors")).unlink()
    (problem,) = problems(tmp_path)
    assert "names 1 files that are not here" in problem


def test_pickles_and_nothing(tmp_path: Path) -> None:
    file = write(tmp_path, reference()) / "model.safetensors"
    file.unlink()
    assert problems(tmp_path) == (f"{tmp_path}: holds a config and no weights (*.safetensors)",)
    torch.save({}, tmp_path / "pytorch_model.bin")
    assert "run code when they are read" in problems(tmp_path)[0]


def test_quantized(tmp_path: Path) -> None:
    write(tmp_path, reference(), quantization_config={"quant_method": "fp8"})
    (problem,) = problems(tmp_path)
    assert "weights are stored as fp8" in problem


def test_a_preset_holds_no_weights() -> None:
    with pytest.raises(SpecError, match="describes a model and holds no weights"):
        worthit.load_model("llama-3.1-8b")


# --- what is written ----------------------------------------------------------------------------


def test_written_in_shards_over_itself(tmp_path: Path) -> None:
    model = reference()
    write(tmp_path, model)
    # Parameters are mapped from the very file that is replaced.
    loaded = worthit.load_model(tmp_path)
    worthit.save_model(loaded, tmp_path, max_shard_bytes=4000)
    assert not (tmp_path / "model.safetensors").exists()
    assert len(list(tmp_path.glob("model-*-of-*.safetensors"))) > 2
    assert_same(tmp_path, model)
    back = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        torch.testing.assert_close(back(IDS).logits, model(IDS).logits)

    # And back in one file: the shards and their index go.
    worthit.save_model(worthit.load_model(tmp_path), tmp_path)
    names = {file.name for file in tmp_path.iterdir()}
    assert names >= {"config.json", "model.safetensors"}
    assert not any("index" in name or "-of-" in name or "partial" in name for name in names)
    assert_same(tmp_path, model)


def test_the_config_says_what_is_written(tmp_path: Path) -> None:
    write(tmp_path, reference(), rope_theta=20_000.0, some_note="")
    worthit.save_model(worthit.load_model(tmp_path, dtype="bf16"), tmp_path / "half")
    written = json.loads((tmp_path / "half" / "config.json").read_text())
    assert written["dtype"] == "bfloat16"
    assert written["some_note"] == ""
    assert worthit.load_model(tmp_path / "half").embedding.weight.dtype == torch.bfloat16


def test_a_fresh_model_with_a_config(tmp_path: Path) -> None:
    from worthit.spec.hf import from_config

    config = reference().config.to_dict()
    model = build(from_config(config))
    worthit.save_model(model, tmp_path, config=config)
    back = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        torch.testing.assert_close(model(IDS), back(IDS).logits, rtol=1e-4, atol=1e-4)
    with pytest.raises(SpecError, match="describes another model"):
        worthit.save_model(model, tmp_path, config=config | {"num_hidden_layers": 2})


def test_a_fresh_model_that_a_usual_type_describes(tmp_path: Path) -> None:
    attention = spec.Attention(n_heads=4, n_kv_heads=2, head_dim=8, rotary_dim=8, qk_norm="head")
    layer = spec.Layer(mixers=(attention,), ffn=spec.FeedForward(d_ff=20))
    mine = spec.ModelSpec(
        name="mine", d_model=16, vocab_size=50, context_len=64, layers=(layer, layer)
    )
    model = build(mine).eval()
    worthit.save_model(model, tmp_path)
    back = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert back.config.model_type == "qwen3"
    with torch.no_grad():
        torch.testing.assert_close(model(IDS), back(IDS).logits, rtol=1e-4, atol=1e-4)
        assert torch.equal(worthit.load_model(tmp_path)(IDS), model(IDS))


def test_a_loaded_model_that_was_changed(tmp_path: Path) -> None:
    loaded = worthit.load_model(write(tmp_path, reference()))
    norm = spec.Norm(eps=1e-3)
    loaded.spec = replace(loaded.spec, norm=norm).map_layers(lambda x: replace(x, norm=norm))
    worthit.save_model(loaded, tmp_path / "changed")
    assert json.loads((tmp_path / "changed" / "config.json").read_text())["rms_norm_eps"] == 1e-3


def test_a_model_of_ones_own(tmp_path: Path) -> None:
    # Which no Hugging Face config describes: worthit's own form, under our own names.
    window = spec.Attention(n_heads=2, n_kv_heads=1, head_dim=8, rotary_dim=8, window=4)
    mine = spec.ModelSpec(
        name="mine",
        d_model=16,
        vocab_size=50,
        context_len=64,
        layers=(
            spec.Layer(mixers=(window,), ffn=spec.FeedForward(d_ff=20, activation="relu2")),
            spec.Layer(mixers=(spec.Attention(n_heads=2, n_kv_heads=2, head_dim=8),), ffn=None),
        ),
    )
    model = build(mine).eval()
    worthit.save_model(model, tmp_path)
    back = worthit.load_model(tmp_path)
    with torch.no_grad():
        assert torch.equal(back(IDS), model(IDS))
    worthit.save_model(back, tmp_path / "again")
    shutil.copy(tmp_path / "again" / "model.safetensors", tmp_path)
    assert torch.equal(worthit.load_model(tmp_path)(IDS), model(IDS))


ATTENTION = spec.Attention(n_heads=2, n_kv_heads=1, head_dim=8, rotary_dim=8)
RWKV = spec.Rwkv(d_attention=32, head_dim=8, mix_rank=3, rank=5)
UNPUBLISHED: dict[str, spec.Mixer] = {
    "random features": replace(ATTENTION, n_features=12),
    "native sparse": replace(ATTENTION, sparse_keys=8, sparse_near=4),
    **{f"rwkv {n}": replace(RWKV, version=n) for n in (5, 6, 7)},
}


@pytest.mark.parametrize("mixer", UNPUBLISHED.values(), ids=UNPUBLISHED)
def test_mixers_that_no_type_publishes_are_kept(mixer: spec.Mixer, tmp_path: Path) -> None:
    ffn = spec.ChannelMix(d_ff=24, has_receptance=False)
    layers = (spec.Layer(mixers=(mixer,), ffn=ffn),) * 2
    mine = spec.ModelSpec(name="mine", d_model=16, vocab_size=50, context_len=64, layers=layers)
    model = build(mine).eval()
    worthit.save_model(model, tmp_path)
    back = worthit.load_model(tmp_path)
    assert back.spec.layers == layers
    with torch.no_grad():
        assert torch.equal(back(IDS), model(IDS))
