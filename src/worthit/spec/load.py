"""Names, files and flags to models, devices, workloads and cases: what every face starts with."""

from __future__ import annotations

from worthit.spec._build import build_case, parse_hardware
from worthit.spec._case_file import find_case, load_case
from worthit.spec._shipped import (
    calibration_path,
    device_names,
    load_device,
    load_preset,
    load_workload,
    preset_names,
    workload_names,
)

__all__ = [
    "build_case",
    "calibration_path",
    "device_names",
    "find_case",
    "load_case",
    "load_device",
    "load_preset",
    "load_workload",
    "parse_hardware",
    "preset_names",
    "workload_names",
]
