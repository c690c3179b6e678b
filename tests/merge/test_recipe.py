"""Recipes: everything that is wrong with one is said at once, with its path, before any weight."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from merge.tiny import CONFIG, RECIPES, shapes, tensors, write, write_all

from worthit.cli.main import run
from worthit.errors import InputError
from worthit.merge.describe import plan_json, plan_lines
from worthit.merge.plan import plan_merge, plan_text
from worthit.merge.read_recipe import load_recipe, parse
from worthit.merge.settings import Condition


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_all(tmp_path_factory.mktemp("checkpoints"))


def problems_of(text: str) -> list[str]:
    return parse(text)[1]


def refused(text: str, folder: Path) -> tuple[str, ...]:
    with pytest.raises(InputError) as caught:
        plan_text(text, folder=folder, name="r.yml")
    assert caught.value.context == "r.yml"
    return caught.value.problems


# --- the text -----------------------------------------------------------------------------------


def test_all_problems_at_once_with_their_paths() -> None:
    found = problems_of("""
merge_method: ties
base_model: base
models:
  - model: a
    parameters: {wieght: 0.5, density: [0.1, 2], t: 3}
  - model: b
    parameters: {weight: [{filtre: mlp, value: x}, 0.2], density: .nan}
  - {mdel: c}
  - model: a
parameters: {normalize: 3, int8_mask: true}
dtype: float17
tokenizer: {sauce: union, pad_to_multiple_of: 0, tokens: {x: {source: {kind: nil}}}}
chat_template: chatml
parmeters: {}
""")
    for expected in (
        "parmeters: not a known key; did you mean parameters?",
        "models[0].parameters.wieght: not a known key; did you mean weight?",
        "models[0].parameters.density[1]: must lie between 0 and 1, got 2",
        "models[1].parameters.weight[0].filtre: not a known key; did you mean filter?",
        "models[1].parameters.weight[0].value: must be a number, got 'x'",
        "models[1].parameters.weight[1]: must be a table among tables; write {value: 0.2}",
        "models[1].parameters.density: must be a finite number, got nan",
        "models[2].mdel: not a known key; did you mean model?",
        "models[2].model: missing; give a folder or a hub id",
        "models: a is listed 2 times; list it once",
        "parameters.normalize: must be true or false, got 3",
        "tokenizer.sauce: not a known key; did you mean source?",
        "tokenizer.pad_to_multiple_of: must be a whole number above 0, got 0",
        "tokenizer.tokens.x.source.kind: must be zero or model_token, got 'nil'",
    ):
        assert expected in found, found
    assert sum("dtype: unknown format 'float17'" in p for p in found) == 1
    assert sum("chat_template: must be auto" in p for p in found) == 1
    assert len(found) == 16


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "a recipe is a table, got null"),
        ("a: 1\na: 2", "line 2, column 1: broken YAML: 'a' is given twice"),
        ("a: [1", "broken YAML: expected ',' or ']'"),
        ("a: !!python/object/apply:os.getcwd []", "broken YAML: could not determine a constructor"),
        ("merge_method: tis\nmodels: [a]", "did you mean ties"),
        ("merge_method: karcher\nmodels: [a]", "not one of the methods here: linear"),
        ("models: [a]", "merge_method: missing; pick one of linear"),
        ("merge_method: ties", "either models or slices, got neither"),
        ("merge_method: ties\nmodels: [a]\nslices: [b]", "either models or slices, got both"),
        ("merge_method: ties\nmodules: {x: 1}", "modules: not read here; use models, or slices"),
        ("merge_method: ties\nmodels: a", "models: must be a list, got 'a'"),
        ("merge_method: ties\nmodels: [a]", "base_model: missing; ties needs the model that"),
        ("merge_method: slerp\nbase_model: a\nmodels: [a, b, c]", "slerp merges 2 models, got 3"),
        ("merge_method: slerp\nmodels: [a, b]", "base_model: missing; slerp needs one end"),
        ("merge_method: model_stock\nbase_model: a\nmodels: [b]", "2 or more models besides the"),
        ("merge_method: passthrough\nmodels: [a, b]", "passthrough merges 1 model, got 2"),
        ("merge_method: linear\nmodels: [3]", "models[0]: must be a table with a model, got 3"),
        (
            "merge_method: linear\nmodels: [a]\nparameters: 3",
            "must be a table of parameters, got 3",
        ),
        (
            "merge_method: dare_ties\nbase_model: a\nmodels: [b]\nparameters: {rescale: l2}",
            "parameters.rescale: must be true, false, l1 or density, got 'l2'",
        ),
        (
            "merge_method: passthrough\nslices: [{sources: [{model: a, layer_range: [3, 2]}]}]",
            "slices[0].sources[0].layer_range: must be [first, one past the last]",
        ),
        (
            "merge_method: linear\nslices: [{sources: [{model: a, layer_range: [0, 2]}, "
            "{model: b, layer_range: [0, 3]}]}]",
            "slices[0].sources: all sources of a slice need as many layers, got 2, 3",
        ),
        (
            "merge_method: ties\nbase_model: c\nslices: [{sources: [{model: a, "
            "layer_range: [0, 2]}]}]",
            "slices[0].sources: must list the base_model c too",
        ),
        (
            "merge_method: linear\nmodels: [a]\ntokenizer_source: base\ntokenizer: {}",
            "tokenizer: must not stand beside tokenizer_source",
        ),
    ],
)
def test_one_thing_wrong(text: str, said: str) -> None:
    assert any(said in p for p in problems_of(text)), problems_of(text)


def test_what_is_left_out_is_said() -> None:
    recipe, problems = parse(RECIPES["slerp"] + "  int8_mask: true\n  density: 0.5\n")
    assert problems == []
    assert recipe is not None
    assert recipe.warnings == (
        "parameters.int8_mask: ignored: no mask is kept in memory here",
        "parameters.density: ignored: the method has no such parameter",
    )


def test_the_forms_of_a_model() -> None:
    recipe, problems = parse("""
