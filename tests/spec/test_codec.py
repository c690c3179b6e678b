"""JSON both ways: identity, repeated layers written once, and every problem at once."""

from __future__ import annotations

import copy
import json
import math
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import strategies
from hypothesis import given, settings
from hypothesis import strategies as st

from worthit.errors import SpecError, problem
from worthit.spec.case import Case, Device, Layout, Serving, Training
from worthit.spec.codec import from_json, from_trusted, to_json
from worthit.spec.load import build_case, device_names, load_device, load_preset, preset_names
from worthit.spec.model import (
    FFN_NAMES,
    MIXER_NAMES,
    Attention,
    FeedForward,
    Layer,
    Mamba,
    ModelSpec,
    MoE,
    Norm,
)

ATTENTION = Layer(mixers=(Attention(n_heads=4, n_kv_heads=2, head_dim=8),), ffn=None)
MAMBA = Layer(mixers=(Mamba(d_inner=8, d_state=2, d_conv=4, dt_rank=1),), ffn=None)
DENSE = Layer(mixers=ATTENTION.mixers, ffn=FeedForward(d_ff=16))


def through_text(value: Any) -> Any:
    """What comes back when `value` is written to a file and read."""
    return json.loads(json.dumps(to_json(value), allow_nan=False))


def model(*layers: Layer, **changes: Any) -> ModelSpec:
    return ModelSpec(
        **{"name": "m", "d_model": 8, "vocab_size": 16, "layers": layers, "context_len": 32}
        | changes
    )


def problems_of(data: Any, cls: type, **kwargs: Any) -> tuple[str, ...]:
    with pytest.raises(SpecError) as caught:
        from_json(data, cls, **kwargs)
    return caught.value.problems


# --- identity ----------------------------------------------------------------------------------


@given(strategies.models())
def test_a_model_survives_its_json(spec: ModelSpec) -> None:
    data = through_text(spec)
    assert from_json(data, ModelSpec) == spec
    assert from_trusted(data, ModelSpec) == spec


@given(strategies.devices())
def test_a_device_survives_its_json(device: Device) -> None:
    assert from_json(through_text(device), Device) == device


@settings(max_examples=50)
@given(strategies.cases())
def test_a_case_survives_its_json(case: Case) -> None:
    assert from_json(through_text(case), Case) == case


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_survives_its_json(name: str) -> None:
    spec = load_preset(name)
    assert from_json(through_text(spec), ModelSpec) == spec


@pytest.mark.parametrize("name", device_names())
def test_every_shipped_device_passes_the_check_it_is_spared(name: str) -> None:
    device = load_device(name)
    assert from_json(through_text(device), Device) == device


def test_the_grammar_tutor_passes_the_check_it_is_spared() -> None:
    from worthit.spec._shipped import preset_entry

    assert from_json(preset_entry("grammar-tutor")["spec"], ModelSpec).n_layers == 1


def test_numbers_come_back_in_the_type_of_their_field() -> None:
    data = through_text(build_case(load_preset("grammar-tutor")))
    data["workload"]["prompt"] = 20.0
    data["hardware"]["device"]["mem_bytes"] = 32
    case = from_json(data, Case)
    assert isinstance(case.workload, Serving)
    assert type(case.workload.prompt) is int
    assert type(case.hardware.device.mem_bytes) is float


# --- form --------------------------------------------------------------------------------------


