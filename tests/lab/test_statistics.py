"""Statistics against scipy's own tests, published tables, and by simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from worthit.errors import InputError
from worthit.lab.statistics import (
    Interval,
    bootstrap_interval,
    differences,
    holm_levels,
    minimum_detectable_effect,
    p_value,
    proportion_interval,
    seeds_needed,
    sign_test,
    state_of,
    t_interval,
)

SAMPLE = [0.31, -0.12, 0.44, 0.27, 0.08, 0.19]


def test_t_interval_is_scipys() -> None:
    want = stats.ttest_1samp(SAMPLE, 0.0).confidence_interval(0.9)
    got = t_interval(SAMPLE, 0.9)
    assert (got.low, got.high) == pytest.approx((want.low, want.high))


def test_t_interval_of_a_table() -> None:
    # Student 1908, the sleep data: paired differences of ten patients, 95 % interval 0.70 to 2.46.
    sleep = [1.2, 2.4, 1.3, 1.3, 0.0, 1.0, 1.8, 0.8, 4.6, 1.4]
    got = t_interval(sleep)
    assert got.estimate == pytest.approx(1.58)
    assert (got.low, got.high) == pytest.approx((0.7001, 2.4599), abs=1e-4)


def test_one_seed_says_nothing() -> None:
    got = t_interval([0.3])
    assert (got.low, got.high) == (-math.inf, math.inf)
    assert state_of(got, 0.0, math.inf) == "inconclusive"
    assert minimum_detectable_effect(1.0, 1) == math.inf


@pytest.mark.parametrize("bad", [[], [1.0, math.nan], [math.inf]])
def test_what_is_no_number_is_refused(bad: list[float]) -> None:
    with pytest.raises(InputError, match="finite numbers"):
        t_interval(bad)


@pytest.mark.parametrize("method", ["BCa", "percentile"])
def test_bootstrap_is_near_t_for_many(method: str) -> None:
    x = np.random.default_rng(0).normal(2.0, 1.0, 200).tolist()
    t, b = t_interval(x), bootstrap_interval(x, method=method)  # type: ignore[arg-type]  # a name
    assert (b.low, b.high) == pytest.approx((t.low, t.high), abs=0.03)
    assert bootstrap_interval(x, method=method) == b  # type: ignore[arg-type]  # seeded: the same again


def test_bootstrap_of_equal_numbers_is_a_point() -> None:
    assert bootstrap_interval([2.0, 2.0, 2.0]) == Interval(2.0, 2.0, 2.0, 0.95, 3, "BCa")


def simulated(n: int, n_runs: int, shape: str) -> np.ndarray:
    rng = np.random.default_rng(1)
    if shape == "normal":
        return rng.normal(0.0, 1.0, (n_runs, n))
    return rng.uniform(-1.0, 1.0, (n_runs, n))


@pytest.mark.parametrize(("shape", "n"), [("normal", 3), ("normal", 5), ("uniform", 8)])
def test_intervals_cover_19_of_20(shape: str, n: int) -> None:
    runs = simulated(n, 2000, shape)
    hits = [t_interval(row.tolist()) for row in runs]
    covered = np.mean([i.low <= 0.0 <= i.high for i in hits])
    # Two thousand runs: the standard error of the share is 0.5 points.
    assert covered == pytest.approx(0.95, abs=0.015)


def test_ratios_cover_too() -> None:
    rng = np.random.default_rng(2)
    covered = 0
    for _ in range(1000):
        shared = rng.normal(0, 0.5, 5)
        a = np.exp(math.log(0.8) + shared + rng.normal(0, 0.05, 5))
        b = np.exp(shared + rng.normal(0, 0.05, 5))
        got = t_interval(differences(a.tolist(), b.tolist(), by_ratio=True)).exp()
        covered += got.low <= 0.8 <= got.high
    assert covered / 1000 == pytest.approx(0.95, abs=0.025)


def test_a_ratio_needs_positive_numbers() -> None:
    with pytest.raises(InputError, match="positive"):
        differences([1.0, 0.0], [1.0, 1.0], by_ratio=True)


def test_p_is_that_of_one_sided_tests() -> None:
    superior = stats.ttest_1samp(SAMPLE, 0.05, alternative="greater").pvalue
    assert p_value(SAMPLE, 0.05, math.inf) == pytest.approx(superior)
    # Equivalence: the larger of two one-sided tests (Schuirmann 1987).
    low = stats.ttest_1samp(SAMPLE, -0.4, alternative="greater").pvalue
    high = stats.ttest_1samp(SAMPLE, 0.4, alternative="less").pvalue
    assert p_value(SAMPLE, -0.4, 0.4) == pytest.approx(max(low, high))


def test_interval_and_p_decide_alike() -> None:
    rng = np.random.default_rng(3)
    for _ in range(300):
        x = rng.normal(rng.uniform(-1, 1), 0.5, 5).tolist()
        low, high = sorted(rng.uniform(-1, 1, 2).tolist())
        for level in (0.9, 0.95, 0.99):
            decided = state_of(t_interval(x, level), low, high) != "inconclusive"
            assert decided == (p_value(x, low, high) < (1 - level) / 2)


@pytest.mark.parametrize(
    ("interval", "state"),
    [
        ((0.01, 0.05), "confirmed"),
        ((-0.05, -0.01), "refuted"),
        ((-0.01, 0.01), "inconclusive"),
        ((-0.02, 0.0), "refuted"),
    ],
)
def test_where_an_interval_lies_decides(interval: tuple[float, float], state: str) -> None:
    assert state_of(Interval(0.0, *interval), 0.0, math.inf) == state


def test_holm_by_hand() -> None:
    # Holm 1979's procedure on 0.01, 0.04, 0.03, 0.005 at 5 %, here one-sided and so at 2.5 %:
    # 0.005 < 0.025/4, 0.01 > 0.025/3: the first is told, and the others are read at 5 %/3.
    levels = holm_levels([0.01, 0.04, 0.03, 0.005])
    assert levels == pytest.approx([1 - 0.05 / 3, 1 - 0.05 / 3, 1 - 0.05 / 3, 1 - 0.05 / 4])


def test_holm_keeps_all_statements_right_together() -> None:
    rng = np.random.default_rng(4)
    wrong = 0
    for _ in range(1500):
        # Four true effects of exactly 0, each claimed to be above 0: any decision is an error.
        samples = [rng.normal(0, 1, 5).tolist() for _ in range(4)]
        levels = holm_levels([p_value(x, 0.0, math.inf) for x in samples])
        states = [
            state_of(t_interval(x, level), 0.0, math.inf)
            for x, level in zip(samples, levels, strict=True)
        ]
        wrong += any(state != "inconclusive" for state in states)
    assert wrong / 1500 == pytest.approx(0.05, abs=0.015)


def test_detectable_effect_is_detected_four_times_in_five() -> None:
    effect = minimum_detectable_effect(1.0, 6)
    rng = np.random.default_rng(5)
    rows = rng.normal(effect, 1.0, (3000, 6))
    told = [t_interval(row.tolist()).low > 0 for row in rows]
    assert np.mean(told) == pytest.approx(0.8, abs=0.02)


def test_seeds_needed_is_the_inverse() -> None:
    # Cohen 1988, a paired design of effect size 0.5 at 5 % and a power of 80 %: 34 pairs.
    assert seeds_needed(1.0, 0.5) == 34
    assert minimum_detectable_effect(1.0, 34) <= 0.5 < minimum_detectable_effect(1.0, 33)
    assert seeds_needed(1.0, 1e-4) is None


def test_exact_binomials() -> None:
    # The rule of three: 0 of n is at most about 3/n; exactly 1 - 0.025^(1/n).
    assert proportion_interval(0, 30).high == pytest.approx(1 - 0.025 ** (1 / 30))
    assert sign_test([1.0] * 6) == pytest.approx(2 * 0.5**6)
    assert sign_test([0.0, 0.0]) == 1.0
