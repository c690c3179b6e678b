"""Effects and claims as sentences."""

from __future__ import annotations

import math

from worthit.lab.claims import Claim, Metric, amount
from worthit.lab.reading import Effect, Reading
from worthit.lab.statistics import Interval

# Words for a ratio of what is measured in these units; anything else is more or less of it.
SPEEDS = {
    "s": ("faster", "slower"),
    "s/token": ("faster", "slower"),
    "s/step": ("faster", "slower"),
}
SIZES = {"bytes": ("smaller", "larger")}


def effect_text(effect: Effect, label: str) -> str:
    """What an effect says: `moe: time 1.26x slower [1.22, 1.30]`, `moe: test loss not ...`."""
    metric, found = effect.metric, effect.interval
    if effect.is_ratio:
        return f"{label}: {ratio_text(metric, found)}"
    return f"{label}: {_difference_text(effect)}"


def ratio_text(metric: Metric, found: Interval) -> str:
    """A ratio in words, above 1 whichever way it goes: `time 1.26x faster [1.22, 1.30]`."""
    return f"{metric.name} {_ratio(metric, found)}"


def _ratio(metric: Metric, found: Interval) -> str:
    if metric.is_exact and f"{found.estimate:.3g}" == "1":
        return "the same"
    less, more = _words(metric)
    if found.estimate < 1 and found.estimate > 0:
        high = math.inf if found.low <= 0 else 1 / found.low
        turned = Interval(1 / found.estimate, 1 / found.high, high, found.level, found.n)
        return f"{_times(turned)} {less} {_bracket(turned)}".rstrip()
    return f"{_times(found)} {more} {_bracket(found)}".rstrip()


def _words(metric: Metric) -> tuple[str, str]:
    if metric.unit in SPEEDS:
        return SPEEDS[metric.unit]
    return SIZES.get(metric.unit, ("less", "more"))


def _times(found: Interval) -> str:
    return f"{found.estimate:.3g}x"


def _difference_text(effect: Effect) -> str:
    metric, word = effect.metric, effect.word
    name, size = metric.name, amount(metric, metric.margin)
    meaning = {
        "better": f"{name} better by more than {size}",
        "worse": f"{name} worse by more than {size}",
        "same": f"{name} not different by more than {size}",
        "not worse": f"{name} not worse by more than {size}",
        "not better": f"{name} not better by more than {size}",
        "unclear": f"{name} undecided at a margin of {size}",
    }[word]
    if metric.is_exact:
        return f"{name} {signed(effect.interval.estimate)} {metric.unit}".rstrip()
    return f"{meaning} ({signed(effect.interval.estimate)} {_bracket(effect.interval, sign=True)})"


def value_text(found: Interval, metric: Metric) -> str:
    """A value with its interval: `0.83 [0.79, 0.87] nats`."""
    return f"{number(found.estimate)} {_bracket(found)} {metric.unit}".replace("  ", " ").strip()


def claim_text(reading: Reading) -> str:
    """What a claim's effect was: the number that decided it."""
    effect = reading.effect
    if effect.is_ratio:
        return _ratio(effect.metric, effect.interval)
    found = effect.interval
    if effect.against is None:
        return value_text(found, effect.metric)
    text = f"{signed(found.estimate)} {_bracket(found, sign=True)} {effect.metric.unit}"
    return text.replace("  ", " ").strip()


def edge_text(claim: Claim) -> str:
    """The region of a claim, in its own numbers: `below 0.98 times`, `above -0.01`.

    >>> from worthit.lab.claims import Metric, superior
    >>> accuracy = Metric(id="a", name="accuracy", margin=0.02, better="higher")
    >>> edge_text(superior(accuracy, "b"))
    'above 0.02'
    """
    is_ratio = claim.metric.scale == "ratio" and not claim.is_value
    unit = " times" if is_ratio else ""
    has_low = claim.low > (0 if is_ratio else -math.inf)
    if has_low and claim.high < math.inf:
        return f"between {claim.low:.4g} and {claim.high:.4g}{unit}"
    return f"above {claim.low:.4g}{unit}" if has_low else f"below {claim.high:.4g}{unit}"


def _bracket(found: Interval, *, sign: bool = False) -> str:
    if found.low == found.high:
        return ""
    show = signed if sign else number
    if math.isinf(found.low) and math.isinf(found.high):
        return "[one seed: no interval]"
    return f"[{show(found.low)}, {show(found.high)}]"


def number(x: float) -> str:
    """Three digits, and no more zeros than they need.

    >>> number(0.12345), number(1234567.0), number(12.0), number(0.0)
    ('0.123', '1,234,567', '12', '0')
    """
    if math.isinf(x):
        return "inf" if x > 0 else "-inf"
    if x == 0:
        return "0"
    if abs(x) >= 1000:
        return f"{x:,.0f}"
    return f"{x:.3g}" if abs(x) >= 1e-4 else f"{x:.2e}"


def signed(x: float) -> str:
    """A difference with its sign.

    >>> signed(0.0031), signed(-0.002), signed(0.0)
    ('+0.0031', '-0.002', '0')
    """
    return f"+{number(x)}" if x > 0 else number(x)
