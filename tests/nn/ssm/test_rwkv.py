"""RWKV-4 against transformers' layers and the recurrence of the paper."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from nn.recurrent_checks import (
    D_MODEL,
    assert_same_gradients,
    built,
    check_all,
    check_cache_bytes,
    run,
)
from nn.tolerances import assert_near
from torch import Tensor
from transformers import RwkvConfig
from transformers.models.rwkv.modeling_rwkv import RwkvFeedForward, RwkvSelfAttention

from worthit.nn.ssm.rwkv import wkv, wkv_in_order
from worthit.spec.model import ChannelMix, Rwkv

TIME, CHANNEL = Rwkv(d_attention=48), ChannelMix(d_ff=40)
CONFIG = RwkvConfig(
    vocab_size=8, hidden_size=D_MODEL, attention_hidden_size=48, intermediate_size=40
)


@pytest.mark.parametrize("part", [TIME, CHANNEL], ids=["time", "channel"])
def test_continues_ignores_padding_and_looks_back_only(part: Rwkv | ChannelMix) -> None:
    check_all(part)


def test_cache_bytes_are_predicted() -> None:
    # The prediction for the layer holds the feed-forward's last input too.
    check_cache_bytes(TIME, other=D_MODEL)
    cache = built(CHANNEL).new_cache()
    run(built(CHANNEL), torch.randn(3, 5, D_MODEL), cache)
    assert cache.nbytes == 3 * D_MODEL * 4


NAMES = {"log_decay": "time_decay", "bonus": "time_first", "mix_": "time_mix_"}


@pytest.mark.parametrize("n", [1, 63, 100])
@pytest.mark.parametrize(
    ("part", "make"), [(TIME, RwkvSelfAttention), (CHANNEL, RwkvFeedForward)], ids=["time", "ffn"]
)
def test_outputs_and_gradients_of_transformers(
    part: Rwkv | ChannelMix, make: Callable[..., torch.nn.Module], n: int
) -> None:
    ours, theirs = built(part), make(CONFIG)
    shared = dict(theirs.named_parameters())
    pairs = []
    for name, p in ours.named_parameters():
        for mine, other in NAMES.items():
            name = name.replace(mine, other)
        pairs.append((p, shared.pop(name)))
    assert not shared
    with torch.no_grad():
        for p, q in pairs:
            q.copy_(p.view_as(q))
    x = torch.randn(2, n, D_MODEL)
    inputs = [x.clone().requires_grad_(), x.clone().requires_grad_()]
    got, want = run(ours, inputs[0]), theirs(inputs[1])[0]
    assert_near(got, want)
    weights = torch.randn_like(got)
    (got * weights).sum().backward()
    (want * weights).sum().backward()
    assert_near(inputs[0].grad, inputs[1].grad)
    for p, q in pairs:
        if n == 1 and p is getattr(ours, "log_decay", None):
            # A single token's output does not depend on the decay.
            continue
        assert q.grad is not None
        assert_near(p.grad, q.grad.view_as(p))


def inputs_of(n: int, dtype: torch.dtype, *, spread: float = 1.0) -> list[Tensor]:
    torch.manual_seed(n)
    w, u = torch.rand(12, dtype=dtype) * 3, torch.randn(12, dtype=dtype)
    k, v = (torch.randn(2, n, 12, dtype=dtype) for _ in range(2))
    return [t.requires_grad_() for t in (w, u, (k * spread).detach(), v)]


@pytest.mark.parametrize("n", [1, 2, 16, 63, 100])
def test_scan_is_the_recurrence(n: int) -> None:
    inputs = inputs_of(n, torch.float64)
    results = []
    for form in (wkv_in_order, wkv):
        y, state = form(*inputs)
        sums = [state[i] * state[2].exp() for i in range(2)]
        loss = (y * torch.arange(12.0)).sum() + sum(s.square().sum() for s in sums)
        results.append([y, *sums, *torch.autograd.grad(loss, inputs, allow_unused=n == 1)])
        results[-1] = [t for t in results[-1] if t is not None]
    assert_same_gradients(results[1], results[0])


def test_written_out_as_in_the_paper() -> None:
    w, u, k, v = inputs_of(9, torch.float64)
    y, _ = wkv(w, u, k, v)
    for t in range(9):
        weights = [torch.exp(-(t - 1 - i) * w + k[:, i]) for i in range(t)]
        weights.append(torch.exp(u + k[:, t]))
        num = sum(e * v[:, i] for i, e in enumerate(weights))
        assert_near(y[:, t], num / sum(weights))


def test_huge_keys_do_not_overflow() -> None:
    inputs = inputs_of(200, torch.float64, spread=1e3)
    got, want = wkv(*inputs)[0], wkv_in_order(*inputs)[0]
    assert_near(got, want)
    ours = torch.autograd.grad(got.sum(), inputs)
    assert_same_gradients(list(ours), list(torch.autograd.grad(want.sum(), inputs)))
    narrow = [t.detach().float() for t in inputs]
    assert_near(wkv(*narrow)[0], wkv_in_order(*narrow)[0])
