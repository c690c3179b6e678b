"""What the experiments on a published model make by hand, on numbers that a hand can check."""

from __future__ import annotations

import math

import pytest
import torch

from worthit.lab.experiments._engine import share_alike
from worthit.lab.experiments._smollm2 import divergence, loss


def test_the_divergence_is_the_sum_over_outcomes() -> None:
    plain = torch.tensor([[0.5, 0.5], [0.9, 0.1]]).log()
    other = torch.tensor([[0.25, 0.75], [0.9, 0.1]]).log()
    first = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)
    assert divergence(plain, other) == pytest.approx(first / 2, abs=1e-6)
    assert divergence(plain, plain) == pytest.approx(0.0, abs=1e-6)


def test_the_loss_is_of_the_tokens_that_follow() -> None:
    logprobs = torch.tensor([[0.5, 0.5], [0.2, 0.8], [0.1, 0.9]]).log()
    # After the first stands 1, after the second 0; what follows the third is not there.
    assert loss(logprobs, torch.tensor([[0, 1, 0]])) == pytest.approx(
        -(math.log(0.5) + math.log(0.2)) / 2, abs=1e-6
    )


def test_answers_are_alike_whole_or_not_at_all() -> None:
    assert share_alike([[1, 2], [3]], [[1, 2], [3, 4]]) == 0.5
    with pytest.raises(ValueError, match="zip"):
        share_alike([[1]], [[1], [2]])
