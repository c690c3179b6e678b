"""The error tree: exit codes, messages that hold every problem, suggestions."""

from __future__ import annotations

import pickle

import pytest

from worthit import errors
from worthit.errors import (
    CaseError,
    InputError,
    MeasurementInconclusive,
    MissingCapability,
    NotApplicable,
    SpecError,
    UnknownName,
    WorthitError,
    unknown_name,
)

# The contract of the command line: DESIGN, "Exit codes".
EXIT_CODES = {
    WorthitError: 1,
    InputError: 2,
    SpecError: 2,
    CaseError: 2,
    UnknownName: 2,
    MissingCapability: 3,
    MeasurementInconclusive: 4,
}


@pytest.mark.parametrize(("kind", "code"), EXIT_CODES.items())
def test_exit_code_is_the_contract(kind: type[WorthitError], code: int) -> None:
    assert kind.exit_code == code


def test_the_tree_in_the_docstring_names_every_class() -> None:
    classes = [name for name, value in vars(errors).items() if isinstance(value, type)]
    drawn = [name for name in classes if issubclass(getattr(errors, name), WorthitError)]
    assert len(drawn) == len(EXIT_CODES) + len([NotApplicable])
    for name in drawn:
        assert f" {name} " in f" {errors.__doc__} ".replace("\n", " ")


def test_input_errors_are_value_errors() -> None:
    with pytest.raises(ValueError, match="n_layers: must be positive"):
        raise SpecError("n_layers: must be positive, got 0; give at least 1")


def test_every_problem_is_shown_at_once() -> None:
    error = CaseError("model: missing", "workload.batch: got 0").within("case.toml")
    assert error.problems == ("model: missing", "workload.batch: got 0")
    assert str(error).splitlines() == [
        "case.toml: 2 problems",
        "  model: missing",
        "  workload.batch: got 0",
    ]


@pytest.mark.parametrize(
    ("got", "known", "best"),
    [
        ("lama-3.1-70b", ["llama-3.1-8b", "llama-3.1-70b", "qwen3-8b"], "llama-3.1-70b"),
        ("RTX4090", ["rtx-4090", "rtx-3090"], "rtx-4090"),
        ("mambo2", ["mamba", "mamba2", "rwkv"], "mamba2"),
        ("quantization", ["kv-eviction", "kv-quantization"], "kv-quantization"),
    ],
)
def test_the_nearest_name_comes_first(got: str, known: list[str], best: str) -> None:
    error = unknown_name("model", got, known)
    assert error.suggestions[0] == best
    assert error.name == got
    assert f"did you mean {best}" in str(error)


def test_without_a_near_name_the_listing_command_is_the_advice() -> None:
    error = unknown_name("device", "zzzz", [f"gpu-{i}" for i in range(50)])
    assert error.suggestions == ()
    assert str(error) == (
        "unknown device 'zzzz'; nothing known is near it; all of them: worthit list devices"
    )


@pytest.mark.parametrize(
    "error",
    [
        SpecError("a: b", "c: d", context="x.toml"),
        unknown_name("device", "h1000", ["h100"]),
        MissingCapability("needs torch", "pip install 'worthit[torch]'"),
    ],
)
def test_errors_survive_a_process_boundary(error: WorthitError) -> None:
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert str(copy) == str(error)
    assert vars(copy) == vars(error)
