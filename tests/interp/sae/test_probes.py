"""Probes of planted latents: by hand, and by scikit-learn."""

from __future__ import annotations

import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch.nn import functional
from torch.testing import assert_close

from worthit.interp.sae.probes import absorption, agreement, auroc, recovery, single, splitting


def test_auroc_is_that_of_scikit_learn() -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.randint(5, (60, 4), generator=generator).double()  # many ties
    labels = torch.rand(60, generator=generator) > 0.7
    want = [roc_auc_score(labels, values[:, j]) for j in range(4)]
    assert_close(auroc(values, labels), torch.tensor(want, dtype=torch.float64))
    assert single(torch.cat([values, labels[:, None] * 1.0], 1), labels) == (4, 1.0)


def test_directions_found() -> None:
    eye = torch.eye(4)
    near = functional.normalize(eye[:2] + 0.1, dim=-1)
    assert recovery(near, eye) == 0.5
    assert agreement(eye, eye.flip(0)) == 1.0
    assert agreement(eye, torch.cat([near, -eye[2:]])) == 0.5
    # Matched once: two latents cannot both be the same one of the other.
    assert agreement(eye[[0, 0]], eye[[0, 1]]) == 0.5


def test_a_feature_that_a_special_case_absorbed() -> None:
    on = torch.tensor([True, True, True, True, False])
    latents = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 2.0], [1.0, 0.0], [0.0, 0.0]])
    assert absorption(latents, on, torch.eye(2), torch.tensor([1.0, 0.2])) == 0.25


def test_a_feature_that_was_split() -> None:
    labels = torch.arange(12) < 6
    one = torch.zeros(12, 5)
    one[:6, 3] = 1.0
    assert splitting(one, labels) == 1
    three = torch.zeros(12, 5)
    for i in range(6):
        three[i, i // 2] = 1.0
    three[7:, 4] = 1.0
    assert splitting(three, labels) == 3
    assert single(three, labels)[1] == pytest.approx(2 / 3)
