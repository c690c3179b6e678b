"""Scores of errors: against scikit-learn, and by hand."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import brier_score_loss, roc_auc_score

from worthit.errors import InputError
from worthit.interp.calibration import (
    abstention_curve,
    area_under_risk,
    auroc,
    brier,
    estimate,
    expected_calibration_error,
    interval_of_mean,
    judge_detector,
    platt,
)


def drawn(n: int = 300, seed: int = 0):
    g = np.random.default_rng(seed)
    y = (g.random(n) < 0.4).astype(float)
    return np.round(g.normal(size=n) + y, 1), y  # rounded: with ties


def test_auroc_and_brier_as_scikit_learn() -> None:
    s, y = drawn()
    assert auroc(s, y) == pytest.approx(roc_auc_score(y, s))
    p = 1 / (1 + np.exp(-s))
    assert brier(p, y) == pytest.approx(brier_score_loss(y, p))
    with pytest.raises(InputError, match="one kind only"):
        auroc([1.0, 2.0], [1, 1])


def test_calibration_error_by_hand() -> None:
    # Bins [0, 0.5) and [0.5, 1]: |0.2 - 0.5| of two rows, |0.9 - 1| of two.
    p, y = [0.1, 0.3, 0.8, 1.0], [0, 1, 1, 1]
    assert expected_calibration_error(p, y, n_bins=2) == pytest.approx(0.5 * 0.3 + 0.5 * 0.1)
    with pytest.raises(InputError, match="lie in"):
        expected_calibration_error([1.5], [1])


def test_platt_finds_the_line_that_made_the_labels() -> None:
    g = np.random.default_rng(1)
    s = g.normal(size=20_000)
    y = (g.random(20_000) < 1 / (1 + np.exp(-(1.5 * s - 0.5)))).astype(float)
    found = platt(s, y)
    assert found.slope == pytest.approx(1.5, abs=0.1)
    assert found.offset == pytest.approx(-0.5, abs=0.1)
    # Kinds that part completely still give a finite slope.
    assert np.isfinite(platt([0.0, 1.0, 2.0, 3.0], [0, 0, 1, 1]).slope)


def test_risk_by_hand() -> None:
    curve = abstention_curve([4.0, 3.0, 3.0, 1.0], [0, 1, 0, 1])
    assert curve == [(0.25, 0.0), (0.75, pytest.approx(1 / 3)), (1.0, 0.5)]
    assert area_under_risk(curve) == pytest.approx(0.25 * 0 + 0.5 / 3 + 0.25 * 0.5)


def test_intervals_hold_what_they_should() -> None:
    # Wilson 1927: 0 of 10 gives [0, 0.2775] (Agresti & Coull 1998).
    low, high = interval_of_mean([0.0] * 10)
    assert (low, high) == (pytest.approx(0, abs=1e-9), pytest.approx(0.2775, abs=1e-3))
    inside = 0
    for seed in range(40):
        s, y = drawn(120, seed)
        found = estimate(auroc, s, y, seed=seed, n=200)
        # Of two normals one deviation apart: Phi(1 / sqrt 2) = 0.7602.
        inside += found.low <= 0.7602 <= found.high
    assert inside >= 34


def test_a_detector_without_signal_says_so() -> None:
    g = np.random.default_rng(2)
    wrong = (g.random(200) < 0.3).astype(float)
    noise, signal = g.normal(size=200), wrong + 0.3 * g.normal(size=200)
    half = slice(0, 100), slice(100, 200)
    reports = {
        name: judge_detector(
            name, s[half[1]], wrong[half[1]], fit_score=s[half[0]], fit_is_wrong=wrong[half[0]]
        )
        for name, s in (("noise", noise), ("signal", signal))
    }
    assert reports["noise"].is_useless
    assert not reports["signal"].is_useless
    assert reports["signal"].auroc.value > 0.95
    assert reports["signal"].ece.value < 0.15
    assert reports["signal"].to_json()["risk_by_coverage"][0][1] == 0.0
