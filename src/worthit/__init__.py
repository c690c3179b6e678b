"""worthit: is a frontier LLM technique worth it for your model, workload, hardware and data?

>>> import worthit
>>> case = worthit.load_case({"model": {"preset": "grammar-tutor"}})
>>> record = worthit.judge(case, only=["gqa"])
>>> record["verdicts"][0]["verdict"]
'never'
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"
__all__ = ["cost", "judge", "load_case", "load_model", "measure", "save_model"]

_LAZY = {
    "load_case": "worthit.spec.load",
    "load_model": "worthit.nn.load",
    "save_model": "worthit.nn.load",
    "cost": "worthit.cost",
    "judge": "worthit.judge",
    "measure": "worthit.lab.measure",
}


def __getattr__(name: str) -> Any:
    """Import what is asked for when it is asked for: starting stays fast."""
    if name not in _LAZY:
        raise AttributeError(f"module 'worthit' has no attribute {name!r}")
    module = importlib.import_module(_LAZY[name])
    return module if name in ("cost", "judge") else getattr(module, name)
