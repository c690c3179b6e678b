"""Mamba-2 against transformers' mixers, and the duality: three forms of one map."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

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
from transformers import FalconH1Config, Mamba2Config
from transformers.models.falcon_h1.modeling_falcon_h1 import FalconH1Mixer, compute_mup_vector
from transformers.models.mamba2.modeling_mamba2 import Mamba2Mixer as Theirs

from worthit.nn.ssm import ssd_tiles
from worthit.nn.ssm.ssd import ssd, ssd_as_attention, ssd_in_chunks, ssd_in_order
from worthit.spec.model import Mamba2

PLAIN = Mamba2(n_heads=8, head_dim=8, d_state=8, n_groups=2, d_conv=4)
FALCON = replace(
    PLAIN,
    n_groups=1,
    in_scale=1.25,
    part_scales=(0.5, 1.5, 0.7, 1.1, 0.9),
    has_out_bias=False,
)
KINDS = {
    "mamba2": PLAIN,
    "biases": replace(PLAIN, has_bias=True, has_out_bias=True, has_conv_bias=False),
    "bounded step": replace(PLAIN, dt_min=0.3, dt_max=0.6, n_groups=8),
    "falcon-h1": replace(FALCON, is_norm_before_gate=True),
    "falcon-h1 norm after gate": FALCON,
    "falcon-h1 without norm": replace(FALCON, has_output_norm=False, n_groups=4),
}


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_continues_ignores_padding_and_looks_back_only(kind: Mamba2) -> None:
    check_all(kind)
    check_cache_bytes(kind)


def theirs_of(kind: Mamba2) -> torch.nn.Module:
    if kind.in_scale == 1.0:
        config = Mamba2Config(
            hidden_size=D_MODEL,
            state_size=kind.d_state,
            num_heads=kind.n_heads,
            head_dim=kind.head_dim,
            n_groups=kind.n_groups,
            conv_kernel=kind.d_conv,
            chunk_size=16,
            use_bias=kind.has_bias,
            use_conv_bias=kind.has_conv_bias,
            time_step_limit=(kind.dt_min, kind.dt_max or math.inf),
        )
        return Theirs(config, layer_idx=0)
    falcon = FalconH1Config(
        hidden_size=D_MODEL,
        mamba_d_ssm=kind.d_inner,
        mamba_n_heads=kind.n_heads,
        mamba_d_head=kind.head_dim,
        mamba_d_state=kind.d_state,
        mamba_n_groups=kind.n_groups,
        mamba_d_conv=kind.d_conv,
        mamba_chunk_size=16,
        mamba_rms_norm=kind.has_output_norm,
        mamba_norm_before_gate=kind.is_norm_before_gate,
        ssm_in_multiplier=kind.in_scale,
        ssm_multipliers=list(kind.part_scales),
        rms_norm_eps=kind.norm_eps,
    )
    module = FalconH1Mixer(falcon, layer_idx=0)
    module.register_buffer("mup_vector", compute_mup_vector(falcon), persistent=False)
    return module


NAMES = {
    "in_proj": "in_proj",
    "conv": "conv1d",
    "step_bias": "dt_bias",
    "log_a": "A_log",
    "skip": "D",
    "norm": "norm",
    "out_proj": "out_proj",
}


def their_name(ours: str) -> str:
    stem = next(stem for stem in NAMES if ours == stem or ours.startswith(stem + "."))
    return NAMES[stem] + ours.removeprefix(stem)


@pytest.mark.parametrize("n", [1, 63, 100])
@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_outputs_and_gradients_of_transformers(kind: Mamba2, n: int) -> None:
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


def inputs_of(n: int, dtype: torch.dtype, *, decay: float = 4.0) -> list[Tensor]:
    torch.manual_seed(n)
    batch, heads, dim, groups, d_state = 2, 4, 6, 2, 8
    x = torch.randn(batch, n, heads, dim, dtype=dtype)
    step = torch.rand(batch, n, heads, dtype=dtype)
    a = -torch.rand(heads, dtype=dtype) * decay
    b, c = (torch.randn(batch, n, groups, d_state, dtype=dtype) for _ in range(2))
    start = torch.randn(batch, groups, d_state, heads // groups * dim, dtype=dtype)
    return [t.requires_grad_() for t in (x, step, a, b, c, start)]


@pytest.mark.parametrize("chunk", [1, 16, 64])
@pytest.mark.parametrize("n", [1, 2, 16, 63, 100])
def test_chunks_are_the_recurrence(n: int, chunk: int) -> None:
    inputs = inputs_of(n, torch.float64)
    results = []
    for y, state in (ssd_in_order(*inputs), ssd(*inputs, chunk=chunk)):
        loss = (y * torch.arange(6.0)).sum() + state.square().sum()
        results.append([y, state, *torch.autograd.grad(loss, inputs)])
    assert_same_gradients(results[1], results[0])


@pytest.mark.parametrize("elements", [1, 400, 2**20])
@pytest.mark.parametrize("n", [5, 16, 100])
def test_tiles_are_all_chunks_at_once(
    n: int, elements: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever a tile holds: one row and chunk, some of each, everything; with a skip."""
    monkeypatch.setattr(ssd_tiles, "TILE_ELEMENTS", elements)
    inputs = inputs_of(n, torch.float64)
    skip = torch.randn(4, dtype=torch.float64, requires_grad=True)
    y, last = ssd_in_chunks(*inputs, chunk=16)
    forms = [(y + inputs[0] * skip[:, None], last), ssd(*inputs, skip=skip, chunk=16)]
    results = []
    for y, last in forms:
        loss = (y * torch.arange(6.0)).sum() + last.square().sum()
        results.append([y, last, *torch.autograd.grad(loss, [*inputs, skip])])
    assert_same_gradients(results[1], results[0])


