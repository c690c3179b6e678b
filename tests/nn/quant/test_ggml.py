"""Blocks of a `.gguf` that stay packed, against the same file widened."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from decode.tiny import checkpoint
from nn.gguf_files import BASE, RMS, in_pairs, reference, write
from nn.quant.ggufs import llama_gguf
from nn.tolerances import assert_near

import worthit
from worthit.errors import SpecError
from worthit.nn.inference import optimize, products
from worthit.nn.quant import ggml
from worthit.nn.quant.linear import Stored
from worthit.nn.quant.quantize import nbytes
from worthit.nn.weights.names import SAME, STACKED, TRANSPOSED, Rule, each, split

IDS = torch.randint(3, 300, (2, 17), generator=torch.Generator().manual_seed(0))
KINDS = tuple(ggml.GRID_OF)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("table", KINDS)
def test_in_fp32_nothing_is_rounded(kind: str, table: str, tmp_path: Path) -> None:
    path = llama_gguf(tmp_path / "model.gguf", kind, table=table)
    wide = worthit.load_model(path)
    packed = worthit.load_model(path, packed=True, dtype="fp32")
    found = {name: m for name, m in packed.named_modules() if isinstance(m, Stored)}
    assert len(found) == 13  # six matrices a layer (gate and value are one), and the table
    for name, module in found.items():
        # Q4_1's zeros are sums of two fp16 numbers, which fp32 nearly always holds.
        torch.testing.assert_close(
            module.wide(), wide.get_submodule(name).weight.data, rtol=0, atol=1e-7
        )
    with torch.inference_mode():
        torch.testing.assert_close(packed(IDS), wide(IDS), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_in_bf16_it_says_nearly_the_same(kind: str, tmp_path: Path) -> None:
    path = llama_gguf(tmp_path / "model.gguf", kind)
    wide = worthit.load_model(path, dtype="bf16")
    packed = worthit.load_model(path, packed=True)
    assert packed.dtype == torch.bfloat16
    with torch.inference_mode():
        known = wide(IDS)
        assert_near(packed(IDS), known)
        optimize(packed)
        if kind == "Q8_0":
            # One scale a row, so that every weight is rounded once more: by 3.5 sigma / 127 over
            # sqrt(12) of Gaussian ones, 0.8 %, in each of 13 matrices.
            apart = (packed(IDS) - known).float().abs().mean()
            assert apart < 1.2 * 0.008 * 13**0.5 * known.float().abs().mean()
        else:
            assert_near(packed(IDS).bfloat16(), known)
    by = products(packed)
    assert by == ({"int8": 9} if kind == "Q8_0" else {"int4": 8, "int8": 1})


def test_bytes_are_nearly_those_of_the_file(tmp_path: Path) -> None:
    path = llama_gguf(tmp_path / "model.gguf", "Q4_1")
    packed = worthit.load_model(path, packed=True)
    matrices = 2 * (2 * 64 * 64 + 2 * 32 * 64 + 3 * 64 * 128)
    table = packed.spec.vocab_size * 64
    norms = 2 * (2 * 64) + 64
    assert nbytes(packed) == matrices * 5 // 8 + table * 34 // 32 + 2 * norms


def test_it_is_saved_packed(tmp_path: Path) -> None:
    path = llama_gguf(tmp_path / "model.gguf", "Q4_0", table="F32")
    packed = worthit.load_model(path, packed=True)
    assert packed.quantization == {
        "quant_method": "worthit",
        "weights": "int4-g32",
        "embeddings": None,
        "experts": None,
        "method": "gguf",
    }
    worthit.save_model(packed, tmp_path / "out")
    with torch.inference_mode():
        assert torch.equal(worthit.load_model(tmp_path / "out")(IDS), packed(IDS))


def test_experts_and_biases(tmp_path: Path) -> None:
    sizes = {**BASE, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
    config = {**sizes, "shared_expert_intermediate_size": 64, "norm_topk_prob": False}
    model = reference("qwen2_moe", config)
    import gguf

    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN2MOE, 2)
    arrays = {}
    for name, tensor in model.state_dict().items():
        found = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if found is not None and "exps" not in found:
            arrays[found] = tensor.numpy()
    for i in range(2):
        experts = model.model.layers[i].mlp.experts
        up = experts.gate_up_proj.detach().numpy()
        half = up.shape[1] // 2
        arrays[f"blk.{i}.ffn_gate_exps.weight"] = up[:, :half].copy()
        arrays[f"blk.{i}.ffn_up_exps.weight"] = up[:, half:].copy()
        arrays[f"blk.{i}.ffn_down_exps.weight"] = experts.down_proj.detach().numpy()
    about = {"expert_count": 4, "expert_used_count": 2, "expert_feed_forward_length": 32}
    path = write(tmp_path / "moe.gguf", "qwen2moe", {**RMS, **about}, arrays, "Q8_0")
    ids = IDS % 40
    wide = worthit.load_model(path)
    packed = worthit.load_model(path, packed=True, dtype="fp32")
    assert type(packed.layers[0].ffn.experts.up).__name__ == "StoredStack"
    assert packed.layers[0].mixers[0].q_proj.bias is not None
    with torch.inference_mode():
        torch.testing.assert_close(packed(ids), wide(ids), rtol=1e-5, atol=1e-5)
        quick = optimize(worthit.load_model(path, packed=True))
        assert_near(
            quick(ids).bfloat16(), optimize(worthit.load_model(path, dtype="bf16"))(ids).bfloat16()
        )


def test_which_rows_a_layout_moves() -> None:
    def rows(layout: object, *shapes: tuple[int, ...]) -> list[list[int]] | None:
        names = tuple(f"t{i}" for i in range(len(shapes)))
        found = ggml.moved(Rule(("x",), names, layout), shapes)  # type: ignore[arg-type]
        return None if found is None else [t.flatten().tolist() for t in found]

    assert rows(SAME, (3, 64)) == [[0, 1, 2]]
    assert rows(STACKED, (2, 64), (3, 64)) == [[0, 1, 2, 3, 4]]
    assert rows(split(1, 2), (3, 64)) == [[0], [1, 2]]
    flipped = each(lambda t: t.flip(0), lambda t: t.flip(0))
    assert rows(flipped, (3, 64)) == [[2, 1, 0]]
    pairs = each(lambda t: torch.tensor(in_pairs(t.numpy(), 1)), lambda t: t)
    assert rows(pairs, (4, 64)) == [[0, 2, 1, 3]]
    # What is not a move of whole rows.
    assert rows(TRANSPOSED, (3, 64)) is None
    assert rows(each(lambda t: t - 1, lambda t: t), (3, 64)) is None
    assert rows(each(lambda t: t * 2, lambda t: t), (3, 64)) is None
    assert rows(each(lambda t: t + 2, lambda t: t), (3, 64)) is None
    assert rows(each(lambda t: t.flip(1), lambda t: t), (3, 64)) is None
    assert rows(each(lambda t: t[:, 0], lambda t: t), (3, 64)) is None


def test_files_with_nothing_to_keep_are_refused(tmp_path: Path) -> None:
    path = llama_gguf(tmp_path / "model.gguf", "F32", table="F32")
    with pytest.raises(SpecError, match=r"nothing in it can stay packed: .*, it has F32"):
        worthit.load_model(path, packed=True)
    checkpoint(tmp_path / "folder")
    with pytest.raises(SpecError, match="its weights are not packed; `worthit quantize`"):
        worthit.load_model(tmp_path / "folder", packed=True)


def test_other_blocks_are_widened_beside_them(tmp_path: Path) -> None:
    path = llama_gguf(tmp_path / "model.gguf", "Q5_0", table="Q8_0")
    packed = worthit.load_model(path, packed=True, dtype="fp32")
    assert [n for n, m in packed.named_modules() if isinstance(m, Stored)] == ["embedding"]
    wide = worthit.load_model(path)
    with torch.inference_mode():
        torch.testing.assert_close(packed(IDS), wide(IDS), rtol=1e-5, atol=1e-5)
