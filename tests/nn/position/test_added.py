"""Positions that are added or biased: against marian, OPT, bloom and the papers' formulas."""

from __future__ import annotations

import math

import pytest
import torch
from nn.tolerances import assert_near
from transformers.models.bloom.modeling_bloom import build_alibi_tensor
from transformers.models.marian.modeling_marian import MarianSinusoidalPositionalEmbedding
from transformers.models.opt.modeling_opt import OPTLearnedPositionalEmbedding

from worthit.errors import InputError
from worthit.nn.position import alibi, sinusoidal
from worthit.nn.position.learned_positions import LearnedPositions


@pytest.mark.parametrize("d_model", [8, 30, 512])
def test_sinusoidal_is_marians_interleaved(d_model: int) -> None:
    theirs = MarianSinusoidalPositionalEmbedding(64, d_model)
    theirs.weight.data.copy_(theirs.create_weight())
    want = theirs(torch.Size([1, 64]))
    got = sinusoidal.table(torch.arange(64), d_model)
    half = (d_model + 1) // 2
    # Theirs has all sines before all cosines.
    assert_near(got[:, 0::2], want[:, :half])
    assert_near(got[:, 1::2], want[:, half:])


def test_sinusoidal_is_the_papers_formula() -> None:
    got = sinusoidal.table(torch.tensor([[0, 7, 1000]]), 6)
    for row, place in zip(got[0], (0, 7, 1000), strict=True):
        for i in range(3):
            angle = place / 10_000 ** (2 * i / 6)
            assert row[2 * i].item() == pytest.approx(math.sin(angle), abs=1e-4)
            assert row[2 * i + 1].item() == pytest.approx(math.cos(angle), abs=1e-4)


@pytest.mark.parametrize("n_heads", [1, 4, 12, 16, 20])
def test_alibi_is_blooms(n_heads: int) -> None:
    mask = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]])
    want = build_alibi_tensor(mask, n_heads, torch.float32).view(2, n_heads, 1, 6)
    positions = (mask.cumsum(-1) - 1).clamp_min(0) * mask
    assert_near(alibi.bias(n_heads, positions), want)


def test_alibis_slopes_are_the_papers() -> None:
    assert alibi.slopes(8).tolist() == [2.0**-i for i in range(1, 9)]
    # 12 heads: the eight above, then every second of sixteen (the authors' code).
    finer = [2.0 ** (-0.5 * i) for i in (1, 3, 5, 7)]
    assert alibi.slopes(12).tolist() == pytest.approx([2.0**-i for i in range(1, 9)] + finer)


def test_learned_positions_are_opts_with_its_offset() -> None:
    theirs = OPTLearnedPositionalEmbedding(20, 8)
    ours = LearnedPositions(22, 8, offset=2)
    with torch.no_grad():
        ours.weight.copy_(theirs.weight)
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    positions = (mask.cumsum(-1) - 1).clamp_min(0)
    want = theirs(mask)
    got = ours(positions)
    # Theirs reads row 1 on padding, which nothing looks at.
    assert_near(got[mask.bool()], want[mask.bool()])


def test_no_position_beyond_the_table() -> None:
    table = LearnedPositions(22, 8, offset=2)
    table(torch.tensor([[19]]))
    with pytest.raises(InputError, match="learned positions for 20 tokens, got position 20"):
        table(torch.tensor([[20]]))
