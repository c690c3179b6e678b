"""Scores against sums by hand, and against a loop."""

from __future__ import annotations

import json
import math

import pytest
import torch

from worthit.errors import InputError
from worthit.lab.tasks import task
from worthit.lab.tasks.scores import Scores, evaluate, score
from worthit.train.batch import IGNORE, Batch


def logits_for(choices: list[list[int]], vocab_size: int, by: float = 2.0) -> torch.Tensor:
    """Zero but for `by` at the token that each position chooses."""
    logits = torch.zeros(len(choices), len(choices[0]), vocab_size)
    return logits.scatter_(2, torch.tensor(choices)[..., None], by)


def test_by_hand() -> None:
    batch = Batch(
        torch.zeros(3, 3, dtype=torch.int64),
        torch.tensor([[1, 2, IGNORE], [IGNORE, 0, 1], [IGNORE, IGNORE, IGNORE]]),
        ("a", "b", "b"),
    )
    # Row one: both right. Row two: the first is wrong. Row three has nothing to score.
    found = score(logits_for([[1, 2, 0], [0, 1, 1], [0, 0, 0]], 4), batch)
    right = math.log(math.exp(2) + 3) - 2
    wrong = math.log(math.exp(2) + 3)
    assert (found.overall.n_rows, found.overall.n_tokens) == (2, 4)
    assert found.overall.loss == pytest.approx((3 * right + wrong) / 4, rel=1e-6)
    assert found.overall.token_accuracy == 3 / 4
    assert found.overall.exact_match == 1 / 2
    assert found.by_group["a"].exact_match == 1
    assert found.by_group["b"].n_rows == 1
    assert found.by_group["b"].token_accuracy == 1 / 2
    assert found.by_group["b"].loss == pytest.approx((right + wrong) / 2, rel=1e-6)


def test_batches_add_up_to_the_whole() -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randint(5, (11, 6), generator=generator)
    targets = torch.randint(5, (11, 6), generator=generator)
    targets[torch.rand(11, 6, generator=generator) < 0.4] = IGNORE
    groups = tuple("xyz"[i % 3] for i in range(11))
    table = torch.randn(5, 5, generator=generator)

    def parts(size: int) -> list[Batch]:
        return [
            Batch(inputs[i : i + size], targets[i : i + size], groups[i : i + size])
            for i in range(0, 11, size)
        ]

    whole, split = (
        evaluate(lambda ids: table[ids], parts(11)),
        evaluate(table.__getitem__, parts(2)),
    )
    assert whole.overall.loss == pytest.approx(split.overall.loss, rel=1e-12)
    for name in ("n_rows", "n_tokens", "n_right_tokens", "n_right_rows"):
        assert getattr(whole.overall, name) == getattr(split.overall, name)
        groups_sum = sum(getattr(found, name) for found in split.by_group.values())
        assert groups_sum == getattr(whole.overall, name)
    # A loop over every position.
    loss, n, right = 0.0, 0, 0
    for row in range(11):
        for place in range(6):
            target = int(targets[row, place])
            if target != IGNORE:
                row_logits = table[inputs[row, place]].double()
                loss += float(row_logits.exp().sum().log() - row_logits[target])
                right += int(row_logits.argmax()) == target
                n += 1
    assert (whole.overall.n_tokens, whole.overall.n_right_tokens) == (n, right)
    assert whole.overall.loss == pytest.approx(loss / n, rel=1e-6)


def test_an_oracle_is_always_right() -> None:
    data = task("parity", seq_len=16)

    def oracle(ids: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.one_hot(ids.cumsum(1) % 2, 2) * 50.0

    found = evaluate(oracle, data.held_out("test"))
    assert found.overall.exact_match == found.overall.token_accuracy == 1
    assert found.overall.loss == pytest.approx(0, abs=1e-9)
    assert (found.overall.n_rows, found.overall.n_tokens) == (1024, 16 * 1024)


def test_modules_are_scored_in_evaluation_mode_and_left_as_they_were() -> None:
    class Noisy(torch.nn.Module):
        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            assert not self.training
            assert not torch.is_grad_enabled()
            return torch.zeros(*ids.shape, 2)

    model = Noisy()
    found = evaluate(model, task("parity").held_out())
    assert model.training
    assert found.overall.loss == pytest.approx(math.log(2), rel=1e-6)
    with pytest.raises(InputError, match=r"logits: must be .* \(2, 3\), got \(2, 3\)"):
        score(torch.zeros(2, 3), Batch(torch.zeros(2, 3), torch.zeros(2, 3)))


def test_records_are_json() -> None:
    found = evaluate(
        lambda ids: torch.zeros(*ids.shape, 256), task("associative-recall").held_out()
    )
    record = json.loads(json.dumps(found.to_record()))
    assert record["n_rows"] == record["by_group"]["8 pairs"]["n_rows"] == 1024
    assert math.isnan(Scores().overall.loss)
