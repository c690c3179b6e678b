"""Device, preset and workload files: whole, positive, uniquely named, sourced, and enough of them.

Only the standard library: what is checked here is the data, not the code that reads it. Totals
typed below come from model cards and hub listings, never from our own count.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

SPEC = Path(__file__).parents[2] / "src" / "worthit" / "spec"
ID = re.compile(r"[a-z0-9]+(?:[-.][a-z0-9]+)*")
DATE = re.compile(r"20\d\d-(?:0[1-9]|1[0-2])")

FLOPS = {"fp32", "tf32", "bf16", "fp16", "fp8", "int8", "fp4"}
EFFICIENCY_SHARES = {
    "gemm_compute",
    "gemm_memory",
    "decode_attention_memory",
    "prefill_attention_compute",
}
EFFICIENCY_TIMES = {"launch_s", "decode_attention_launch_s", "comm_floor_s"}
DEVICE_KEYS = {
    "id",
    "name",
    "aliases",
    "kind",
    "flops_per_s",
    "mem_bytes_per_s",
    "mem_bytes",
    "llc_bytes",
    "llc_bytes_per_s",
    "link_bytes_per_s",
    "link_domain",
    "net_bytes_per_s",
    "price_usd_per_hour",
    "efficiency",
    "source",
    "date",
    "note",
}
PRESET_KEYS = {
    "id",
    "name",
    "aliases",
    "source",
    "date",
    "published",
    "counted_params",
    "counted_with",
    "config",
}
WORKLOAD_KEYS = {
    "serve": {
        "prompt_tokens",
        "output_tokens",
        "concurrency",
        "output_spread",
        "shared_prefix",
        "copy_rate",
    },
    "train": {"train_tokens", "seq_tokens", "batch_tokens"},
}
FAMILIES = {
    "llama",
    "mistral",
    "mixtral",
    "qwen2",
    "qwen3",
    "qwen2_moe",
    "qwen3_moe",
    "qwen3_next",
    "gemma",
    "gemma2",
    "gemma3_text",
    "gpt2",
    "gpt_neox",
    "phi3",
    "olmo2",
    "olmoe",
    "deepseek_v2",
    "deepseek_v3",
    "mamba",
    "mamba2",
    "falcon_mamba",
    "jamba",
    "bamba",
    "granite",
    "granitemoehybrid",
    "falcon_h1",
    "nemotron_h",
    "rwkv",
    "gpt_oss",
    "llama4_text",
    "smollm3",
    "starcoder2",
    "cohere",
    "stablelm",
    "opt",
    "bloom",
}
WORKLOADS = {
    "chat",
    "rag",
    "long-document",
    "code-completion",
    "batch-offline",
    "single-user-edge",
    "pretraining",
    "finetuning",
}
# Bytes a second of main memory and dense 16-bit peak, from data sheets and white papers.
DATA_SHEETS = {
    "a100-80": (2.039e12, 312e12),
    "h100": (3.35e12, 989e12),
    "h200": (4.8e12, 989e12),
    "b200": (7.7e12, 2250e12),
    "l4": (300e9, 121e12),
    "l40s": (864e9, 362e12),
    "t4": (320e9, 65e12),
    "rtx-4090": (1.008e12, 165e12),
    "mi300x": (5.3e12, 1307e12),
    "tpu-v5e": (819e9, 197e12),
    "tpu-v5p": (2.765e12, 459e12),
    "gh200": (4.0e12, 989e12),
}
TOTAL_PARAMS = {
    "gpt2": 124_439_808,
    "llama-2-7b": 6_738_415_616,
    "llama-3.1-8b": 8_030_261_248,
    "llama-3.1-405b": 405_853_388_800,
    "qwen3-8b": 8_190_735_360,
    "qwen3-30b-a3b": 30_532_122_624,
    "mixtral-8x7b": 46_702_792_704,
    "deepseek-v3": 671_026_404_352,
    "gpt-oss-20b": 20_914_757_184,
    "gemma-3-27b": 27_009_346_304,
    "mamba-130m": 129_135_360,
    "mamba2-2.7b": 2_702_599_680,
    "rwkv-4-14b": 14_148_597_760,
    "jamba-v0.1": 51_570_323_328,
    "granite-4.0-h-small": 32_207_337_984,
    "smollm2-135m": 134_515_008,
    # not in the fact sheet: the papers' and cards' own exact figures
    "pythia-6.9b": 6_857_302_016,
    "gpt-neox-20b": 20_554_567_680,
    "bloom-176b": 176_247_271_424,
}
# In billions, as model cards and papers print them.
ACTIVE_PARAMS_E9 = {
    "mixtral-8x7b": 12.880,
    "qwen3-30b-a3b": 3.353,
    "deepseek-v3": 37.552,
    "gpt-oss-20b": 3.61,
    "gpt-oss-120b": 5.13,
    "jamba-v0.1": 12.110,
    "granite-4.0-h-small": 8.803,
}


def _load(folder: str) -> dict[str, dict[str, Any]]:
    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not JSON")

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        keys = [key for key, _ in pairs]
        assert len(keys) == len(set(keys)), f"a key stands twice among {keys}"
        return dict(pairs)

    return {
        path.stem: json.loads(
            path.read_text(encoding="utf-8"), parse_constant=refuse, object_pairs_hook=unique
        )
        for path in sorted((SPEC / folder).glob("*.json"))
    }


DEVICES = _load("devices")
PRESETS = _load("presets")
WORKLOAD_FILES = _load("workloads")
# Models of this project have no published total and no outside count.
PUBLIC = {stem: entry for stem, entry in PRESETS.items() if stem != "grammar-tutor"}


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_positive(value: object) -> bool:
    return _is_number(value) and value > 0  # type: ignore[operator]  # a number by then


@pytest.mark.parametrize(
    ("entries", "at_least"),
    [(DEVICES, 36), (PUBLIC, 60), (WORKLOAD_FILES, 8)],
    ids=["devices", "presets", "workloads"],
)
def test_enough_entries(entries: dict[str, Any], at_least: int) -> None:
    assert len(entries) >= at_least


@pytest.mark.parametrize(
    "entries", [DEVICES, PRESETS, WORKLOAD_FILES], ids=["devices", "presets", "workloads"]
)
def test_names_are_unique_and_equal_the_file_name(entries: dict[str, dict[str, Any]]) -> None:
    owner: dict[str, str] = {}
    for stem, entry in entries.items():
        assert entry["id"] == stem
        assert ID.fullmatch(stem), f"{stem}: lower case, digits, dots and dashes"
        assert isinstance(entry["name"], str)
        assert entry["name"]
        for name in {stem, *(alias.lower() for alias in entry.get("aliases", []))}:
            assert name not in owner, f"{name} names both {owner[name]} and {stem}"
            owner[name] = stem


@pytest.mark.parametrize(
    "entries", [DEVICES, PUBLIC, WORKLOAD_FILES], ids=["devices", "presets", "workloads"]
)
def test_every_entry_has_a_source_and_a_date(entries: dict[str, dict[str, Any]]) -> None:
    for stem, entry in entries.items():
        assert len(entry["source"]) >= 15, stem
        assert DATE.fullmatch(entry["date"]), f"{stem}: {entry['date']} is not YYYY-MM"


@pytest.mark.parametrize("device", DEVICES.values(), ids=DEVICES.keys())
def test_device(device: dict[str, Any]) -> None:
    assert set(device) == DEVICE_KEYS
    assert device["kind"] in {"gpu", "tpu", "cpu", "apple", "npu"}
    assert set(device["flops_per_s"]) == FLOPS
    peaks = {name: value for name, value in device["flops_per_s"].items() if value is not None}
    assert all(_is_positive(value) for value in peaks.values())
    assert peaks.keys() & {"tf32", "fp32"}, "needs a peak for the widest arithmetic"
    # sparse peaks and tera read as giga both leave this range
    assert 1e10 < max(peaks.values()) < 2e16
    assert peaks["fp32"] <= max(peaks.values())

    assert _is_positive(device["mem_bytes_per_s"])
    assert _is_positive(device["mem_bytes"])
    assert 1e9 < device["mem_bytes"] < 2e12
    assert 1e10 < device["mem_bytes_per_s"] < 2e13
    optional = ("llc_bytes", "llc_bytes_per_s", "link_bytes_per_s", "net_bytes_per_s")
    for key in (*optional, "price_usd_per_hour"):
        assert device[key] is None or _is_positive(device[key]), key
    if device["llc_bytes"] is not None:
        assert device["llc_bytes"] < device["mem_bytes"]
    if device["llc_bytes_per_s"] is not None:
        assert device["llc_bytes"] is not None
        assert device["llc_bytes_per_s"] > device["mem_bytes_per_s"]
    assert isinstance(device["link_domain"], int)
    assert (device["link_domain"] > 1) <= (device["link_bytes_per_s"] is not None)
    assert device["link_domain"] >= 1
    if device["kind"] == "cpu":
        assert device["llc_bytes"] is not None
        assert device["llc_bytes_per_s"] is not None
    if device["price_usd_per_hour"] is not None:
        assert "; price: " in device["source"], "a price needs its own source"

    efficiency = device["efficiency"]
    assert set(efficiency) == EFFICIENCY_SHARES | EFFICIENCY_TIMES | {"source"}
    assert all(0 < efficiency[key] <= 1 for key in EFFICIENCY_SHARES)
    assert all(0 < efficiency[key] < 1e-3 for key in EFFICIENCY_TIMES)
    assert re.search(r"fit|assumed from|measured", efficiency["source"])


@pytest.mark.parametrize(("device", "sheet"), DATA_SHEETS.items(), ids=DATA_SHEETS.keys())
def test_device_agrees_with_its_data_sheet(device: str, sheet: tuple[float, float]) -> None:
    entry = DEVICES[device]
    peak = entry["flops_per_s"]["bf16"] or entry["flops_per_s"]["fp16"]
    # 1 %: sheets round
    assert (entry["mem_bytes_per_s"], peak) == pytest.approx(sheet, rel=0.01)


def test_fitted_efficiencies() -> None:
    keys = ("gemm_compute", "gemm_memory", "launch_s", "decode_attention_memory")
    fits = {"a100-80": (0.85, 0.75, 6e-6, 0.70), "h100": (0.80, 0.90, 4e-6, 0.90)}
    for device, fit in fits.items():
        assert tuple(DEVICES[device]["efficiency"][key] for key in keys) == fit


@pytest.mark.parametrize("preset", PUBLIC.values(), ids=PUBLIC.keys())
def test_preset(preset: dict[str, Any]) -> None:
    assert set(preset) == PRESET_KEYS
    assert preset["aliases"], "at least the hub id"
    config, published = preset["config"], preset["published"]
    assert set(published) == {"total_params", "active_params", "note"}
    assert published["note"], "say where the published total stands"
    assert preset["counted_with"]
    assert isinstance(preset["counted_params"], int)
    assert _is_positive(preset["counted_params"])
    if published["total_params"] is not None:
        assert preset["counted_params"] == published["total_params"]
    if published["active_params"] is not None:
        assert 0 < published["active_params"] < preset["counted_params"]

    assert isinstance(config["model_type"], str)
    assert config["vocab_size"] > 1000
    assert not {"transformers_version", "_name_or_path", "auto_map", "label2id"} & set(config)
    assert "rope_parameters" not in config, "store rope_theta and rope_scaling as published"
    size = config.get("hidden_size", config.get("n_embd"))
    assert _is_positive(size)
    depth = config.get("num_hidden_layers", config.get("n_layer"))
    assert _is_positive(depth)
    for name in ("layer_types", "hybrid_override_pattern", "no_rope_layers"):
        if name in config:
            assert len(config[name]) == depth, name


def test_every_family_is_present() -> None:
    assert {preset["config"]["model_type"] for preset in PUBLIC.values()} >= FAMILIES


@pytest.mark.parametrize(("preset", "total"), TOTAL_PARAMS.items(), ids=TOTAL_PARAMS.keys())
def test_published_total(preset: str, total: int) -> None:
    assert PRESETS[preset]["published"]["total_params"] == total


@pytest.mark.parametrize(
    ("preset", "billions"), ACTIVE_PARAMS_E9.items(), ids=ACTIVE_PARAMS_E9.keys()
)
def test_published_active(preset: str, billions: float) -> None:
    # printed to two or three decimals
    active = PRESETS[preset]["published"]["active_params"]
    assert active / 1e9 == pytest.approx(billions, abs=0.005)


def test_every_workload_is_present() -> None:
    assert set(WORKLOAD_FILES) >= WORKLOADS


@pytest.mark.parametrize("workload", WORKLOAD_FILES.values(), ids=WORKLOAD_FILES.keys())
def test_workload(workload: dict[str, Any]) -> None:
    numbers = WORKLOAD_KEYS[workload["kind"]]
    assert set(workload) == numbers | {"id", "name", "kind", "source", "date", "note"}
    shares = {"shared_prefix", "copy_rate"}
    for key in numbers - shares - {"output_spread"}:
        assert isinstance(workload[key], int), key
        assert workload[key] >= 1, key
    for key in numbers & shares:
        assert 0 <= workload[key] <= 1, key
    if workload["kind"] == "serve":
        assert workload["output_spread"] >= 0
    else:
        assert workload["seq_tokens"] <= workload["batch_tokens"] <= workload["train_tokens"]
