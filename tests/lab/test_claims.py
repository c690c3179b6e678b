"""Claims as regions, and what effects say: every side of every margin, either way being better."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from lab.fake import FAKE

from worthit.errors import SpecError, WorthitError
from worthit.lab.claims import (
    Claim,
    Metric,
    at_least,
    at_most,
    no_worse,
    not_better,
    ordered,
    ratio_between,
    same,
    superior,
    worse,
)
from worthit.lab.experiment import Experiment, Prediction
from worthit.lab.reading import Values, compare, effect, read_claims, state_of_all
from worthit.lab.statistics import Interval
from worthit.lab.wording import ratio_text

ACCURACY = Metric(id="acc", name="accuracy", margin=0.02, better="higher")
LOSS = Metric(id="loss", name="loss", margin=0.1, unit="nats")
TIME = Metric(id="time", name="time", margin=0.2, unit="s", scale="ratio")
RATE = replace(TIME, id="rate", name="rate", unit="tokens/s", better="higher")
INF = math.inf


@pytest.mark.parametrize(
    ("claim", "region"),
    [
        (superior(ACCURACY, "b"), (0.02, INF)),
        (superior(LOSS, "b"), (-INF, -0.1)),
        (superior(LOSS, "b", by=0.0), (-INF, 0.0)),
        (superior(TIME, "b"), (0.0, 0.8)),
        (superior(RATE, "b"), (1.2, INF)),
        (no_worse(ACCURACY, "b"), (-0.02, INF)),
        (no_worse(LOSS, "b"), (-INF, 0.1)),
        (no_worse(TIME, "b"), (0.0, 1.2)),
        (no_worse(RATE, "b"), (0.8, INF)),
        (not_better(ACCURACY, "b"), (-INF, 0.02)),
        (not_better(LOSS, "b"), (-0.1, INF)),
        (not_better(TIME, "b"), (0.8, INF)),
        (not_better(RATE, "b"), (0.0, 1.2)),
        (worse(ACCURACY, "b"), (-INF, -0.02)),
        (worse(LOSS, "b"), (0.1, INF)),
        (worse(TIME, "b"), (1.2, INF)),
        (worse(RATE, "b"), (0.0, 0.8)),
        (same(LOSS, "b"), (-0.1, 0.1)),
        (same(TIME, "b"), (1 / 1.2, 1.2)),
        (ratio_between(TIME, "b", 0.5, 2.0), (0.5, 2.0)),
        (at_least(ACCURACY, "b", 0.9), (0.9, INF)),
        (at_most(LOSS, "b", 1.0), (-INF, 1.0)),
    ],
    ids=lambda x: x.statement if isinstance(x, Claim) else "",
)
def test_regions(claim: Claim, region: tuple[float, float]) -> None:
    assert (claim.low, claim.high) == pytest.approx(region)


def test_an_order_is_a_chain_of_claims() -> None:
    first, second = ordered(LOSS, "a", "b", "c")
    assert (first.arm, first.against) == ("a", "b")
    assert (second.arm, second.against) == ("b", "c")
    assert second.statement == "b: loss better against c"


def test_a_ratio_needs_a_metric_of_ratios() -> None:
    with pytest.raises(SpecError, match="give it scale='ratio'"):
        ratio_between(LOSS, "b", 0.5)


def values(metric: Metric, base: list[float], other: list[float]) -> Values:
    return {
        "a": {i: {metric.id: x} for i, x in enumerate(base)},
        "b": {i: {metric.id: x} for i, x in enumerate(other)},
    }


ZERO = [1.0, 1.1, 0.9, 1.0, 1.05]


@pytest.mark.parametrize(
    ("metric", "shift", "noise", "word"),
    [
        (LOSS, -0.3, 0.01, "better"),
        (LOSS, 0.3, 0.01, "worse"),
        (LOSS, 0.0, 0.01, "same"),
        (LOSS, -0.1, 0.05, "not worse"),
        (LOSS, 0.1, 0.05, "not better"),
        (LOSS, 0.0, 0.5, "unclear"),
        (replace(LOSS, better="higher"), 0.3, 0.01, "better"),
        (replace(LOSS, better="higher"), -0.1, 0.05, "not better"),
        (replace(LOSS, margin=0.0), -0.1, 0.01, "better"),
    ],
)
def test_words(metric: Metric, shift: float, noise: float, word: str) -> None:
    other = [x + shift + noise * sign for x, sign in zip(ZERO, (1, -1, 0.5, -0.5, 0), strict=True)]
    assert effect(values(metric, ZERO, other), metric, "b", "a").word == word


@pytest.mark.parametrize(("factor", "word"), [(0.5, "better"), (1.0, "same"), (2.0, "worse")])
def test_words_of_ratios(factor: float, word: str) -> None:
    other = [x * factor for x in ZERO]
    found = effect(values(TIME, ZERO, other), TIME, "b", "a")
    assert found.word == word
    assert found.interval.estimate == pytest.approx(factor)


def test_pairs_are_compared_by_seed() -> None:
    """Seeds that differ hugely and alike in both arms cancel; a seed that one lacks is left out."""
    base = [1.0, 10.0, 100.0]
    found = effect(values(LOSS, base, [x + 0.5 for x in base]), LOSS, "b", "a")
    assert (found.interval.low, found.interval.high) == pytest.approx((0.5, 0.5))
    both = values(LOSS, [*base, 7.0], [x + 0.5 for x in base])
    assert effect(both, LOSS, "b", "a").seeds == (0, 1, 2)


def experiment(*claims: Claim) -> Experiment:
    arms = tuple(replace(FAKE.arms[0], id=name) for name in ("a", "b"))
    metrics = tuple({c.metric.id: c.metric for c in claims}.values())
    return replace(FAKE, arms=arms, metrics=metrics, claims=claims, predicted=None)


def test_claims_are_read_together() -> None:
    noisy = [x - 0.3 + d for x, d in zip(ZERO, (0.1, -0.1, 0.05, -0.05, 0.0), strict=True)]
    alone = read_claims(experiment(superior(LOSS, "b")), values(LOSS, ZERO, noisy))
    claims = (superior(LOSS, "b"), superior(LOSS, "b", by=0.05), no_worse(LOSS, "b"))
    together = read_claims(experiment(*claims), values(LOSS, ZERO, noisy))
    # The strictest is read last, at the level of a claim alone; the easiest first, more strictly.
    assert together[0].effect.interval.level == alone[0].effect.interval.level == 0.95
    assert together[2].effect.interval.level == pytest.approx(1 - 0.05 / 3)
    assert [r.state for r in together] == ["confirmed"] * 3


def test_what_is_counted_takes_no_share_of_the_error() -> None:
    size = Metric(id="size", name="size", margin=0.01, scale="ratio", is_exact=True)
    both = {
        arm: {i: {"loss": x, "size": n} for i, x in enumerate(row)}
        for arm, row, n in (("a", ZERO, 10.0), ("b", [x - 0.3 for x in ZERO], 5.0))
    }
    claims = (superior(LOSS, "b"), ratio_between(size, "b", 0.4, 0.6))
    first, second = read_claims(experiment(*claims), both)
    assert first.effect.interval.level == 0.95
    assert second.state == "confirmed"
    assert second.effect.interval.low == second.effect.interval.high == 0.5


@pytest.mark.parametrize(
    ("shifts", "state"),
    [((-0.3, -0.3), "confirmed"), ((-0.3, 0.3), "refuted"), ((-0.3, -0.1), "inconclusive")],
)
def test_any_claim_refutes_and_all_confirm(shifts: tuple[float, float], state: str) -> None:
    tilt = (0.03, -0.03, 0.02, -0.02, 0.0)
    arms = {"a": ZERO}
    for name, shift in zip("bc", shifts, strict=True):
        arms[name] = [x + shift + d for x, d in zip(ZERO, tilt, strict=True)]
    found = {name: {i: {"loss": x} for i, x in enumerate(row)} for name, row in arms.items()}
    e = experiment(superior(LOSS, "b"))
    e = replace(
        e,
        arms=(*e.arms, replace(e.arms[0], id="c")),
        claims=(superior(LOSS, "b"), superior(LOSS, "c")),
    )
    assert state_of_all(read_claims(e, found)) == state


@pytest.mark.parametrize(
    ("prediction", "agreement"),
    [
        ({"value": 0.5, "low": 0.4, "high": 0.6}, "agrees"),
        ({"value": 0.58}, "agrees"),
        ({"value": 0.9, "low": 0.8, "high": 1.0}, "off"),
        ({"value": None}, "not predicted"),
    ],
)
def test_predictions_beside_measurements(prediction: dict[str, float], agreement: str) -> None:
    e = experiment(superior(TIME, "b"))
    noisy = [x * 0.5 * (1 + d) for x, d in zip(ZERO, (0.01, -0.01, 0.02, -0.02, 0), strict=True)]
    p = Prediction(metric="time", arm="b", **prediction)  # type: ignore[arg-type]  # as named
    assert compare(e, [p], values(TIME, ZERO, noisy))[0].agreement == agreement


def test_a_claim_on_nobody_is_refused() -> None:
    with pytest.raises(SpecError, match="arm 'z' is not among"):
        replace(FAKE, claims=(superior(FAKE.metrics[0], "z"),))
    with pytest.raises(SpecError, match="metric 'acc' is not among"):
        replace(FAKE, claims=(superior(ACCURACY, "quick"),))
    with pytest.raises(SpecError, match="compares 'plain' with itself"):
        replace(FAKE, claims=(superior(FAKE.metrics[0], "plain"),))
    with pytest.raises(WorthitError, match="gave no metric"):
        effect(values(LOSS, ZERO, ZERO), ACCURACY, "b", "a")


@pytest.mark.parametrize(
    ("metric", "interval", "text"),
    [
        (TIME, (0.5, 0.4, 0.625), "time 2x faster [1.6, 2.5]"),
        (TIME, (1.26, 1.22, 1.3), "time 1.26x slower [1.22, 1.3]"),
        (replace(TIME, unit="bytes", name="cache"), (0.25, 0.25, 0.25), "cache 4x smaller"),
        (replace(TIME, unit="", name="parts", is_exact=True), (1.0, 1.0, 1.0), "parts the same"),
        (replace(TIME, unit="", name="parts"), (1.5, 1.5, 1.5), "parts 1.5x more"),
    ],
)
def test_ratios_in_words(metric: Metric, interval: tuple[float, ...], text: str) -> None:
    assert ratio_text(metric, Interval(*interval)) == text
