"""MXFP4 against the code that transformers loads gpt-oss with, fp8 blocks against a plain loop."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from worthit.errors import SpecError

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from nn.tolerances import assert_near  # noqa: E402  # torch may be absent
from safetensors.torch import load_file, save_file  # noqa: E402

from worthit.nn.load import load_model, save_model  # noqa: E402
from worthit.nn.weights.quantized import E2M1, scale_blocks, unpack_mxfp4  # noqa: E402

SIZES: dict[str, Any] = {
    "vocab_size": 40,
    "hidden_size": 64,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
}
IDS = torch.arange(3, 17)[None]


@pytest.fixture(autouse=True)
def _quiet() -> None:
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)


def random_packed(experts: int, out: int, inner: int) -> tuple[Any, Any]:
    generator = torch.Generator().manual_seed(out)
    blocks = torch.randint(
        0, 256, (experts, out, inner // 32, 16), dtype=torch.uint8, generator=generator
    )
    scales = torch.randint(
        122, 126, (experts, out, inner // 32), dtype=torch.uint8, generator=generator
    )
    return blocks, scales


def test_e2m1_has_one_bit_of_mantissa() -> None:
    # (-1)^s 2^(e-1) (1 + m/2), and m/2 where e is 0: the format's own definition.
    for code, value in enumerate(E2M1):
        sign, e, m = code >> 3, code >> 1 & 3, code & 1
        size = 2.0 ** (e - 1) * (1 + m / 2) if e else m / 2
        assert value == (-size if sign else size)


def test_mxfp4_is_transformers() -> None:
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    blocks, scales = random_packed(3, 10, 96)
    want = convert_moe_packed_tensors(blocks, scales, dtype=torch.float32)
    assert want.shape == (3, 96, 10)
    assert torch.equal(unpack_mxfp4(blocks, scales).float(), want)


def test_fp8_blocks() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(200, 130, generator=generator).to(torch.float8_e4m3fn)
    scale = torch.rand(2, 2, generator=generator)
    got = scale_blocks(weight, scale)
    for row, column in ((0, 0), (127, 128), (128, 127), (199, 129)):
        want = weight[row, column].float() * scale[row // 128, column // 128]
        assert got[row, column] == want
    assert got.shape == weight.shape


def test_gpt_oss_as_published(tmp_path: Path) -> None:
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    torch.manual_seed(0)
    config = transformers.GptOssConfig(
        **SIZES, num_local_experts=4, num_experts_per_tok=2, sliding_window=8
    )
    model = transformers.AutoModelForCausalLM.from_config(
        config, attn_implementation="eager", experts_implementation="eager"
    )
    model = model.float().eval()
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(0, 0.2)
        packed = {}
        for i, layer in enumerate(model.model.layers):
            for name, out, inner in (("gate_up_proj", 64, 64), ("down_proj", 64, 32)):
                blocks, scales = random_packed(4, out, inner)
                wide = convert_moe_packed_tensors(blocks, scales, dtype=torch.float32)
                getattr(layer.mlp.experts, name).copy_(wide)
                where = f"model.layers.{i}.mlp.experts.{name}"
                packed |= {f"{where}_blocks": blocks, f"{where}_scales": scales}
    model.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    for name in packed:
        tensors.pop(name.removesuffix("_blocks").removesuffix("_scales"), None)
    save_file(tensors | packed, file)
    written = json.loads((tmp_path / "config.json").read_text())
    written["quantization_config"] = {"quant_method": "mxfp4"}
    (tmp_path / "config.json").write_text(json.dumps(written))

    ours = load_model(tmp_path)
    with torch.no_grad():
        want = model(IDS, use_cache=False).logits
        assert_near(ours(IDS), want)
    # What is written back is plain, and says so.
    save_model(ours, tmp_path / "plain")
    written = json.loads((tmp_path / "plain" / "config.json").read_text())
    assert "quantization_config" not in written
    with torch.no_grad():
        assert_near(load_model(tmp_path / "plain")(IDS), want)

    del packed["model.layers.1.mlp.experts.down_proj_scales"]
    save_file(tensors | packed, file)
    with pytest.raises(SpecError, match=r"layers\.1\.mlp\.experts\.down_proj: missing"):
        load_model(tmp_path)


def test_fp8_as_deepseek_publishes(tmp_path: Path) -> None:
    torch.manual_seed(0)
    # Wider than a block, and no multiple of one.
    sizes = SIZES | {"hidden_size": 160, "intermediate_size": 132}
    config = transformers.LlamaConfig(**sizes)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    model = model.float().eval()
    scales = {}
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.normal_(0, 0.1)
            if "proj" not in name:
                continue
            rows, columns = (-(-n // 128) for n in p.shape)
            scale = torch.rand(rows, columns) + 0.5
            stored = p.to(torch.float8_e4m3fn)
            scales[name] = (stored, scale)
            for r in range(rows):
                for c in range(columns):
                    part = (slice(r * 128, r * 128 + 128), slice(c * 128, c * 128 + 128))
                    p[part] = stored[part].float() * scale[r, c]
    model.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    for name, (stored, scale) in scales.items():
        tensors |= {name: stored, f"{name}_scale_inv": scale}
    save_file(tensors, file)
    written = json.loads((tmp_path / "config.json").read_text())
    written["quantization_config"] = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    (tmp_path / "config.json").write_text(json.dumps(written))
    with torch.no_grad():
        want = model(IDS, use_cache=False).logits
        assert_near(load_model(tmp_path, dtype="fp32")(IDS), want)
    plain = load_model(tmp_path)
    assert {p.dtype for p in plain.parameters()} == {torch.float32}
