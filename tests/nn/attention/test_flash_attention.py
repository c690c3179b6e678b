"""Flash attention in tiles against the plain softmax and the library's kernel with its LSE."""

from __future__ import annotations

import pytest
import torch
from nn.recurrent_checks import assert_same_gradients
from nn.tolerances import assert_near
from torch import Tensor

from worthit.nn.attention.flash_attention import flash_attention, fused, merge


def inputs_of(
    n: int, m: int, dtype: torch.dtype = torch.float64, kv_heads: int = 4
) -> list[Tensor]:
    torch.manual_seed(n * 1000 + m)
    q = torch.randn(2, 4, n, 6, dtype=dtype)
    k = torch.randn(2, kv_heads, m, 6, dtype=dtype)
    v = torch.randn(2, kv_heads, m, 5, dtype=dtype)
    return [t.requires_grad_() for t in (q, k, v)]


def plain(q: Tensor, k: Tensor, v: Tensor, is_causal: bool) -> tuple[Tensor, Tensor]:
    """Every score at once; rows without keys are 0."""
    scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
    if is_causal:
        keep = torch.ones(scores.shape[-2:], dtype=torch.bool).tril(k.shape[2] - q.shape[2])
        scores = scores.masked_fill(~keep, -torch.inf)
    lse = scores.logsumexp(-1)
    weights = (scores - lse.masked_fill(lse == -torch.inf, 0.0)[..., None]).exp()
    return weights @ v, lse


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("tiles", [(1, 1), (16, 7), (64, 64), (7, 128)])
@pytest.mark.parametrize(("n", "m"), [(1, 1), (63, 63), (100, 100), (5, 63), (1, 40)])
def test_any_tile_gives_plain_attention(
    n: int, m: int, tiles: tuple[int, int], is_causal: bool
) -> None:
    if tiles == (1, 1) and n * m > 1000:
        n, m = n // 4, m // 4
    inputs = inputs_of(n, m)
    want, want_lse = plain(*inputs, is_causal)
    got, lse = flash_attention(*inputs, is_causal=is_causal, q_tile=tiles[0], k_tile=tiles[1])
    assert_near(got, want)
    assert_near(lse, want_lse.detach())
    weights = torch.randn_like(want)
    assert_same_gradients(
        list(torch.autograd.grad((got * weights).sum(), inputs)),
        list(torch.autograd.grad((want * weights).sum(), inputs)),
    )


def test_lse_and_output_are_the_kernels() -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 4, 100, 16) for _ in range(3))
    for is_causal in (False, True):
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            q, k, v, 0.0, is_causal
        )
        got = flash_attention(q, k, v, is_causal=is_causal, q_tile=32, k_tile=24)
        assert_near(got[0], out)
        assert_near(got[1], lse)
        assert_near(got[0], fused(q, k, v, is_causal=is_causal))


def test_queries_before_every_key_give_zero_and_finite_gradients() -> None:
    # Five queries on two keys: the first three stand before the first key.
    inputs = inputs_of(5, 2)
    out, lse = flash_attention(*inputs, is_causal=True, q_tile=2, k_tile=1)
    assert (out[:, :, :3] == 0).all()
    assert (lse[:, :, :3] == -torch.inf).all()
    want, _ = plain(*inputs, True)
    assert_near(out, want)
    for gradient in torch.autograd.grad(out.sum(), inputs):
        assert gradient.isfinite().all()


def test_heads_share_keys_in_groups() -> None:
    q, k, v = inputs_of(40, 40, kv_heads=2)
    want, _ = plain(q, k.repeat_interleave(2, 1), v.repeat_interleave(2, 1), True)
    got, _ = flash_attention(q, k, v, is_causal=True)
    assert_near(got, want)
    weights = torch.randn_like(want)
    assert_same_gradients(
        list(torch.autograd.grad((got * weights).sum(), [q, k, v])),
        list(torch.autograd.grad((want * weights).sum(), [q, k, v])),
    )


def test_parts_merge_into_the_whole() -> None:
    q, k, v = (t.detach() for t in inputs_of(7, 90))
    whole = flash_attention(q, k, v)
    parts = [flash_attention(q, k[:, :, s], v[:, :, s]) for s in (slice(0, 13), slice(13, 90))]
    parts.append((torch.zeros_like(whole[0]), torch.full_like(whole[1], -torch.inf)))
    got = merge(parts)
    assert_near(got[0], whole[0])
    assert_near(got[1], whole[1])
    nothing = merge([parts[-1], parts[-1]])
    assert (nothing[0] == 0).all()


def test_large_scores_and_bfloat16_stay_finite() -> None:
    q, k, v = (t.detach() for t in inputs_of(63, 63, torch.float32))
    out, _ = flash_attention(1e3 * q, 1e3 * k, v, is_causal=True, q_tile=16, k_tile=16)
    assert_near(out, plain(1e3 * q, 1e3 * k, v, True)[0])
    half = [t.bfloat16() for t in (q, k, v)]
    got, lse = flash_attention(*half, is_causal=True)
    assert got.dtype == torch.bfloat16
    assert lse.dtype == torch.float32
    assert_near(got, plain(*(t.float() for t in half), True)[0].bfloat16())
