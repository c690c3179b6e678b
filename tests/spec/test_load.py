"""Names to models, devices and workloads: aliases, suggestions, calibration, exports."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

import worthit.spec
from worthit.cost.params import count_params
from worthit.errors import CaseError, MissingCapability, SpecError, UnknownName
from worthit.spec import _shipped
from worthit.spec.case import Serving, Training
from worthit.spec.codec import to_json
from worthit.spec.load import (
    calibration_path,
    device_names,
    load_device,
    load_preset,
    load_workload,
    parse_hardware,
    preset_names,
    workload_names,
)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder of the user's."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path


# --- what ships --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_loads_under_its_name(name: str) -> None:
    assert load_preset(name).name == name


@pytest.mark.parametrize("name", device_names())
def test_every_device_loads_under_its_name(name: str) -> None:
    assert load_device(name).id == name


@pytest.mark.parametrize("name", workload_names())
def test_every_workload_loads_under_its_name(name: str) -> None:
    assert load_workload(name).name == name


def test_a_preset_keeps_the_source_of_its_numbers() -> None:
    assert "huggingface" in load_preset("deepseek-v3").source.lower().replace(" ", "")


def test_spelt_out_sizes_become_the_flags_fields() -> None:
    chat, pretraining = load_workload("chat"), load_workload("pretraining")
    assert isinstance(chat, Serving)
    assert (chat.prompt, chat.output) == (1155, 211)
    assert isinstance(pretraining, Training)
    assert pretraining.seq == 4096


def test_the_grammar_tutor_has_the_parameters_it_states() -> None:
    """By hand: attention, feed-forward, three norms, embedding and head, positions."""
    d, d_ff, vocab_size, context_len = 192, 768, 128, 32
    attention = 4 * (d * d + d)
    feed_forward = (d * d_ff + d_ff) + (d_ff * d + d)
    by_hand = attention + feed_forward + 3 * 2 * d + 2 * vocab_size * d + context_len * d
    assert by_hand == 500_544
    assert _shipped.preset_entry("grammar-tutor")["counted_params"] == by_hand
    assert count_params(load_preset("grammar-tutor")).total == by_hand


# --- names -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["h100", "H100", " h100 ", "h100-sxm", "H100-80GB"])
def test_a_device_answers_to_its_aliases(name: str) -> None:
    assert load_device(name).id == "h100"


@pytest.mark.parametrize("name", ["tutor", "Grammar-Tutor"])
def test_a_preset_answers_to_its_aliases(name: str) -> None:
    assert load_preset(name).name == "grammar-tutor"


def test_a_name_opens_its_own_file_only(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(folder: str) -> None:
        raise AssertionError(f"opened all of {folder}")

    monkeypatch.setattr(_shipped, "_entries", refuse)
    assert load_device("h100").id == "h100"
    with pytest.raises(AssertionError, match="opened all of devices"):  # control
        load_device("h100-sxm")


def test_an_unknown_device_suggests_the_nearest() -> None:
    with pytest.raises(UnknownName, match="unknown device 'h1000'; did you mean h100") as caught:
        load_device("h1000")
    assert caught.value.exit_code == 2
    assert "worthit list devices" in str(caught.value)


def test_an_unknown_model_suggests_the_nearest() -> None:
    with pytest.raises(UnknownName, match=r"did you mean llama-3\.1-8b"):
        load_preset("lama-3.1-8b")


def test_an_unknown_workload_suggests_the_nearest() -> None:
    with pytest.raises(UnknownName, match="unknown workload 'chats'; did you mean chat"):
        load_workload("chats")


@pytest.mark.parametrize("name", ["", "../devices/h100", "/etc/passwd", "h100.json", ".", "a\0b"])
def test_a_name_is_never_a_path(name: str) -> None:
    with pytest.raises(UnknownName):
        load_device(name)


# --- hardware ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "device", "n"),
    [("h100", "h100", 1), ("h100:8", "h100", 8), ("H100-sxm: 2", "h100", 2), ("t4:01", "t4", 1)],
)
def test_hardware_is_a_device_and_a_number(text: str, device: str, n: int) -> None:
    hardware = parse_hardware(text)
    assert (hardware.device.id, hardware.n_devices) == (device, n)


@pytest.mark.parametrize("count", ["0", "-1", "x", "", "1.5", "8:8", "٣", "1e3"])
def test_a_wrong_number_of_devices_says_what_to_write(count: str) -> None:
    with pytest.raises(CaseError, match=r"must be a positive whole number, got .*write h100 or"):
        parse_hardware(f"h100:{count}")


# --- this machine ------------------------------------------------------------------------------


def test_an_uncalibrated_machine_names_the_command(cache: Path) -> None:
    with pytest.raises(MissingCapability) as caught:
        load_device("this")
    assert str(caught.value) == "this machine is not calibrated; get it with: worthit calibrate"
    assert caught.value.exit_code == 3


def test_a_calibrated_machine_is_read_back(cache: Path) -> None:
    shipped = load_device("laptop-cpu")
    efficiency = replace(shipped.efficiency, is_calibrated=True, source="measured here")
    device = replace(shipped, id="this", efficiency=efficiency)
    calibration_path().parent.mkdir()
    calibration_path().write_text(json.dumps(to_json(device)))
    assert calibration_path().is_relative_to(cache)
    assert parse_hardware("this:2").device == device


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "is not JSON any more"),
        ('{"id": "thi', "is not JSON any more"),
        ("\xff\xfe", "is not JSON any more"),
        ("[]", r"is damaged \(must be a table, got \[\]\)"),
        ('{"id": "this"}', r"is damaged \(.*: missing\)"),
    ],
)
def test_a_corrupt_calibration_says_so(cache: Path, text: str, says: str) -> None:
    calibration_path().parent.mkdir()
    calibration_path().write_bytes(text.encode("latin-1"))
    with pytest.raises(SpecError, match=says) as caught:
        load_device("this")
    assert str(caught.value).endswith("run `worthit calibrate` again")


def test_a_calibration_that_cannot_be_read_says_so(cache: Path) -> None:
    calibration_path().mkdir(parents=True)
    with pytest.raises(SpecError, match="cannot be read: "):
        load_device("this")


def test_the_cache_is_in_the_home_folder_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert calibration_path() == Path.home() / ".cache" / "worthit" / "calibration.json"
    monkeypatch.setenv("XDG_CACHE_HOME", "")  # set but empty counts as unset
    assert calibration_path() == Path.home() / ".cache" / "worthit" / "calibration.json"


# --- the package's names -----------------------------------------------------------------------


def test_the_package_exports_what_it_lists() -> None:
    assert worthit.spec.__all__ == [
        "Case",
        "Data",
        "Device",
        "Hardware",
        "Layout",
        "ModelSpec",
        "Runtime",
        "Serving",
        "Training",
        "build_case",
        "device_names",
        "find_case",
        "from_json",
        "load_case",
        "load_device",
        "load_preset",
        "load_workload",
        "parse_hardware",
        "preset_names",
        "to_json",
        "workload_names",
    ]
    for name in worthit.spec.__all__:
        assert getattr(worthit.spec, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = worthit.spec.nothing


def test_nothing_shipped_depends_on_the_folder_one_stands_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "h100.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    assert Path("h100.json").is_file()
    assert load_device("h100").mem_bytes > 0