def test_gradients_of_decays_cancel_nothing() -> None:
    """In fp32 they are as near to the truth as those of the recurrence, where decays are strong."""
    exact = inputs_of(63, torch.float64, decay=16.0)
    weights = torch.randn(2, 63, 4, 6, dtype=torch.float64)

    def of_a(form: Callable[..., tuple[Tensor, Tensor]], dtype: torch.dtype) -> Tensor:
        inputs = [t.detach().to(dtype).requires_grad_() for t in exact]
        loss = (form(*inputs)[0] * weights.to(dtype)).sum()
        return torch.autograd.grad(loss, inputs[2])[0].double()

    truth = of_a(ssd_in_order, torch.float64)
    errors = {
        form: ((of_a(form, torch.float32) - truth).abs() / truth.abs()).max().item()
        for form in (ssd, ssd_in_order, ssd_in_chunks)
    }
    assert errors[ssd] < 4 * errors[ssd_in_order]
    # Control: running sums, whose differences those gradients are, lose digits.
    assert errors[ssd_in_chunks] > 4 * errors[ssd]


@pytest.mark.parametrize("n", [1, 63, 100])
def test_duality_the_attention_form_is_the_recurrence(n: int) -> None:
    inputs = inputs_of(n, torch.float64)[:5]
    results = []
    for y in (ssd_in_order(*inputs)[0], ssd_as_attention(*inputs)):
        results.append([y, *torch.autograd.grad((y * torch.arange(6.0)).sum(), inputs)])
    assert_same_gradients(results[1], results[0])


def test_without_decay_it_is_linear_attention() -> None:
    x, step, a, b, c, _ = (t.detach() for t in inputs_of(40, torch.float64))
    y, _ = ssd(x, torch.ones_like(step), torch.zeros_like(a), b, c)
    scores = torch.einsum("btgn,bsgn->bgts", c, b).tril().repeat_interleave(2, dim=1)
    assert_near(y, torch.einsum("bhts,bshp->bthp", scores, x))


@pytest.mark.parametrize("decay", [1e-6, 1e3])
def test_no_decay_overflows(decay: float) -> None:
    inputs = inputs_of(300, torch.float32, decay=decay)
    got, want = ssd(*inputs), ssd_in_order(*inputs)
    assert_near(got[0], want[0])
    assert_near(got[1], want[1])
    for gradient in torch.autograd.grad(got[0].sum(), inputs):
        assert gradient.isfinite().all()


def test_bfloat16_keeps_its_states_in_float32() -> None:
    ours = built(PLAIN)
    x = torch.randn(2, 40, D_MODEL)
    want = run(ours, x)
    cache = ours.new_cache()
    got = run(ours.to(torch.bfloat16), x.bfloat16(), cache)
    assert got.dtype == torch.bfloat16
    assert cache.get("state").dtype == torch.float32
    assert (got - want).norm() < 0.02 * want.norm()
