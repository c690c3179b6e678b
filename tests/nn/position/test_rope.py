"""Rotary positions and every way of stretching them, against transformers and the formulas."""

from __future__ import annotations

import math

import pytest
import torch
from nn.tolerances import assert_near
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.cohere.modeling_cohere import apply_rotary_pos_emb as rotate_interleaved
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

from worthit.nn.position.rope import base_frequencies, frequencies, rotate, rotation
from worthit.nn.tokens import Tokens, tokens_of
from worthit.spec.model import Position, PositionScaling

THETA, DIM, KNOWN = 500_000.0, 32, 128


def config_of(kind: str, **extra: object) -> LlamaConfig:
    parameters = {"rope_type": kind, "rope_theta": THETA, **extra}
    return LlamaConfig(
        hidden_size=4 * DIM,
        num_attention_heads=4,
        max_position_embeddings=KNOWN,
        rope_parameters=parameters,
    )


def scaled(kind: str, factor: float = 4.0, **extra: object) -> Position:
    scaling = PositionScaling(kind=kind, factor=factor, original_context_len=KNOWN, **extra)
    return Position(rope_theta=THETA, scaling=scaling)


LONG = [1.0 + i / 4 for i in range(DIM // 2)]
SHORT = [1.0 + i / 16 for i in range(DIM // 2)]
OLD = {"original_max_position_embeddings": KNOWN}
STRETCHES = {
    "linear": (scaled("linear"), config_of("linear", factor=4.0)),
    "dynamic": (scaled("dynamic"), config_of("dynamic", factor=4.0)),
    "yarn": (scaled("yarn"), config_of("yarn", factor=4.0, **OLD)),
    "yarn with its own ramp": (
        scaled("yarn", 8.0, beta_fast=24.0, beta_slow=2.0, is_truncated=False),
        config_of("yarn", factor=8.0, beta_fast=24.0, beta_slow=2.0, truncate=False, **OLD),
    ),
    "yarn of deepseek": (
        scaled("yarn", 40.0, mscale=1.0, mscale_all_dim=0.7),
        config_of("yarn", factor=40.0, mscale=1.0, mscale_all_dim=0.7, **OLD),
    ),
    "yarn with a stated temperature": (
        scaled("yarn", attention_factor=1.25),
        config_of("yarn", factor=4.0, attention_factor=1.25, **OLD),
    ),
    "longrope": (
        scaled("longrope", short_factors=tuple(SHORT), long_factors=tuple(LONG)),
        config_of("longrope", factor=4.0, short_factor=SHORT, long_factor=LONG, **OLD),
    ),
    "llama3": (
        scaled("llama3", 8.0, low_freq_factor=1.0, high_freq_factor=4.0),
        config_of("llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, **OLD),
    ),
}


@pytest.mark.parametrize("length", [1, KNOWN - 1, KNOWN, KNOWN + 1, 3 * KNOWN, 100_000])
@pytest.mark.parametrize("kind", STRETCHES)
def test_stretched_frequencies_are_transformers(kind: str, length: int) -> None:
    position, config = STRETCHES[kind]
    got, factor = frequencies(position, DIM, length)
    init = ROPE_INIT_FUNCTIONS[config.rope_parameters["rope_type"]]
    want, want_factor = init(config, torch.device("cpu"), seq_len=length)
    assert_near(got / want, torch.ones_like(want))
    assert factor == pytest.approx(want_factor)


def test_unscaled_frequencies_are_transformers() -> None:
    config = config_of("default")
    want = LlamaRotaryEmbedding(config).inv_freq
    assert_near(base_frequencies(DIM, THETA) / want, torch.ones_like(want))


@pytest.mark.parametrize("factor", [2.0, 8.0])
def test_ntk_keeps_the_fastest_and_divides_the_slowest(factor: float) -> None:
    got, temperature = frequencies(scaled("ntk", factor), DIM, 10)
    plain = base_frequencies(DIM, THETA)
    base = THETA * factor ** (DIM / (DIM - 2))
    for i in range(DIM // 2):
        assert got[i].item() == pytest.approx(base ** (-2 * i / DIM), rel=1e-5)
    assert got[0] == plain[0]
    assert got[-1].item() == pytest.approx(plain[-1].item() / factor, rel=1e-5)
    assert temperature == 1.0


def heads_at(positions: list[int]) -> tuple[torch.Tensor, torch.Tensor, Tokens]:
    torch.manual_seed(0)
    n = len(positions)
    q, k = torch.randn(2, 4, n, DIM), torch.randn(2, 2, n, DIM)
    return q, k, Tokens(n=n, past=0, positions=torch.tensor(positions).expand(2, n))


@pytest.mark.parametrize("kind", ["default", *STRETCHES])
def test_turned_heads_are_llamas(kind: str) -> None:
    position, config = STRETCHES.get(kind, (Position(rope_theta=THETA), config_of("default")))
    q, k, tokens = heads_at([0, 1, 5, 63, 100])
    theirs = LlamaRotaryEmbedding(config)
    cos, sin = theirs(q, tokens.positions)
    want = apply_rotary_pos_emb(q, k, cos, sin)
    cos, sin = rotation(position, DIM, tokens, q)
    for t, expected in zip((q, k), want, strict=True):
        assert_near(rotate(t, cos, sin, is_interleaved=False), expected)


def test_interleaved_is_coheres_and_half_after_a_permutation() -> None:
    q, k, tokens = heads_at([0, 1, 5, 63, 100])
    cos, sin = rotation(Position(is_interleaved=True), DIM, tokens, q)
    wide = (t[:, 0].repeat_interleave(2, dim=-1) for t in (cos, sin))
    want, _ = rotate_interleaved(q, k, *wide)
    got = rotate(q, cos, sin, is_interleaved=True)
    assert_near(got, want)
    # Even channels first, then the odd ones: pair (2i, 2i + 1) becomes (i, i + d/2).
    order = torch.cat([torch.arange(0, DIM, 2), torch.arange(1, DIM, 2)])
    assert_near(rotate(q[..., order], cos, sin, is_interleaved=False), got[..., order])


@pytest.mark.parametrize("is_interleaved", [False, True])
def test_only_the_rotary_share_turns_and_lengths_stay(is_interleaved: bool) -> None:
    q, _, tokens = heads_at([0, 3, 9])
    cos, sin = rotation(Position(), 12, tokens, q)
    got = rotate(q, cos, sin, is_interleaved=is_interleaved)
    assert torch.equal(got[..., 12:], q[..., 12:])
    assert_near(got.norm(dim=-1), q.norm(dim=-1))
    assert torch.equal(got[:, :, 0], q[:, :, 0])


def test_scores_depend_on_distance_alone() -> None:
    q, k, near = heads_at([3, 10])
    _, _, far = heads_at([1003, 1010])
    scores = []
    for tokens in (near, far):
        cos, sin = rotation(Position(), DIM, tokens, q)
        turned = [rotate(t, cos, sin, is_interleaved=False) for t in (q[:, :2], k)]
        scores.append(turned[0][:, :, 0] @ turned[1][:, :, 1].transpose(-1, -2))
    torch.testing.assert_close(scores[0], scores[1], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_angles_are_exact_at_131072_in_any_precision(dtype: torch.dtype) -> None:
    place = 131_072 + 1
    like = torch.zeros(1, 1, 1, DIM, dtype=dtype)
    tokens = Tokens(n=1, past=0, positions=torch.tensor([[place]]))
    cos, sin = rotation(Position(rope_theta=THETA), DIM, tokens, like)
    assert cos.dtype == torch.float32
    for i in range(DIM // 2):
        angle = place * THETA ** (-2 * i / DIM)
        # fp32 angles: relative rounding of the frequency, times the angle.
        close = 3e-7 * max(1.0, angle)
        assert cos[0, 0, 0, i].item() == pytest.approx(math.cos(angle), abs=close)
        assert sin[0, 0, 0, i].item() == pytest.approx(math.sin(angle), abs=close)


def test_padding_shifts_positions() -> None:
    ids = torch.zeros(2, 4)
    mask = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])
    tokens = tokens_of(ids, past=0, attention_mask=mask)
    assert tokens.positions.tolist() == [[0, 0, 0, 1], [0, 1, 2, 3]]
