"""Cases: what is assumed, what does not go together, and case files with all their problems."""

from __future__ import annotations

import contextlib
import json
import re
import tomllib
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import strategies
from hypothesis import given, settings
from hypothesis import strategies as st

from worthit.errors import CaseError, InputError, UnknownName
from worthit.spec import _case_file
from worthit.spec.case import Case, Data, Hardware, Layout, Runtime, Serving, Training
from worthit.spec.codec import to_json
from worthit.spec.load import (
    build_case,
    find_case,
    load_case,
    load_device,
    load_preset,
    load_workload,
)
from worthit.spec.model import Attention, FeedForward, Layer, ModelSpec, Precision

DOCS = Path(__file__).parents[2] / "docs" / "case.md"
LLAMA = load_preset("llama-3.1-8b")
TUTOR = load_preset("grammar-tutor")


def serving(case: Case) -> Serving:
    assert isinstance(case.workload, Serving)
    return case.workload


def training(case: Case) -> Training:
    assert isinstance(case.workload, Training)
    return case.workload


def said_by(error: pytest.ExceptionInfo[InputError]) -> set[str]:
    return set(error.value.problems)


# --- what is assumed ---------------------------------------------------------------------------


def test_the_grammar_tutor_is_judged_as_it_was_meant() -> None:
    case = build_case(TUTOR)
    assert case.workload == load_workload("grammar-tutor")
    assert case.hardware == Hardware(device=load_device("laptop-cpu"))
    assert case.stage == "design"
    assert case.runtime == Runtime(
        attention="naive", is_compiled=False, optimizer_bytes_per_param=8.0
    )
    assert case.effective_goal == "latency"
    assert case.warnings == ()


def test_another_model_chats_and_says_that_this_was_assumed() -> None:
    case = build_case(LLAMA)
    assert replace(serving(case), name="") == replace(load_workload("chat"), name="")
    assert case.stage == "deployed"
    assert case.hardware.device.id == "rtx-4090"
    workload, hardware = case.warnings
    assert workload.startswith("not given, so assumed after the workload chat: prompt 1,155")
    assert "assumed rtx-4090: the first of " in hardware
    assert "room for the weights (16.1 GB)" in hardware


@pytest.mark.parametrize(
    ("name", "hardware"),
    [  # bytes of bf16 weights, from the publishers' parameter counts
        ("llama-2-7b", "rtx-4090:1"),  # 13.5 GB
        ("mistral-small-24b", "h100:1"),  # 47 GB
        ("llama-3.1-70b", "h100:8"),  # 141 GB
        ("deepseek-v3", "h200:8"),  # 671 GB in fp8 does not fit 640 GB
    ],
)
def test_assumed_hardware_holds_the_weights(name: str, hardware: str) -> None:
    chosen = build_case(load_preset(name)).hardware
    assert f"{chosen.device.id}:{chosen.n_devices}" == hardware


def test_a_narrower_format_needs_less_hardware() -> None:
    model = load_preset("mistral-small-24b")
    assert build_case(model, weights="int4-g128").hardware.device.id == "rtx-4090"


def test_a_model_beyond_all_usual_hardware_gets_the_largest() -> None:
    dense = Layer(
        mixers=(Attention(n_heads=256, n_kv_heads=8, head_dim=128),), ffn=FeedForward(d_ff=131072)
    )
    model = ModelSpec(
        name="huge", d_model=32768, vocab_size=256, layers=(dense,) * 200, context_len=8192
    )
    case = build_case(model)
    assert (case.hardware.device.id, case.hardware.n_devices) == ("b300", 8)
    assert "the largest of the usual hardware" in case.warnings[-1]


def test_training_needs_room_for_its_states() -> None:
    case = build_case(LLAMA, train_tokens=10**12)
    assert case.hardware.n_devices * case.hardware.device.mem_bytes > 16 * 8e9
    assert "weights, gradients and optimizer states" in case.warnings[-1]


def test_assumed_sizes_stay_within_the_trained_context() -> None:
    case = build_case(load_preset("gpt2"), on="t4")
    assert serving(case).context == 1024
    assert serving(case).prompt / serving(case).output == pytest.approx(1155 / 211, rel=0.02)
    assert "cut to the context of 1,024 tokens" in case.warnings[0]


