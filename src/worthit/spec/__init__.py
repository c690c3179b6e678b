"""Facts as plain typed data: models, workloads, hardware, cases. Nothing here needs torch.

Names are looked up on first use, so that importing one part of the package costs that part only.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from worthit.spec.case import Case, Data, Device, Hardware, Layout, Runtime, Serving, Training
    from worthit.spec.codec import from_json, to_json
    from worthit.spec.load import (
        build_case,
        device_names,
        find_case,
        load_case,
        load_device,
        load_preset,
        load_workload,
        parse_hardware,
        preset_names,
        workload_names,
    )
    from worthit.spec.model import ModelSpec

_HOMES = {
    "case": (
        "Case",
        "Data",
        "Device",
        "Hardware",
        "Layout",
        "Runtime",
        "Serving",
        "Training",
    ),
    "codec": ("from_json", "to_json"),
    "load": (
        "build_case",
        "device_names",
        "find_case",
        "load_case",
        "load_device",
        "load_preset",
        "load_workload",
        "parse_hardware",
        "preset_names",
        "workload_names",
    ),
    "model": ("ModelSpec",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
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


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
