"""The models that experiments train are what their arguments say."""

from __future__ import annotations

import torch

from worthit.lab import models
from worthit.train import seeded


def test_rotary_positions_are_applied() -> None:
    # Without positions a causal layer sees the tokens before its own as a set.
    ids = torch.tensor([[1, 2, 3, 4, 5]])
    swapped = torch.tensor([[2, 1, 3, 4, 5]])
    differ = {}
    for position in ("rope", "nope"):
        model = seeded(models.decoder(16, n_layers=1, position=position))(0)
        with torch.no_grad():
            differ[position] = float((model(ids) - model(swapped))[0, -1].abs().max())
    assert differ["nope"] < 1e-5
    assert differ["rope"] > 1e-3
