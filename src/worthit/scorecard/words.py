"""Numbers of outcomes as people read them; the records themselves hold no text for these."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Record = Mapping[str, Any]


def effect_number(found: Record, metrics: Mapping[str, Record]) -> str:
    """An effect with its interval: `0.79x [0.76, 0.82]`, `+0.003 [-0.002, +0.008]`.

    `found` has `value` or `estimate`, `low`, `high`, `metric` and `is_value`.
    """
    value = found.get("estimate", found.get("value"))
    if value is None:
        return ""
    metric = metrics.get(found["metric"], {})
    is_ratio = metric.get("scale") == "ratio" and not found.get("is_value")
    is_signed = not is_ratio and not found.get("is_value")
    low, high = found.get("low"), found.get("high")
    text = three(value, is_signed=is_signed)
    shown = f"{text}{'x' if is_ratio else ''}"
    if low is None or high is None:
        return shown
    ends = [three(end, is_signed=is_signed) for end in (low, high)]
    return shown if ends == [text, text] else f"{shown} [{', '.join(ends)}]"


def three(x: float, *, is_signed: bool = False) -> str:
    """Three digits, with thousands apart.

    >>> three(0.12345), three(1234567), three(0.0031, is_signed=True)
    ('0.123', '1,234,567', '+0.0031')
    """
    text = f"{x:,.0f}" if abs(x) >= 1000 else f"{x:.3g}"
    return f"+{text}" if is_signed and x > 0 else text
