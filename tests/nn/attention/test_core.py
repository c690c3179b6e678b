"""The fused call against the reference with every score written down, and that against a loop."""

from __future__ import annotations

import math

import pytest
import torch
from nn.recurrent_checks import assert_same_gradients
from nn.tolerances import assert_near
from torch import Tensor

from worthit.nn.attention.core import attend, attend_plainly, causal_mask, repeat_heads
from worthit.nn.tokens import Tokens, tokens_of

SCALE = 0.3


def heads_of(n: int, m: int, kv_heads: int = 2, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    torch.manual_seed(n + m)
    q = torch.randn(2, 4, n, 6, dtype=dtype)
    k = torch.randn(2, kv_heads, m, 6, dtype=dtype)
    v = torch.randn(2, kv_heads, m, 5, dtype=dtype)
    return [t.requires_grad_() for t in (q, k, v)]


def passes(n: int, past: int, padding: int = 0) -> Tokens:
    ids = torch.zeros(2, n)
    mask = None
    if padding:
        mask = torch.ones(2, past + n)
        mask[1, :padding] = 0
    return tokens_of(ids, past=past, attention_mask=mask)


def slowly(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    mask: Tensor | None = None,
    bias: Tensor | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """One query, one key at a time."""
    out = torch.zeros(*q.shape[:3], v.shape[-1])
    for b in range(q.shape[0]):
        for h in range(q.shape[1]):
            kv = h // (q.shape[1] // k.shape[1])
            for i in range(q.shape[2]):
                over, under = torch.zeros(v.shape[-1]), 0.0
                if sinks is not None:
                    under += math.exp(sinks[h])
                for j in range(k.shape[2]):
                    if mask is not None and not mask[b % len(mask), 0, i, j]:
                        continue
                    score = float(q[b, h, i] @ k[b, kv, j]) * SCALE
                    if softcap is not None:
                        score = softcap * math.tanh(score / softcap)
                    if bias is not None:
                        score += float(bias.expand(*q.shape[:3], k.shape[2])[b, h, i, j])
                    over, under = over + math.exp(score) * v[b, kv, j], under + math.exp(score)
                out[b, h, i] = over / under
    return out


BIAS = torch.linspace(-1, 1, 4 * 20).view(1, 4, 1, 20)
EXTRAS = {
    "nothing": {},
    "bias": {"bias": BIAS[..., :9]},
    "softcap": {"softcap": 0.5},
    "sinks": {"sinks": torch.tensor([0.0, 1.0, -1.0, 3.0])},
    "all": {"bias": BIAS[..., :9], "softcap": 0.5, "sinks": torch.tensor([0.0, 1.0, -1.0, 3.0])},
}


@pytest.mark.parametrize("extra", EXTRAS)
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_the_reference_is_the_formula(extra: str, kv_heads: int) -> None:
    q, k, v = (t.detach() for t in heads_of(5, 9, kv_heads))
    mask = causal_mask(passes(5, 4, padding=2), 9, q.device)
    got = attend_plainly(q, k, v, scale=SCALE, mask=mask, **EXTRAS[extra])
    assert_near(got, slowly(q, k, v, mask=mask, **EXTRAS[extra]))


def both(inputs: list[Tensor], tokens: Tokens, **options: object) -> None:
    """Outputs and gradients of the fused call and the reference, on rows that see something."""
    limits = {name: options.pop(name, None) for name in ("window", "chunk")}
    m = inputs[1].shape[2]
    mask = causal_mask(tokens, m, inputs[0].device, **limits)
    is_causal = tokens.past == 0 and tokens.is_real is None and not any(limits.values())
    got = attend(*inputs, scale=SCALE, mask=mask, is_causal=is_causal, **options)
    want = attend_plainly(*inputs, scale=SCALE, mask=mask, **options)
    real = tokens.is_new_real
    weights = torch.randn(want.shape).to(want.dtype)
    if real is not None:
        weights = weights * real[:, None, :, None]
        got, want = got * real[:, None, :, None], want * real[:, None, :, None]
    assert_near(got, want)
    assert_same_gradients(
        list(torch.autograd.grad((got * weights).sum(), inputs)),
        list(torch.autograd.grad((want * weights).sum(), inputs)),
    )


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize(("n", "past"), [(1, 0), (1, 19), (20, 0), (7, 13)])
@pytest.mark.parametrize("padding", [0, 3])
@pytest.mark.parametrize("limits", [{}, {"window": 4}, {"chunk": 6}, {"window": 64}])
def test_fused_is_the_reference(
    n: int, past: int, padding: int, kv_heads: int, limits: dict[str, int]
) -> None:
    inputs = heads_of(n, past + n, kv_heads)
    both(inputs, passes(n, past, padding), **limits)
    both(inputs, passes(n, past, padding), bias=BIAS[..., : past + n], **limits)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_fused_is_the_reference_in_other_precisions(dtype: torch.dtype) -> None:
    inputs = [t.detach().to(dtype) for t in heads_of(20, 20)]
    mask = causal_mask(passes(20, 0), 20, inputs[0].device)
    want = attend_plainly(*(t.float() for t in inputs), scale=SCALE, mask=mask)
    got = attend(*inputs, scale=SCALE, mask=mask, is_causal=True)
    assert got.dtype == dtype
    assert_near(got.bfloat16(), want.bfloat16())


def test_one_query_folds_its_group_into_the_rows() -> None:
    inputs = heads_of(1, 20, kv_heads=1)
    both(inputs, passes(1, 19))


@pytest.mark.parametrize("form", [attend, attend_plainly])
@pytest.mark.parametrize("extra", [{}, {"sinks": torch.zeros(4)}, {"bias": BIAS}])
def test_rows_without_any_key_stay_finite(form, extra: dict[str, Tensor]) -> None:
    inputs = heads_of(20, 20)
    mask = causal_mask(passes(20, 0, padding=6), 20, inputs[0].device)
    assert not mask[1, 0, 3].any()
    out = form(*inputs, scale=SCALE, mask=mask, **extra)
    assert out.isfinite().all()
    for gradient in torch.autograd.grad(out.sum(), inputs):
        assert gradient.isfinite().all()


def test_sinks_take_weight_and_give_no_value() -> None:
    inputs = [t.detach() for t in heads_of(5, 5)]
    plain = attend(*inputs, scale=SCALE, mask=None)
    none = attend(*inputs, scale=SCALE, mask=None, sinks=torch.full((4,), -1e4))
    assert_near(none, plain)
    all_of_it = attend(*inputs, scale=SCALE, mask=None, sinks=torch.full((4,), 1e4))
    assert (all_of_it == 0).all()


def test_masks_are_what_they_say() -> None:
    padded = passes(4, 3, padding=2)
    for window in (None, 2, 5, 100):
        for chunk in (None, 3):
            mask = causal_mask(padded, 6, torch.device("cpu"), window=window, chunk=chunk)
            for b in range(2):
                first = 2 if b else 0
                for i in range(3, 7):
                    for j in range(1, 7):
                        sees = first <= j <= i and (window is None or i - j < window)
                        if chunk is not None:
                            sees = sees and (i - first) // chunk == (j - first) // chunk
                        assert mask[b % len(mask), 0, i - 3, j - 1] == sees, (b, i, j)


def test_one_open_query_needs_no_mask_and_passes_share_theirs() -> None:
    assert causal_mask(passes(1, 9), 10, torch.device("cpu")) is None
    tokens = passes(5, 0)
    assert causal_mask(tokens, 5, torch.device("cpu")) is causal_mask(
        tokens, 5, torch.device("cpu"), window=5
    )


def test_heads_repeat_in_a_row_and_not_in_turn() -> None:
    x = torch.arange(3.0)[None, :, None, None]
    assert repeat_heads(x, 2).flatten().tolist() == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize(("n", "past"), [(20, 0), (7, 13)])
@pytest.mark.parametrize("padding", [0, 3])
@pytest.mark.parametrize("bias", [None, "by head"])
def test_training_in_bf16_is_the_reference_in_fp32(
    kv_heads: int, n: int, past: int, padding: int, bias: str | None
) -> None:
    """It takes its own way on a CPU, forward and back."""
    mask = causal_mask(passes(n, past, padding), n + past, torch.device("cpu"))
    assert mask is not None
    added = None if bias is None else torch.randn(1, 4, n, n + past)
    # What a padded query answers is nobody's, and nobody's gradient.
    sees_any = mask.any(dim=-1, keepdim=True)
    outputs, gradients = [], []
    for form, dtype in ((attend, torch.bfloat16), (attend_plainly, torch.float32)):
        heads = [t.detach().to(dtype).requires_grad_() for t in heads_of(n, n + past, kv_heads)]
        y = form(*heads, scale=SCALE, mask=mask, bias=added) * sees_any
        y.float().square().sum().backward()
        outputs.append(y.float())
        gradients.append([t.grad.float() for t in heads])
    torch.testing.assert_close(outputs[0], outputs[1], rtol=2e-2, atol=2e-2)
    for ours, exact in zip(*gradients, strict=True):
        assert float((ours - exact).norm() / exact.norm()) < 2e-2
