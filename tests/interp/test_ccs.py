"""CCS: the loss by hand, a planted feature, and what it does without one."""

from __future__ import annotations

import pytest
import torch

from worthit.errors import InputError
from worthit.interp.ccs import ccs_loss, fit_ccs, normalised


def pairs(n: int = 200, d: int = 10, strength: float = 3.0, seed: int = 0):
    """Yes and no of questions whose truth moves both sides along one direction, oppositely."""
    g = torch.Generator().manual_seed(seed)
    truth = torch.randint(2, (n,), generator=g)
    axis = torch.nn.functional.normalize(torch.randn(d, generator=g), dim=0)
    sign = (2 * truth - 1)[:, None] * strength * axis
    topic = torch.randn(n, d, generator=g)
    word = 4 * torch.randn(d, generator=g)  # what the word itself adds to one side
    yes = topic + sign + word + 0.1 * torch.randn(n, d, generator=g)
    no = topic - sign - word + 0.1 * torch.randn(n, d, generator=g)
    return yes, no, truth, axis


def test_the_loss_by_hand() -> None:
    p, q = torch.tensor([0.9, 0.5]), torch.tensor([0.2, 0.5])
    # Consistency (0.9 - 0.8)^2, 0; confidence 0.2^2, 0.5^2.
    assert float(ccs_loss(p, q)) == pytest.approx((0.01 + 0) / 2 + (0.04 + 0.25) / 2)


def test_a_side_is_normalised_by_itself() -> None:
    x = torch.randn(50, 3) * torch.tensor([1.0, 5.0, 0.1]) + 7
    torch.testing.assert_close(normalised(x, "mean").mean(0), torch.zeros(3, dtype=torch.float64))
    torch.testing.assert_close(normalised(x, "standard").std(0), torch.ones(3, dtype=torch.float64))


@pytest.mark.parametrize("how", ["mean", "standard"])
def test_a_planted_truth_is_found_without_labels(how: str) -> None:
    yes, no, truth, _ = pairs()
    fit, held = slice(0, 120), slice(120, 200)
    found = fit_ccs(yes[fit], no[fit], normalisation=how, n_restarts=4, n_steps=200)
    assert found.accuracy(yes[held], no[held], truth[held]) > 0.95
    assert len(found.losses) == 4
    assert found.loss == min(found.losses)


def test_any_feature_that_the_sides_negate_is_as_good_as_truth() -> None:
    # Farquhar et al. 2023: a stronger feature that has nothing to do with truth wins.
    yes, no, truth, _ = pairs(strength=0.4)
    g = torch.Generator().manual_seed(5)
    other = torch.randint(2, (len(truth),), generator=g)
    push = torch.zeros(yes.shape[1])
    push[0] = 6.0
    yes, no = yes + (2 * other - 1)[:, None] * push, no - (2 * other - 1)[:, None] * push
    found = fit_ccs(yes, no, n_restarts=4, n_steps=200)
    assert found.accuracy(yes, no, other) > 0.95
    assert found.accuracy(yes, no, truth) < 0.7


def test_bad_input_is_named() -> None:
    with pytest.raises(InputError, match="must both be"):
        fit_ccs(torch.ones(3, 2), torch.ones(4, 2))
    with pytest.raises(InputError, match="mean or standard"):
        fit_ccs(torch.ones(3, 2), torch.ones(3, 2), normalisation="none")
