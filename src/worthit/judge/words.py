"""Numbers as people read them: units, three figures, no false precision."""

from __future__ import annotations

import math

METRIC_NAMES = {
    "s_per_token": "time per output token of the service",
    "ttft_s": "time to first token",
    "stall_s": "longest wait between two tokens",
    "memory_bytes": "memory a device needs",
    "train_total_s": "training time",
    "context_shortfall": "sequence length over usable context",
}
# Beyond this, how many times no longer matters.
MOST = 1000
_TIME = ((1.0, "s"), (1e-3, "ms"), (1e-6, "us"), (1e-9, "ns"))
_LONG = ((86_400.0, "days"), (3600.0, "h"), (60.0, "min"))
_DECIMAL = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
_BINARY = ((2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"))


def three(value: float) -> str:
    """Three significant figures, without an exponent for everyday sizes.

    >>> three(1234.5), three(0.01234), three(12.0)
    ('1230', '0.0123', '12')
    """
    if value == 0 or not math.isfinite(value):
        return "0" if value == 0 else "inf"
    digits = 2 - math.floor(math.log10(abs(value)))
    rounded = round(value, digits)
    return (
        f"{rounded:.{max(digits, 0)}f}".rstrip("0").rstrip(".") if digits > 0 else f"{rounded:.0f}"
    )


def duration(seconds: float) -> str:
    """A time in the unit that suits it.

    >>> duration(0.0144), duration(7200.0), duration(float("inf"))
    ('14.4 ms', '2 h', 'impossible')
    """
    if math.isinf(seconds):
        return "impossible"
    if seconds >= 120:
        size, unit = next((u for u in _LONG if seconds >= u[0]), _LONG[-1])
        return f"{three(seconds / size)} {unit}"
    size, unit = next((u for u in _TIME if seconds >= u[0]), _TIME[-1])
    return f"{three(seconds / size)} {unit}"


def size(n_bytes: float) -> str:
    """Bytes in powers of two, as memory is sold and reported.

    >>> size(15 * 2**30)
    '15 GiB'
    """
    unit, name = next((u for u in _BINARY if n_bytes >= u[0]), (1, "B"))
    return f"{three(n_bytes / unit)} {name}"


def count(n: float) -> str:
    """A large number with a decimal prefix.

    >>> count(8030261248), count(512)
    ('8.03 G', '512')
    """
    for unit, name in _DECIMAL:
        if n >= unit * 10 or (unit >= 1e6 and n >= unit):
            return f"{three(n / unit)} {name}"
    return three(n)


def quantity(metric: str, value: float) -> str:
    """A metric's value with its unit."""
    if metric.endswith("_bytes"):
        return size(value)
    if metric == "context_shortfall":
        return f"{three(value)}x"
    return duration(value)


def speedup(ratio: float) -> str:
    """How many times better an after/before ratio is.

    >>> speedup(0.5), speedup(1.25), speedup(0.0)
    ('2x', '0.8x', 'makes it possible')
    >>> speedup(1e-9)
    'over 1000x'
    """
    if ratio == 0:
        return "makes it possible"
    if math.isinf(ratio):
        return "makes it impossible"
    if 1 / ratio > MOST:
        return f"over {MOST}x"
    return f"{three(1 / ratio)}x"