def test_one_size_replaces_one_size() -> None:
    case = build_case(LLAMA, on="h100", prompt=4000)
    assert (serving(case).prompt, serving(case).output) == (4000, 211)
    assert case.warnings == (
        "not given, so assumed after the workload chat: output 211, concurrency 32",
    )


def test_nothing_is_said_where_nothing_was_assumed() -> None:
    case = build_case(LLAMA, on="h100:2", prompt=4000, output=500, concurrency=64)
    assert case.warnings == ()
    assert case.workload == replace(
        load_workload("chat"), prompt=4000, output=500, concurrency=64, name="", source=""
    )


def test_a_named_workload_may_be_changed() -> None:
    case = build_case(LLAMA, on="h100", workload="rag", concurrency=2)
    rag = load_workload("rag")
    assert case.workload == replace(rag, concurrency=2, name="", source="")
    assert build_case(LLAMA, on="h100", workload="rag").workload == rag


def test_training_sizes_make_a_training_case_at_design_stage() -> None:
    case = build_case(LLAMA, on="h100:8", train_tokens=10**12)
    assert training(case) == Training(tokens=10**12, seq=4096, batch_tokens=4194304)
    assert case.stage == "design"
    assert case.effective_goal == "train-time"
    assert "seq 4,096, batch tokens 4,194,304" in case.warnings[0]


def test_assumed_training_sizes_fit_a_small_model() -> None:
    job = training(build_case(TUTOR, train_tokens=1000))
    assert job == Training(tokens=1000, seq=32, batch_tokens=1000)


def test_formats_are_changed_by_name() -> None:
    case = build_case(LLAMA, on="h100", weights="int4-g128", cache="fp8")
    assert case.model.precision == replace(LLAMA.precision, weights="int4-g128", cache="fp8")


def test_the_case_is_named_after_its_model_unless_it_has_a_name() -> None:
    assert build_case(LLAMA).name == "llama-3.1-8b"
    assert build_case(LLAMA, name="mine").name == "mine"


# --- what does not go together -----------------------------------------------------------------


def test_a_context_beyond_the_trained_one_is_a_warning() -> None:
    model = load_preset("llama-2-7b")
    sizes = {"output": 96, "concurrency": 1}
    assert build_case(model, on="h100", prompt=4000, **sizes).warnings == ()
    (warning,) = build_case(model, on="h100", prompt=4001, **sizes).warnings
    assert warning.startswith(
        "prompt 4,001 + output 96 = 4,097 tokens go beyond the context of llama-2-7b (it was "
        "trained for 4,096)"
    )


def test_a_training_sequence_beyond_the_context_is_a_warning() -> None:
    case = build_case(TUTOR, train_tokens=10**6, seq=64, batch_tokens=640)
    (warning,) = case.warnings
    assert "sequences of 64 tokens go beyond the context of grammar-tutor" in warning
    assert "it has 32 learned positions" in warning


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"prompt": 0}, "prompt must be at least 1 token, got 0"),
        ({"output": -5}, "output must be at least 1 token, got -5"),
        ({"concurrency": 0}, "concurrency must be at least 1, got 0"),
        ({"train_tokens": 0}, "train tokens must be at least 1, got 0"),
        (
            {"train_tokens": 10**9, "seq": 4096, "batch_tokens": 1},
            "batch_tokens must hold one sequence or more, got batch_tokens=1 and seq=4096; use at "
            "least 4096",
        ),
        (
            {"prompt": 8, "seq": 8},
            "a case serves or trains, got prompt beside seq; give one kind",
        ),
        (
            {"workload": "chat", "train_tokens": 8},
            "train-tokens does not go with the workload 'chat', which is served",
        ),
        (
            {"workload": "pretraining", "prompt": 8},
            "prompt does not go with the workload 'pretraining', which trains",
        ),
        ({"stage": "desing"}, "unknown stage 'desing'; did you mean design?"),
        ({"goal": "speed"}, "unknown goal 'speed'; pick one of"),
        ({"max_adoption": "none"}, "unknown adoption 'none'; "),
        (
            {"layout": Layout(tensor=3)},
            "hardware.layout: degrees must multiply into n_devices, got tensor 3 = 3 on 8 devices; "
            "use a divisor of 8",
        ),
        (
            {"layout": Layout(expert=3)},
            "hardware.layout.expert: must divide n_devices, got 3 on 8 devices; pick one of 1, 2, "
            "4, 8",
        ),
    ],
)
def test_what_does_not_go_together_says_what_to_do(arguments: Any, problem: str) -> None:
    with pytest.raises(InputError) as caught:
        build_case(LLAMA, on="h100:8", **arguments)
    assert any(message.startswith(problem) for message in caught.value.problems)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("degrees", "n_devices", "fits"),
    [
        ({"tensor": 8}, 8, True),
        ({"tensor": 2, "pipeline": 2, "context": 2}, 8, True),
        ({"tensor": 2}, 8, True),  # the rest are replicas
        ({"tensor": 8, "expert": 8}, 8, True),  # experts go over the same devices
        ({"tensor": 8, "pipeline": 2}, 8, False),
        ({"pipeline": 3}, 8, False),
        ({"tensor": 16}, 8, False),
    ],
)
def test_degrees_multiply_into_the_devices(
    degrees: dict[str, int], n_devices: int, fits: bool
) -> None:
    hardware = Hardware(
        device=load_device("h100"),
        n_devices=n_devices,
        layout=Layout(**degrees),  # type: ignore[arg-type]  # degrees only
    )
    if fits:
        assert build_case(LLAMA, on=hardware).hardware == hardware
    else:
        with pytest.raises(CaseError, match="degrees must multiply into n_devices"):
            build_case(LLAMA, on=hardware)