merge_method: linear
models:
  - model: {model: {path: org/name, revision: v1}, lora: {path: org/adapter}}
    parameters: {weight: 1e-3}
  - {model: here+there, parameters: {weight: 1}}
""")
    assert problems == []
    assert recipe is not None
    assert recipe.models == ("org/name@v1+org/adapter", "here+there")
    assert recipe.slices[0].sources[0].parameters["weight"][0].values == (0.001,)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        load_recipe(tmp_path / "none.yml")
    (tmp_path / "bytes.yml").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="is not UTF-8 text"):
        load_recipe(tmp_path / "bytes.yml")
    with pytest.raises(InputError, match="cannot be read"):
        load_recipe(tmp_path)


def test_a_gradient_is_linear_between_its_points() -> None:
    condition = Condition(values=(0.0, 0.5, 0.3))
    assert [condition.at("", d) for d in (0.0, 0.25, 0.5, 1.0)] == [0.0, 0.25, 0.5, 0.3]
    assert Condition(values=(True, False)).at("", 0.9) is True
    assert Condition(values=(1.0,), filter="mlp").at("self_attn.q", 0.0) is None
    assert Condition(values=(1.0,), filter="*").at("self_attn.q", 0.0) == 1.0


# --- the checkpoints ----------------------------------------------------------------------------


def test_models_that_are_not_there(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    write(tmp_path / "pickled", {})
    (tmp_path / "pickled" / "model.safetensors").unlink()
    (tmp_path / "pickled" / "pytorch_model.bin").write_bytes(b"x")
    found = refused(
        "merge_method: ties\nbase_model: ./none\nmodels: [nobody/nothing-here, "
        f"{tmp_path}/empty, {tmp_path}/pickled, ./x.gguf]",
        folder,
    )
    assert any(p.startswith("base_model: ./none: no such file or folder") for p in found)
    assert any("models[0].model: nobody/nothing-here" in p and "hf download" in p for p in found)
    assert any("models[1].model" in p and "no config.json in this folder" in p for p in found)
    assert any("models[2].model" in p and "run code when they are read" in p for p in found)
    assert len(found) == 5


def test_a_recipe_and_its_checkpoints_at_once(folder: Path) -> None:
    found = refused(
        "merge_method: ties\nbase_model: base\nmodels: [{model: zzz}]\ndtyp: float32", folder
    )
    assert len(found) == 2
    assert found[0].startswith("dtyp: not a known key")
    assert found[1].startswith("models[0].model: zzz")


def test_missing_and_misshaped_tensors_are_grouped(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "base", tmp_path / "base")
    less = {k: v for k, v in tensors("a").items() if "k_proj" not in k}
    less["model.norm.weight"] = torch.ones(9)
    write(tmp_path / "less", less)
    found = refused(
        "merge_method: linear\nmodels: [{model: base}, {model: less}]\nparameters: {weight: 1}",
        tmp_path,
    )
    assert found == (
        "model.layers.{0-2}.self_attn.k_proj.weight: missing in less, and there in base "
        "(3 tensors)",
        "model.norm.weight: [8] in base, [9] in less",
    )


def test_tables_of_different_size_ask_for_a_tokenizer_source(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "base", tmp_path / "base")
    write(tmp_path / "more", tensors("a", vocab=14), vocab_size=14)
    found = refused("merge_method: linear\nmodels: [base, more]\nparameters: {weight: 1}", tmp_path)
    assert found == (
        "model.embed_tokens.weight: [12, 8] in base, [14, 8] in more; "
        "write tokenizer_source: union, or base",
        "lm_head.weight: [12, 8] in base, [14, 8] in more; write tokenizer_source: union, or base",
    )


def test_layers_that_do_not_exist(folder: Path, tmp_path: Path) -> None:
    found = refused(
        "merge_method: passthrough\nslices: [{sources: [{model: a, layer_range: [1, 4]}]}]", folder
    )
    assert found == (
        "slices[0].sources[0].layer_range: ends at 4, and a has 3 layers; end at 3 at most",
    )
    write(tmp_path / "deep", tensors("a", n_layers=4), num_hidden_layers=4)
    shutil.copytree(folder / "base", tmp_path / "base")
    found = refused("merge_method: linear\nmodels: [base, deep]\nparameters: {weight: 1}", tmp_path)
    assert found == ("models: have different numbers of layers: 3 in base, 4 in deep; use slices",)


def test_configs_that_mean_different_things(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "base", tmp_path / "base")
    write(tmp_path / "heads", tensors("a"), num_attention_heads=4)
    write(tmp_path / "rope", tensors("a"), rms_norm_eps=1e-5)
    found = refused(
        "merge_method: linear\nmodels: [base, heads]\nparameters: {weight: 1}", tmp_path
    )
    assert found == (
        "num_attention_heads: 2 in base, 4 in heads; their weights mean different things",
    )
    plan = plan_text(
        "merge_method: linear\nmodels: [base, rope]\nparameters: {weight: 1}", folder=tmp_path
    )
    assert plan.warnings == (
        "rms_norm_eps: 1e-06 in base, 1e-05 in rope; the output keeps that of base",
    )


def test_quantized_weights_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "q", tensors("a"), quantization_config={"quant_method": "gptq"})
    found = refused("merge_method: linear\nmodels: [q]\nparameters: {weight: 1}", tmp_path)
    assert len(found) == 1
    assert "quantize the result" in found[0]
    plan_text("merge_method: passthrough\nmodels: [q]", folder=tmp_path)


def test_parameters_that_nobody_gave(folder: Path) -> None:
    found = refused(
        "merge_method: ties\nbase_model: base\n"
        "models: [{model: a, parameters: {weight: {filter: mlp, value: 1}}}]",
        folder,
    )
    assert found == (
        "parameters.weight for a: missing, first at model.embed_tokens.weight; ties needs it",
    )
    found = refused("merge_method: slerp\nbase_model: a\nmodels: [a, b]", folder)
    assert found == ("parameters.t: missing, first at model.embed_tokens.weight; slerp needs it",)
    found = refused(
        "merge_method: linear\nmodels: [{model: a, parameters: {weight: [1, -1]}}, "
        "{model: b, parameters: {weight: [1, 1]}}]",
        folder,
    )
    assert found == (
        "parameters.weight: sums to 0 at model.layers.2.input_layernorm.weight, and cannot be "
        "normalized",
    )
    found = refused(
        "merge_method: della\nbase_model: base\nmodels: [{model: a, parameters: "
        "{weight: 1, density: 0.9, epsilon: 0.2}}]",
        folder,
    )
    assert "density=0.9 and epsilon=0.2" in found[0]


def test_a_head_that_is_the_embedding_stands_in(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "base", tmp_path / "base")
    tied = {k: v for k, v in tensors("a").items() if k != "lm_head.weight"}
    write(tmp_path / "tied", tied, tie_word_embeddings=True)
    plan = plan_text(
        "merge_method: linear\nmodels: [tied, base]\nparameters: {weight: 1}", folder=tmp_path
    )
    head = next(job for job in plan.jobs if job.name == "lm_head.weight")
    assert [stored.name for _, stored in head.inputs] == [
        "model.embed_tokens.weight",
        "lm_head.weight",
    ]


# --- the plan, shown ----------------------------------------------------------------------------


def test_the_plan_says_what_each_layer_gets(folder: Path) -> None:
    path = folder / "shown.yml"
    path.write_text(RECIPES["task_arithmetic"])
    plan = plan_merge(path)
    rows = [" ".join(line.split()) for line in plan_lines(plan)]
    assert "weight a layers.self_attn 0.3" in rows
    assert "weight a layers.mlp 0.1 0.4 0.8" in rows
    assert "weight b everywhere -0.6" in rows
    assert "lambda all everywhere 0.7" in rows
    record: dict[str, Any] = plan_json(plan)
    assert {t["name"] for t in record["tensors"]} == set(shapes())
    assert record["n_bytes"] == 4 * sum(torch.Size(s).numel() for s in shapes().values())


def test_the_command(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, bad = folder / "good.yml", folder / "bad.yml"
    good.write_text(RECIPES["slices-of-ties"])
    bad.write_text("merge_method: ties\nbase_model: base\nmodels: [a]\n")
    assert run(["merge", str(good), "--plan"]) == 0
    assert "layers 0-1: a 0-1, b 1-2, base 0-1" in capsys.readouterr().out
    assert run(["merge", str(bad), str(tmp_path / "out")]) == 2
    assert "bad.yml: parameters.weight for a: missing" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert run(["merge", str(good)]) == 2
    assert "Missing argument 'OUT'" in capsys.readouterr().err


def test_the_config_of_these_tests_is_a_model() -> None:
    from worthit.spec.hf import from_config

    assert from_config(CONFIG).n_layers == 3
