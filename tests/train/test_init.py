"""Fresh models: a function of spec and seed, undecided at first, with what modules start from."""

from __future__ import annotations

import math

import pytest
import torch
from training_cases import Addition, tiny

from worthit.nn import build
from worthit.spec.model import Layer, Mamba
from worthit.train.init import EMBEDDING_STD, initialise, seeded
from worthit.train.objective import mean_loss


def test_a_seed_is_a_model() -> None:
    one, same, other = (seeded(tiny())(seed).state_dict() for seed in (1, 1, 2))
    torch.testing.assert_close(one, same, rtol=0, atol=0)
    assert not torch.equal(one["embedding.weight"], other["embedding.weight"])


def test_the_caller_keeps_its_random_numbers() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    seeded(tiny())(0)
    torch.testing.assert_close(torch.rand(3), expected, rtol=0, atol=0)


@pytest.mark.parametrize("is_tied", [False, True])
def test_a_fresh_model_is_undecided(is_tied: bool) -> None:
    spec = tiny(d_model=64, has_tied_embeddings=is_tied)
    loss = mean_loss(seeded(spec)(0), Addition().held_out())
    assert loss == pytest.approx(math.log(8), rel=0.15)


def test_torchs_own_embeddings_are_not_where_they_are_tied() -> None:
    """The control, and the reason for the narrower start."""
    torch.manual_seed(0)
    model = build(tiny(d_model=64, has_tied_embeddings=True))
    assert mean_loss(model, Addition().held_out()) > 2 * math.log(8)


def test_only_tables_are_drawn_anew() -> None:
    mamba = Mamba(d_inner=32, d_state=4, d_conv=4, dt_rank=2)
    torch.manual_seed(0)
    model = build(tiny(d_model=64, vocab_size=512, layers=(Layer(mixers=(mamba,), ffn=None),)))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    initialise(model)
    changed = {n for n, t in model.state_dict().items() if not torch.equal(t, before[n])}
    assert changed == {"embedding.weight"}
    assert float(model.embedding.weight.detach().std()) == pytest.approx(EMBEDDING_STD, rel=0.05)