def test_the_tensor_degree_divides_the_heads() -> None:
    layout = Layout(tensor=5)
    with pytest.raises(CaseError, match=r"must divide n_heads, got 5 for 32 heads; pick one of 1,"):
        build_case(LLAMA, on="h100:5", layout=layout)


def test_a_pipeline_has_no_more_stages_than_layers() -> None:
    with pytest.raises(CaseError, match="at most the number of layers, got 2 for 1"):
        build_case(TUTOR, on="h100:2", layout=Layout(pipeline=2))


def test_all_that_is_wrong_is_said_at_once() -> None:
    with pytest.raises(CaseError) as caught:
        build_case(LLAMA, on="h1000", prompt=0, output=0, weights="int5", stage="x")
    said = "\n".join(caught.value.problems)
    for part in ("'h1000'", "prompt must", "output must", "'int5'", "stage 'x'"):
        assert part in said
    assert len(caught.value.problems) == 5


# --- case files --------------------------------------------------------------------------------

EXAMPLES = re.findall(r"```toml\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)


def test_the_complete_example_states_what_it_shows() -> None:
    case = load_case(tomllib.loads(EXAMPLES[0]))
    assert case.name == "support-chat"
    assert case.model.precision == Precision(weights="int4-g128", cache="fp8")
    assert serving(case).prompt == 1200
    assert (case.hardware.device.id, case.hardware.n_devices) == ("h100", 2)
    assert case.hardware.layout == Layout(tensor=2)
    assert case.runtime.prefill_chunk == 2048
    assert case.data == Data(
        unique_tokens=500_000_000,
        repeat_epochs=1.0,
        checkpoints=2,
        inside="control",
        labels=200,
        answer_check="exact",
    )
    assert (case.goal, case.max_adoption) == ("throughput", "calibrate")
    assert case.warnings == ()


@pytest.mark.parametrize("text", EXAMPLES)
def test_every_example_loads_and_survives_its_json(text: str) -> None:
    case = load_case(tomllib.loads(text))
    assert load_case(json.loads(json.dumps(to_json(case)))) == case


def test_the_examples_show_every_kind_of_case() -> None:
    cases = [load_case(tomllib.loads(text)) for text in EXAMPLES]
    assert {type(case.workload) for case in cases} == {Serving, Training}
    assert any(case.hardware.n_devices == 8 for case in cases)
    assert any(len(case.model.layer_kinds) == 2 for case in cases)


@pytest.mark.parametrize("cls", [Case, Serving, Training, Layout, Precision, Data])
def test_the_page_names_every_key(cls: type) -> None:
    page = DOCS.read_text(encoding="utf-8")
    unsaid = {"source", "warnings"}  # written by the program, not by people
    for field in fields(cls):
        assert field.name in unsaid or re.search(rf"\b{field.name}\b", page), field.name


def test_the_page_quotes_a_real_error() -> None:
    quoted = re.search(r"```text\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
    assert quoted
    data = {
        "model": {"preset": "llama-3.1-8b", "precision": {"cache": "fp9"}},
        "worklod": "chat",
        "hardware": {"device": "h100", "n_devices": 3, "layout": {"tensor": 3}},
    }
    with pytest.raises(CaseError) as caught:
        load_case(data)
    assert str(caught.value.within("chat.toml")) == quoted[1].strip()


@settings(max_examples=25)
@given(strategies.cases())
def test_what_is_printed_can_be_judged_again(case: Case) -> None:
    """Any case that `build_case` accepts reads back as itself, with the same warnings."""
    try:
        built = build_case(
            case.model,
            on=case.hardware,
            workload=case.workload,
            runtime=case.runtime,
            data=case.data,
            stage=case.stage,
            goal=case.goal,
            max_adoption=case.max_adoption,
        )
    except CaseError:
        return
    assert load_case(json.loads(json.dumps(to_json(built)))) == built


def test_flags_go_before_the_file(tmp_path: Path) -> None:
    file = tmp_path / "case.toml"
    file.write_text('model = "llama-2-7b"\nworkload = "rag"\nhardware = "h100:8"\n')
    case = load_case(file, on="t4:2", concurrency=3, stage=None)
    assert (case.hardware.device.id, case.hardware.n_devices) == ("t4", 2)
    assert (serving(case).prompt, serving(case).concurrency) == (4000, 3)


CONFIG = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 100,
    "max_position_embeddings": 2048,
}


def test_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    table, line = tmp_path / "table.toml", tmp_path / "line.toml"
    table.write_text('hardware = "h100"\n[model]\npath = "config.json"\ncontext_len = 4096\n')
    line.write_text('hardware = "h100"\nmodel = "config.json"\n')
    assert load_case(line).model.d_model == 64
    assert load_case(table).model == replace(load_case(line).model, context_len=4096)


def test_a_path_that_is_none_says_which(tmp_path: Path) -> None:
    (tmp_path / "case.toml").write_text('[model]\npath = "none.json"\n')
    with pytest.raises(InputError, match=r"case\.toml: model\.path: .*none\.json: no such file"):
        load_case(tmp_path / "case.toml")


def test_a_config_is_judged_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    assert find_case(str(tmp_path / "config.json"), on="h100").model.n_layers == 2


def test_what_is_strange_about_a_models_files_reaches_the_case(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_case_file, "_resolve", lambda text: (LLAMA, ("a shard is missing",)))
    assert find_case("somewhere", on="h100", workload="rag").warnings == ("a shard is missing",)
    data = {"model": "somewhere", "hardware": "h100", "workload": "rag"}
    assert load_case(data).warnings == ("a shard is missing",)


def test_a_target_is_a_case_or_a_model(tmp_path: Path) -> None:
    (tmp_path / "case.json").write_text('{"model": "llama-2-7b", "hardware": "h100"}')
    assert find_case(str(tmp_path / "case.json"), prompt=7).model.name == "llama-2-7b"
    assert serving(find_case(str(tmp_path / "case.json"), prompt=7)).prompt == 7
    assert find_case("grammar-tutor", on=None) == build_case(TUTOR)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("case.json", '{"model": "gpt2",\n  "stage" "design"}', r"case.json, line 2, column 11: "
         r"broken JSON: expected ':' delimiter"),
        ("case.json", "", "line 1, column 1: broken JSON: expected value"),
        ("case.toml", 'model = "gpt2"\nstage = design\n', "case.toml, line 2, column 9: broken "
         "TOML: invalid value"),
        ("case.toml", 'model = "gpt2"\n[hardware', "line 2, the end: broken TOML: "),
        ("case.toml", "model = 1\nmodel = 2\n", "line 2, column 1?.*broken TOML: cannot overwrite"),
        ("case.json", "[1, 2]", r"case.json: a case is a table, got \[1, 2\]"),
        ("case.yaml", "model: gpt2", "a case file ends in .toml or .json"),
        ("case.json", '{"model_type": "llama"}', "this is a model's config.json and no case"),
        ("case.json", "[" * 100_000, "nested too deeply"),
    ],
)  # fmt: skip
def test_a_broken_file_says_where(tmp_path: Path, name: str, content: str, says: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(CaseError, match=says) as caught:
        load_case(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_no_text_says_so(tmp_path: Path) -> None:
    (tmp_path / "case.toml").write_bytes(b'model = "\xff"')
    with pytest.raises(CaseError, match=r"is not UTF-8 text \(byte 9\)"):
        load_case(tmp_path / "case.toml")


def test_a_byte_order_mark_is_no_problem(tmp_path: Path) -> None:
    (tmp_path / "case.toml").write_text('model = "gpt2"', encoding="utf-8-sig")
    assert load_case(tmp_path / "case.toml").model.name == "gpt2"


def test_a_missing_file_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(CaseError, match=r"none\.toml: no such file$"):
        load_case(tmp_path / "none.toml")


def test_a_folder_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "case.toml").mkdir()
    with pytest.raises(CaseError, match="cannot be read: is a directory"):
        load_case(tmp_path / "case.toml")


def test_everything_wrong_in_a_file_is_said_at_once(tmp_path: Path) -> None:
    (tmp_path / "bad.toml").write_text(
        """
        name = 3
        stage = "desing"
        worklod = "chat"
        data = []
        [model]
        preset = "llama-3.1-8b"
        d_modle = 1
        [workload]
        prompt = 0
        output = 0
        [hardware]
        device = "h1000"
        n_devices = 0
        [hardware.layout]
        tensor = true
        [runtime]
        attention = "flash"
        """
    )
    with pytest.raises(CaseError) as caught:
        load_case(tmp_path / "bad.toml")
    starts = {message.split(",")[0].split(";")[0] for message in caught.value.problems}
    assert starts == {
        "name: must be text",
        "unknown stage 'desing'",
        "worklod: not a known key",
        "data: must be a table",
        "model.d_modle: not a known key",
        "workload.prompt: must be at least 1 token",
        "workload.output: must be at least 1 token",
        "hardware.device: unknown device 'h1000'",
        "hardware.n_devices: must be a positive whole number",
        "hardware.layout.tensor: must be a whole number",
        "runtime.attention: must be one of naive",
    }
    assert str(caught.value).startswith("bad.toml: 11 problems\n  ")


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ({}, "model: missing; write model = "),
        ({"model": 3}, "model: must be a table, got 3"),
        ({"model": {"preset": "gpt2", "path": "x"}}, "model: give preset or path, got both"),
        ({"model": {"preset": 3}}, "model.preset: must be text, got 3"),
        ({"model": {"d_model": 8}}, "model.vocab_size: missing"),
        ({"model": "gpt2", "workload": 3}, "workload: must be a table, got 3"),
        ({"model": "gpt2", "workload": {"kind": "x"}}, "workload.kind: must be serve or train"),
        ({"model": "gpt2", "workload": {"prompt": 3}}, "workload.output: missing"),
        ({"model": "gpt2", "workload": {"seq": 3}}, "workload.tokens: missing"),
        ({"model": "gpt2", "hardware": {"n_devices": 8}}, "hardware.device: missing; write"),
        ({"model": "gpt2", "hardware": {"gpu": "h100"}}, "hardware.gpu: not a known key"),
        (
            {"model": "gpt2", "hardware": {"device": "h100:8", "n_devices": 4}},
            "hardware.device: says 'h100:8' beside n_devices 4; say it once",
        ),
        ({"model": "gpt2", "hardware": "h100:x"}, "hardware: the number of devices must be"),
        ({"model": "gpt2", "warnings": 3}, "warnings: must be a list of texts, got 3"),
        ({"model": "gpt2", "runtime": 3}, "runtime: must be a table, got 3"),
        ({"model": "gpt2", "data": {"unique_tokens": True}}, "data.unique_tokens: must be a whole"),
        ({"model": "gpt2", "goal": 3}, "unknown goal '3'"),
    ],
)
def test_one_problem_of_a_case_is_named(data: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError) as caught:
        load_case(data)
    assert any(line.strip().startswith(says) for line in str(caught.value).splitlines())


def test_an_unknown_preset_keeps_its_suggestions() -> None:
    with pytest.raises(UnknownName, match=r"model\.preset: unknown model 'gtp2'.*gpt2") as caught:
        load_case({"model": {"preset": "gtp2"}})
    assert "gpt2" in caught.value.suggestions


json_like = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)
sections = st.sampled_from([f.name for f in fields(Case)])


@settings(max_examples=200)
@given(st.dictionaries(sections, json_like), st.booleans())
def test_no_input_ends_in_a_traceback(data: dict[str, Any], has_model: bool) -> None:
    """Whatever stands in a case, it loads or is refused in words."""
    if has_model:
        data = {**data, "model": "grammar-tutor"}
    elif isinstance(data.get("model"), str):
        return  # names are looked up by `resolve`
    with contextlib.suppress(InputError):
        load_case(data)
