"""Whole models: what is stored, what stays, files and back, and bytes as `cost` predicts them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from nn.quant.models import IDS, MODELS, made
from nn.tolerances import assert_near

import worthit
from worthit.cost.memory import Split, weight_bytes
from worthit.cost.params import count_params
from worthit.errors import InputError, SpecError, UnknownName, WorthitError
from worthit.nn.decoder import build
from worthit.nn.inference import optimize, products
from worthit.nn.quant.quantize import nbytes, quantize
from worthit.spec.formats import format_of
from worthit.spec.hf import from_config
from worthit.spec.model import ModelSpec
from worthit.spec.resolve import resolve

KINDS = ("tied", "biases", "experts", "no attention")
FORMATS = ("int8", "int8-g32", "int4-g32", "int4-g64", "q4_1", "fp8", "ternary")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("weights", FORMATS)
def test_files_give_back_the_very_logits(kind: str, weights: str, tmp_path: Path) -> None:
    model = made(kind)
    done = quantize(model, weights)
    with torch.inference_mode():
        known = model(IDS)
        worthit.save_model(model, tmp_path)
        loaded = worthit.load_model(tmp_path)
        assert torch.equal(loaded(IDS), known)
        assert loaded.quantization == done.config
        assert nbytes(loaded) == done.bytes_after
        # What is judged of the folder is what was stored, with nothing strange about it.
        found = resolve(str(tmp_path))
        assert found.warnings == ()
        assert found.model.precision.weights == weights
        assert found.model.precision.embeddings == "int8"
        # Saved once more, and widened.
        worthit.save_model(loaded, tmp_path / "again")
        assert torch.equal(worthit.load_model(tmp_path / "again")(IDS), known)
        wide = worthit.load_model(tmp_path, packed=False)
        assert wide.quantization is None
        assert_near(wide(IDS), known)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("weights", ["int8", "int4-g64", "fp8", "ternary"])
def test_laid_out_for_inference_it_says_the_same(kind: str, weights: str) -> None:
    model = made(kind)
    quantize(model, weights)
    ids = IDS.repeat(2, 1)
    with torch.inference_mode():
        known = model(ids)
        optimize(model)
        assert_near(model(ids).to(known.dtype), known)
        cache = model.new_cache()
        parts = [model(ids[:, :5], cache=cache)]
        parts += [model(ids[:, i : i + 1], cache=cache) for i in range(5, 8)]
        assert_near(torch.cat(parts, dim=1).to(known.dtype), known)


def test_wide_copies_are_for_many_rows() -> None:
    torch.manual_seed(0)
    ids = torch.randint(0, 96, (1, 40))
    models = []
    for has_wide_copies in (False, True):
        model = made()
        quantize(model, "int4-g32")
        models.append(optimize(model, has_wide_copies=has_wide_copies))
    plain, both = models
    assert products(both) == products(plain)
    with torch.inference_mode():
        assert torch.equal(both(ids[:, :9]), plain(ids[:, :9]))  # the packed product
        # Widened once in fp32 and rounded, or step by step in bf16; fewer than 96 rows are neither.
        assert_near(both(ids).bfloat16(), plain(ids).bfloat16())
        assert not torch.equal(both(ids), plain(ids))  # the copies, rounded to bf16


def test_what_is_multiplied_by_what() -> None:
    model = made()
    quantize(model, "int4-g32")
    assert products(model) == {"stored": 13}
    # Queries, keys and values are one product.
    assert products(optimize(model)) == {"int4": 8, "int8": 1}
    model = made()
    quantize(model, "fp8", embeddings=None)
    assert products(optimize(model)) == {"dense": 9}
    model = made(dtype=torch.float32)
    quantize(model, "int4-g32")
    assert products(optimize(model)) == {"dense": 9}


@pytest.mark.parametrize("weights", FORMATS)
def test_bytes_are_those_that_cost_predicts(weights: str) -> None:
    spec = from_config(
        {**MODELS["tied"], "hidden_size": 512, "intermediate_size": 1024, "vocab_size": 4096}
    )
    model = build(spec).bfloat16()
    matrices = sum(p.numel() for p in model.layers.parameters() if p.ndim == 2)
    norms = count_params(spec).total - matrices - 4096 * 512
    rows = sum(p.shape[0] for p in model.layers.parameters() if p.ndim == 2)
    done = quantize(model, weights)
    assert done.bytes_after == nbytes(model)
    # Exactly: the format's bits of every number, 16 of a norm's; and one scale a row of int8, fp8
    # and ternary, which their formats leave out.
    shared = (rows if weights in ("int8", "fp8", "ternary") else 0) + 4096
    bits = format_of(weights).bits * matrices + 8 * 4096 * 512 + 16 * (norms + shared)
    assert done.bytes_after * 8 == bits
    predicted = weight_bytes(model.spec, Split())
    assert done.bytes_after == pytest.approx(predicted, rel=0.02)
    assert done.bytes_before == 2 * count_params(spec).total
    assert done.n_params_stored + done.n_params_kept == count_params(spec).total


def test_routers_stay_and_narrow_rows_take_narrow_groups() -> None:
    model = made("experts")
    done = quantize(model, "int4-g128")
    assert "a router" in done.kept.values()
    assert type(model.layers[0].ffn.router.linear) is torch.nn.Linear
    # Rows of 64 and of 32: the experts' second matrices.
    assert done.config["formats"]["layers.0.mixers.0.q_proj"] == "int4-g64"
    assert done.config["formats"]["layers.1.ffn.experts.down"] == "int4-g32"
    odd = {**MODELS["tied"], "hidden_size": 40, "intermediate_size": 64, "head_dim": 8}
    model = build(from_config(odd)).bfloat16()
    done = quantize(model, "int4-g32")
    assert set(done.kept) >= {"layers.0.mixers.0.q_proj", "layers.1.ffn.up"}
    assert "layers.0.ffn.down" not in done.kept
    assert done.kept["layers.1.ffn.up"] == "40 columns, which no group divides"


def test_a_model_of_worthits_own_form(tmp_path: Path) -> None:
    spec: ModelSpec = made().spec
    layers = (spec.layers[0], made("no attention").spec.layers[0])
    from dataclasses import replace

    model = build(replace(spec, layers=layers)).bfloat16().eval()
    quantize(model, "int4-g64")
    worthit.save_model(model, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert "model_type" not in config or "layers" in config
    assert config["quantization_config"]["weights"] == "int4-g64"
    with torch.inference_mode():
        assert torch.equal(worthit.load_model(tmp_path)(IDS), model(IDS))
    assert resolve(str(tmp_path)).model.precision.weights == "int4-g64"


def test_what_cannot_be_done_is_said(tmp_path: Path) -> None:
    model = made()
    with pytest.raises(UnknownName, match="did you mean int4-g"):
        quantize(model, "int4")
    with pytest.raises(UnknownName, match="pick one of awq, gptq, rtn"):
        quantize(model, "int8", method="hqq")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="gptq needs calibration text"):
        quantize(model, "int4-g32", method="gptq")
    with pytest.raises(InputError, match="does not help three values"):
        quantize(model, "ternary", method="awq", calibration=IDS)
    with pytest.raises(InputError, match=r"must be ids .sequences, n., got the shape \[8\]"):
        quantize(model, "int4-g32", method="awq", calibration=IDS[0])
    quantize(model, "int8")
    with pytest.raises(WorthitError, match="int8 already; load it with packed=False"):
        quantize(model, "int8")
    with pytest.raises(WorthitError, match="load it again"):
        quantize(optimize(made()), "int8")


BAD_FILES = {
    "unknown format": ({"weights": "q6_k"}, "unknown format of stored weights 'q6_k'"),
    "no format": ({"weights": None}, "got 'missing'"),
    "no format of tables": ({"embeddings": None}, "does not say what they are stored in"),
    "another format": ({"weights": "int8"}, "expected the shape"),
    "formats": ({"formats": 3}, "expected an object from matrices to formats"),
}


@pytest.mark.parametrize(("change", "says"), BAD_FILES.values(), ids=BAD_FILES)
def test_files_that_do_not_fit_are_refused(
    change: dict[str, Any], says: str, tmp_path: Path
) -> None:
    model = made()
    quantize(model, "int4-g32")
    worthit.save_model(model, tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    config["quantization_config"] |= change
    path.write_text(json.dumps(config))
    with pytest.raises(InputError, match=says):
        worthit.load_model(tmp_path)


def test_codes_of_what_is_no_matrix_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    model = made()
    quantize(model, "int4-g32")
    worthit.save_model(model, tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    tensors["layers.0.nothing.codes"] = tensors.pop("layers.0.ffn.up.codes")
    save_file(tensors, file)
    with pytest.raises(SpecError, match=r"nothing\.codes: not a matrix of this model"):
        worthit.load_model(tmp_path)
