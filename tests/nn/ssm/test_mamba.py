"""Mamba against transformers' mixers and, scan for scan, against the recurrence."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from nn.recurrent_checks import (
    D_MODEL,
    assert_same_gradients,
    built,
    check_all,
    check_cache_bytes,
    model_of,
    run,
)
from nn.tolerances import assert_near
from torch import Tensor
from transformers import FalconMambaConfig, JambaConfig, MambaConfig
from transformers.models.falcon_mamba.modeling_falcon_mamba import FalconMambaMixer
from transformers.models.jamba.modeling_jamba import JambaMambaMixer
from transformers.models.mamba.modeling_mamba import MambaMixer as Theirs

from worthit.nn.ssm import mamba
from worthit.nn.ssm.mamba import (
    MambaMixer,
    selective_scan,
    selective_scan_associatively,
    selective_scan_in_order,
)
from worthit.spec.model import Mamba

PLAIN = Mamba(d_inner=64, d_state=8, d_conv=4, dt_rank=3)
JAMBA = replace(PLAIN, has_inner_norms=True)
KINDS = {
    "mamba": PLAIN,
    "biases": replace(PLAIN, has_bias=True, has_conv_bias=False),
    "jamba": JAMBA,
    "falcon-mamba": replace(JAMBA, has_inner_norm_weights=False),
}


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_continues_ignores_padding_and_looks_back_only(kind: Mamba) -> None:
    check_all(kind)
    check_cache_bytes(kind)


def theirs_of(kind: Mamba) -> torch.nn.Module:
    sizes = {
        "hidden_size": D_MODEL,
        "state_size": kind.d_state,
        "conv_kernel": kind.d_conv,
        "expand": 2,
        "time_step_rank": kind.dt_rank,
        "use_bias": kind.has_bias,
        "use_conv_bias": kind.has_conv_bias,
    }
    if not kind.has_inner_norms:
        return Theirs(MambaConfig(**sizes), layer_idx=0)
    if not kind.has_inner_norm_weights:
        return FalconMambaMixer(
            FalconMambaConfig(**sizes, mixer_rms_eps=1e-6),
            layer_idx=0,
            initialize_mixer_weights=False,
        )
    config = JambaConfig(
        hidden_size=D_MODEL,
        mamba_d_state=kind.d_state,
        mamba_d_conv=kind.d_conv,
        mamba_expand=2,
        mamba_dt_rank=kind.dt_rank,
        attn_layer_offset=1,
        attn_layer_period=2,
    )
    return JambaMambaMixer(config, layer_idx=0)


NAMES = {
    "in_proj": "in_proj",
    "conv": "conv1d",
    "select": "x_proj",
    "step_proj": "dt_proj",
    "log_a": "A_log",
    "skip": "D",
    "out_proj": "out_proj",
    "norms.0": "dt_layernorm",
    "norms.1": "b_layernorm",
    "norms.2": "c_layernorm",
}


def their_name(ours: str) -> str:
    stem = next(stem for stem in NAMES if ours == stem or ours.startswith(stem + "."))
    return NAMES[stem] + ours.removeprefix(stem)


@pytest.mark.parametrize("n", [1, 63, 100])
@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_outputs_and_gradients_of_transformers(kind: Mamba, n: int) -> None:
    ours, theirs = built(kind), theirs_of(kind).eval()
    shared = dict(theirs.named_parameters())
    own = dict(ours.named_parameters())
    assert {their_name(name) for name in own} == set(shared)
    with torch.no_grad():
        for name, p in own.items():
            shared[their_name(name)].copy_(p.view_as(shared[their_name(name)]))
    x = torch.randn(2, n, D_MODEL)
    inputs = [x.clone().requires_grad_(), x.clone().requires_grad_()]
    got, want = run(ours, inputs[0]), theirs(inputs[1])
    assert_near(got, want)
    weights = torch.randn_like(got)
    (got * weights).sum().backward()
    (want * weights).sum().backward()
    assert_near(inputs[0].grad, inputs[1].grad)
    for name, p in own.items():
        expected = shared[their_name(name)].grad
        assert expected is not None
        assert_near(p.grad, expected.view_as(p))


def scan_inputs(n: int, dtype: torch.dtype, *, decay: float = 4.0) -> list[Tensor]:
    torch.manual_seed(n)
    batch, d_inner, d_state = 2, 40, 8
    shapes = [(n, d_inner), (n, d_inner), (d_state,), (n, d_state), (n, d_state)]
    x, step, _, b, c = (torch.randn(batch, *shape, dtype=dtype) for shape in shapes)
    a = -torch.rand(d_inner, d_state, dtype=dtype) * decay
    start = torch.randn(batch, d_state, d_inner, dtype=dtype)
    return [t.requires_grad_() for t in (x, step.sigmoid().detach(), a, b, c, start)]


@pytest.mark.parametrize("scan", [selective_scan, selective_scan_associatively])
@pytest.mark.parametrize("n", [1, 2, 16, 63, 100])
def test_forms_are_one_recurrence(scan: object, n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    # Several tiles and segments in so small a case.
    monkeypatch.setattr(mamba, "TILE_TOKENS", 32)
    monkeypatch.setattr(mamba, "TILE_ELEMENTS", 2**13)
    inputs = scan_inputs(n, torch.float64)
    results = []
    for form in (selective_scan_in_order, scan):
        y, state = form(*inputs)
        loss = (y * torch.arange(40.0)).sum() + state.square().sum()
        results.append([y, state, *torch.autograd.grad(loss, inputs)])
    assert_same_gradients(results[1], results[0])


@pytest.mark.parametrize("decay", [1e-6, 1e3])
def test_no_decay_overflows(decay: float) -> None:
    inputs = scan_inputs(300, torch.float32, decay=decay)
    got, want = selective_scan(*inputs), selective_scan_in_order(*inputs)
    assert_near(got[0], want[0])
    assert_near(got[1], want[1])
    gradients = torch.autograd.grad(got[0].sum(), inputs)
    assert_same_gradients(list(gradients), list(torch.autograd.grad(want[0].sum(), inputs)))


def test_bfloat16_keeps_its_states_in_float32() -> None:
    ours = built(PLAIN)
    x = torch.randn(2, 40, D_MODEL)
    want = run(ours, x)
    cache = ours.new_cache()
    got = run(ours.to(torch.bfloat16), x.bfloat16(), cache)
    assert got.dtype == torch.bfloat16
    assert cache.get("state").dtype == torch.float32
    assert (got - want).norm() < 0.02 * want.norm()


def test_a_fresh_layer_forgets_at_the_papers_rates() -> None:
    fresh = MambaMixer(PLAIN, model_of(PLAIN))
    assert_near(fresh.log_a.exp()[5], torch.arange(1.0, 9))
    steps = torch.nn.functional.softplus(fresh.step_proj.bias)
    assert steps.min() >= 0.999e-3
    assert steps.max() <= 1.001e-1
