"""Linformer against its formula and its full-rank limit, Performer against the softmax."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from nn.recurrent_checks import D_MODEL, run
from nn.tolerances import assert_near
from torch import Tensor

from worthit.cost.params import count_params
from worthit.errors import InputError
from worthit.nn.attention.gqa import GroupedQueryAttention
from worthit.nn.attention.low_rank_attention import (
    PerformerAttention,
    at_once,
    causally,
    orthogonal_features,
    positive_features,
)
from worthit.nn.decoder import Decoder, build
from worthit.spec.case import Case, Hardware, Serving
from worthit.spec.load import load_device
from worthit.spec.model import Attention, FeedForward, Layer, ModelSpec, Position
from worthit.techniques.attention import low_rank_attention as technique

PLAIN = Attention(n_heads=4, n_kv_heads=2, head_dim=8)
FULL = ModelSpec(
    name="m",
    d_model=D_MODEL,
    vocab_size=11,
    layers=(Layer(mixers=(PLAIN,), ffn=FeedForward(d_ff=24)),) * 2,
    context_len=40,
    position=Position(kind="nope"),
)
CASE = Case(
    model=FULL,
    workload=Serving(prompt=30, output=1, concurrency=1),
    hardware=Hardware(device=load_device("h100-sxm")),
)


def low_rank(rank: int) -> Decoder:
    torch.manual_seed(0)
    return build(technique.apply(CASE, rank=rank).model).eval()


def test_parameters_are_those_that_the_technique_counts() -> None:
    model = technique.apply(CASE, rank=6).model
    with torch.device("meta"):
        assert sum(p.numel() for p in build(model).parameters()) == count_params(model).total
    assert count_params(model).total - count_params(FULL).total == 40 * 6


@pytest.mark.parametrize("n", [1, 17, 40])
def test_it_is_equation_7(n: int) -> None:
    model = low_rank(6)
    attention, seen = model.layers[0].mixers[0], {}
    attention.register_forward_hook(lambda _, inputs, out: seen.update(x=inputs[0], out=out))
    model(torch.randint(11, (1, n)))
    x, down = seen["x"][0], model.low_rank[:n]
    q, k, v = (
        (x @ p.weight.T).view(n, -1, 8)
        for p in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    heads = []
    for h in range(4):
        keys, values = down.T @ k[:, h // 2], down.T @ v[:, h // 2]
        heads.append((q[:, h] @ keys.T / 8**0.5).softmax(-1) @ values)
    assert_near(seen["out"][0], torch.cat(heads, dim=-1) @ attention.o_proj.weight.T)


def test_full_rank_is_attention_both_ways() -> None:
    model = low_rank(40)
    with torch.no_grad():
        model.low_rank.copy_(torch.eye(40))
    attention, seen = model.layers[0].mixers[0], {}
    attention.register_forward_hook(lambda _, inputs, out: seen.update(x=inputs[0], out=out))
    model(torch.randint(11, (1, 40)))
    x = seen["x"]
    q, k, v = (
        p(x).view(1, 40, -1, 8).transpose(1, 2)
        for p in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    k, v = k.repeat_interleave(2, 1), v.repeat_interleave(2, 1)
    want = torch.nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    assert_near(seen["out"], attention.o_proj(want))


def test_it_looks_ahead_and_says_so() -> None:
    model = low_rank(6)
    ids = torch.randint(11, (1, 20))
    changed = ids.clone()
    changed[0, -1] = (ids[0, -1] + 1) % 11
    assert not torch.allclose(model(ids)[:, 0], model(changed)[:, 0])
    with pytest.raises(InputError, match="cannot generate token by token"):
        model.new_cache()
    with pytest.raises(InputError, match="at most 40 tokens, the rows of its projection; got 41"):
        model(torch.zeros(1, 41, dtype=torch.long))


def test_padding_weighs_nothing() -> None:
    model = low_rank(6)
    ids = torch.randint(11, (2, 20))
    padded = torch.cat([torch.ones(2, 7, dtype=torch.long), ids], dim=1)
    mask = torch.ones(2, 27, dtype=torch.long)
    mask[:, :7] = 0
    assert_near(model(padded, attention_mask=mask)[:, 7:], model(ids))


# Performer


def softmax(q: Tensor, k: Tensor, v: Tensor, is_causal: bool) -> Tensor:
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, scale=1.0, is_causal=is_causal)


def test_features_are_orthogonal_with_gaussian_lengths() -> None:
    torch.manual_seed(0)
    w = orthogonal_features(20, 8)
    assert w.shape == (20, 8)
    for block in w.split(8):
        unit = block / block.norm(dim=-1, keepdim=True)
        assert_near(unit @ unit.T, torch.eye(len(block)))
    lengths = orthogonal_features(8000, 8).square().sum(-1)
    assert lengths.mean().item() == pytest.approx(8, rel=0.05)


@pytest.mark.parametrize("is_causal", [False, True])
def test_the_error_falls_with_the_root_of_the_features(is_causal: bool) -> None:
    torch.manual_seed(0)
    q, k, v = (0.25 * torch.randn(1, 1, 48, 8, dtype=torch.float64) for _ in range(3))
    want, errors = softmax(q, k, v, is_causal), {}
    for m in (256, 4096):
        total = 0.0
        for _ in range(20):
            w = orthogonal_features(m, 8).double()
            phi = (positive_features(t, w, is_query=t is q) for t in (q, k))
            got = causally(*phi, v)[0] if is_causal else at_once(*phi, v)
            total += (got - want).square().mean().item()
        errors[m] = (total / 20) ** 0.5
    # 16 times the features, a quarter of the error.
    assert 3.0 < errors[256] / errors[4096] < 5.3
    assert errors[4096] < 0.005


@pytest.mark.parametrize("n", [1, 63, 100])
def test_causal_sums_are_a_loop(n: int) -> None:
    torch.manual_seed(n)
    phi_q, phi_k = torch.rand(2, 3, n, 7), torch.rand(2, 3, n, 7)
    v = torch.randn(2, 3, n, 5)
    rows = []
    for t in range(n):
        weights = (phi_k[:, :, : t + 1] * phi_q[:, :, t : t + 1]).sum(-1, keepdim=True)
        rows.append((weights * v[:, :, : t + 1]).sum(2) / weights.sum(2))
    assert_near(causally(phi_q, phi_k, v)[0], torch.stack(rows, dim=2))
    last = at_once(phi_q[:, :, -1:], phi_k, v)
    assert_near(last[:, :, 0], rows[-1])


def test_the_mixer_continues_ignores_padding_and_approaches_softmax() -> None:
    torch.manual_seed(0)
    part = replace(PLAIN, rotary_dim=8)
    ours = PerformerAttention(replace(part, n_features=8192), FULL).eval()
    x = 0.5 * torch.randn(2, 23, D_MODEL)
    with torch.no_grad():
        whole = run(ours, x)
        cache = ours.new_cache()
        parts = [run(ours, x[:, :9], cache), run(ours, x[:, 9:20], cache, 9)]
        parts += [run(ours, x[:, i : i + 1], cache, i) for i in range(20, 23)]
        assert_near(torch.cat(parts, dim=1), whole)
        padded = torch.cat([torch.full((2, 4, D_MODEL), 3.0), x], dim=1)
        mask = torch.ones(2, 27)
        mask[:, :4] = 0
        assert_near(run(ours, padded, mask=mask)[:, 4:], whole)
        exact = GroupedQueryAttention(part, FULL).eval()
        exact.load_state_dict(ours.state_dict(), strict=False)
        assert (run(exact, x) - whole).norm() < 0.02 * whole.norm()