def expand(entries: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Layers one by one, as a reader of the format would write it down."""
    for entry in entries:
        if "repeat" not in entry:
            yield entry
        elif "layer" in entry:
            for _ in range(entry["repeat"]):
                yield entry["layer"]
        else:
            for _ in range(entry["repeat"]):
                yield from entry["layers"]


@given(strategies.odd_models())
def test_runs_and_patterns_stand_for_the_layers_in_order(spec: ModelSpec) -> None:
    written = to_json(spec)["layers"]
    assert list(expand(written)) == [to_json(layer) for layer in spec.layers]


@pytest.mark.parametrize(
    ("layers", "form"),
    [
        ((DENSE,), ["layer"]),
        ((DENSE,) * 32, [32]),
        ((MAMBA, ATTENTION) * 4, [(4, 2)]),
        ((DENSE, *(MAMBA,) * 3), ["layer", 3]),
        ((MAMBA, MAMBA, ATTENTION) * 2, [(2, 3)]),
        ((MAMBA, ATTENTION, DENSE), ["layer", "layer", "layer"]),
    ],
)
def test_repeats_are_written_once(layers: tuple[Layer, ...], form: list[Any]) -> None:
    def form_of(entry: dict[str, Any]) -> Any:
        if "repeat" not in entry:
            return "layer"
        n = entry["repeat"]
        return n if "layer" in entry else (n, len(entry["layers"]))

    assert [form_of(entry) for entry in to_json(model(*layers))["layers"]] == form


def test_repeated_layers_are_one_object_when_read() -> None:
    read = from_json(through_text(model(*(DENSE,) * 32)), ModelSpec)
    assert len({id(layer) for layer in read.layers}) == 1


@given(strategies.layers())
def test_every_choice_says_which_it_is(layer: Layer) -> None:
    data = to_json(layer)
    assert [m["type"] for m in data["mixers"]] == [MIXER_NAMES[type(m)] for m in layer.mixers]
    if layer.ffn is not None:
        assert data["ffn"]["type"] == FFN_NAMES[type(layer.ffn)]


def test_a_tag_may_be_left_out_where_nothing_else_can_stand() -> None:
    moe = MoE(n_experts=4, n_experts_per_token=1, expert=FeedForward(d_ff=8))
    data = to_json(moe)
    del data["expert"]["type"]
    assert from_json(data, MoE) == moe


# --- what is refused ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "value", "expected"),
    [
        (("d_model",), 0, "model.d_model: must be positive, got 0"),
        (("d_model",), "8", "model.d_model: must be a whole number, got '8'"),
        (("d_model",), True, "model.d_model: must be a whole number, got true"),
        (("d_model",), 8.5, "model.d_model: must be a whole number, got 8.5"),
        (("d_model",), None, "model.d_model: must be a whole number, got null"),
        (("logit_scale",), False, "model.logit_scale: must be a number, got false"),
        (("logit_scale",), math.nan, "model.logit_scale: must be a finite number, got nan"),
        (("logit_scale",), math.inf, "model.logit_scale: must be a finite number, got inf"),
        (("has_final_norm",), 1, "model.has_final_norm: must be true or false, got 1"),
        (("name",), 3, "model.name: must be text, got 3"),
        (("layers",), {}, "model.layers: must be a list, got {}"),
        (("layers",), [], "model: model 'm' needs at least one layer, got none"),
        (("precision",), 3, "model.precision: must be a table, got 3"),
        (("d_modle",), 8, "model.d_modle: not a known key; did you mean d_model?"),
        (
            ("norm", "kind"),
            "rmsnrom",
            "model.norm.kind: must be one of layernorm, rmsnorm; got 'rmsnrom'; did you mean "
            "rmsnorm?",
        ),
        (
            ("layers", 0, "mixers", 0, "n_heads"),
            0,
            "model.layers[0].mixers[0].n_heads: must be positive, got 0",
        ),
        (
            ("layers", 0, "mixers", 0, "n_kv_heads"),
            3,
            "model.layers[0].mixers[0].n_kv_heads: must divide n_heads, got n_heads=4 and "
            "n_kv_heads=3; pick one of [1, 2, 4]",
        ),
        (
            ("layers", 0, "mixers", 0, "type"),
            "atention",
            "model.layers[0].mixers[0].type: must be one of attention, mla, linear-attention, "
            "mamba, mamba2, rwkv, s4; got 'atention'; did you mean attention?",
        ),
        (
            ("layers", 0, "ffn", "d_fff"),
            1,
            "model.layers[0].ffn.d_fff: not a known key; did you mean d_ff?",
        ),
        (("layers", 1, "repeat"), 0, "model.layers[1].repeat: must be positive, got 0"),
        (("layers", 1, "repeat"), True, "model.layers[1].repeat: must be a whole number, got true"),
        (("layers", 1, "repeat"), 10**9, "model.layers[1].repeat: must be less than"),
        (("layers", 1, "times"), 2, "model.layers[1].times: not a known key; known here: repeat"),
        (
            ("layers", 1, "layer", "mixers", 0, "d_state"),
            -1,
            "model.layers[1].layer.mixers[0].d_state: must be positive, got -1",
        ),
        (
            ("layers", 2, "layers", 1, "mixers", 0, "head_dim"),
            None,
            "model.layers[2].layers[1].mixers[0].head_dim: must be a whole number, got null",
        ),
    ],
)
def test_one_problem_is_named_with_its_path(path: Any, value: Any, expected: str) -> None:
    data = to_json(model(DENSE, MAMBA, MAMBA, *(DENSE, ATTENTION) * 2))
    place = data
    for part in path[:-1]:
        place = place[part]
    place[path[-1]] = value
    (message,) = problems_of(data, ModelSpec, path=("model",))
    assert message.startswith(expected)


def test_a_missing_key_is_named() -> None:
    data = to_json(model(DENSE))
    del data["layers"][0]["mixers"][0]["head_dim"]
    del data["layers"][0]["mixers"][0]["n_heads"]
    del data["vocab_size"]
    assert problems_of(data, ModelSpec) == (
        "vocab_size: missing",
        "layers[0].mixers[0].n_heads: missing",
        "layers[0].mixers[0].head_dim: missing",
    )


def test_a_missing_tag_lists_the_choices() -> None:
    data = to_json(model(DENSE))
    del data["layers"][0]["ffn"]["type"]
    assert problems_of(data, ModelSpec) == (
        "layers[0].ffn.type: missing; pick one of ffn, channel-mix, moe",
    )


def test_a_list_of_fixed_length_says_its_length() -> None:
    data = {"n_heads": 1, "head_dim": 8, "d_state": 8, "n_groups": 1, "d_conv": 4}
    layer = {"mixers": [{"type": "mamba2", **data, "part_scales": [1, 2]}], "ffn": None}
    assert problems_of(layer, Layer) == ("mixers[0].part_scales: must hold 5 items, got 2",)


def test_everything_wrong_is_said_at_once() -> None:
    data = to_json(build_case(load_preset("llama-3.1-8b"), on="h100:8", workload="chat"))
    data["model"]["layers"][0]["layer"]["mixers"][0]["n_heads"] = 0
    data["model"]["layers"][0]["layer"]["ffn"]["d_ff"] = -1
    data["model"]["vocab_size"] = "many"
    data["hardware"]["layout"]["zero"] = True
    data["workload"]["shared_prefix"] = 2
    data["workload"]["output"] = 0
    data["stage"] = "desing"
    assert set(problems_of(data, Case)) == {
        "model.layers[0].layer.mixers[0].n_heads: must be positive, got 0",
        "model.layers[0].layer.ffn.d_ff: must be positive, got -1",
        "model.vocab_size: must be a whole number, got 'many'",
        "hardware.layout.zero: must be a whole number, got true",
        "workload.shared_prefix: must be in [0, 1], got 2.0",
        "workload.output: must be at least 1 token, got 0",
        "stage: must be one of design, deployed; got 'desing'; did you mean design?",
    }


@pytest.mark.parametrize("data", [None, 3, "llama", [], [{}], True])
def test_no_table_at_all(data: Any) -> None:
    (message,) = problems_of(data, ModelSpec, where="model.json")
    assert message.startswith("must be a table, got ")


@pytest.mark.parametrize("data", [{"kind": "serve"}, {"kind": "train"}])
def test_a_workload_needs_its_sizes(data: dict[str, Any]) -> None:
    cls = Serving if data["kind"] == "serve" else Training
    assert any(message.endswith("missing") for message in problems_of(data, cls))


def test_degrees_are_checked_by_the_class_itself() -> None:
    assert problems_of({"tensor": 0}, Layout, path=("hardware", "layout")) == (
        "hardware.layout.tensor: must be at least 1, got 0",
    )


def leaves(data: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every number, text and truth value."""
    if isinstance(data, dict):
        for key, inner in data.items():
            yield from leaves(inner, (*path, key))
    elif isinstance(data, list):
        for i, inner in enumerate(data):
            yield from leaves(inner, (*path, i))
    else:
        yield path


@settings(max_examples=50)
@given(strategies.cases(), st.data())
def test_any_wrong_leaf_is_found_by_its_path(case: Case, draw: st.DataObject) -> None:
    data = copy.deepcopy(to_json(case))
    path = draw.draw(st.sampled_from(list(leaves(data))))
    place = data
    for part in path[:-1]:
        place = place[part]
    place[path[-1]] = ["nothing", "is", "a", "list", "of", "texts"]
    expected = problem(path, "")
    assert any(p.startswith(expected.rstrip(" :")) for p in problems_of(data, Case))


# --- what it costs -----------------------------------------------------------------------------


def test_trusted_files_are_read_without_pydantic() -> None:
    code = (
        "import sys; from worthit.spec.load import *; build_case(load_preset('grammar-tutor'));"
        "print(*sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(run.stdout.split())
    assert "worthit.spec.codec" in loaded  # control
    assert not loaded & {"pydantic", "numpy", "torch", "importlib.resources", "worthit.spec.hf"}


def test_control_a_file_of_the_users_is_checked_by_pydantic() -> None:
    code = (
        "import sys; from worthit.spec.codec import from_json; from worthit.spec.model import Norm;"
        "from_json({}, Norm); print('pydantic' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "True"


def test_norms_default() -> None:
    assert from_json({}, Norm) == Norm()
