"""S4 and S4D: convolution, recurrence and chunks are one map; S4 starts as HiPPO-LegS."""

from __future__ import annotations

import pytest
import torch
from nn.recurrent_checks import (
    D_MODEL,
    assert_same_gradients,
    built,
    check_all,
    check_cache_bytes,
    model_of,
)
from nn.tolerances import assert_near

from worthit.nn.ssm.s4 import S4Mixer, StateSpaceMixer, build_s4, convolve, hippo_legs, hippo_pairs
from worthit.nn.ssm.s4d import S4DMixer
from worthit.spec.model import S4

KINDS = {
    "s4": S4(d_state=16),
    "s4, rank 2": S4(d_state=8, rank=2),
    "s4d": S4(d_state=16, rank=0),
}
each_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)


@each_kind
def test_continues_ignores_padding_and_looks_back_only(kind: S4) -> None:
    check_all(kind)
    check_cache_bytes(kind)


def module_of(kind: S4) -> StateSpaceMixer:
    module = built(kind)
    assert isinstance(module, StateSpaceMixer)
    assert isinstance(module, S4DMixer if kind.rank == 0 else S4Mixer)
    return module


@pytest.mark.parametrize("n", [1, 2, 63, 100])
@each_kind
def test_convolution_recurrence_and_chunks_are_one_map(kind: S4, n: int) -> None:
    module = module_of(kind)
    u = torch.randn(2, D_MODEL, n)
    forms = {
        "recurrence": lambda: module.in_order(u)[0],
        "convolution": lambda: convolve(u, module.kernel(n).float()),
        "chunks": lambda: module.continued(u, None)[0],
    }
    results = {}
    for name, form in forms.items():
        module.zero_grad()
        y = form()
        (y * torch.arange(1.0, n + 1)).sum().backward()
        used = [
            p for name, p in module.named_parameters() if name not in ("skip", "out_proj.weight")
        ]
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in used]
        results[name] = [y, *gradients]
    assert_same_gradients(results["convolution"], results["recurrence"])
    assert_same_gradients(results["chunks"], results["recurrence"])


def test_chunks_continue_a_state_as_the_recurrence_does() -> None:
    for kind in KINDS.values():
        module = module_of(kind)
        u, state = torch.randn(2, D_MODEL, 150), torch.randn(2, D_MODEL, kind.d_state)
        got, want = module.continued(u, state), module.in_order(u, state)
        assert_near(got[0], want[0])
        assert_near(got[1], want[1])


def test_hippo_is_diagonal_plus_low_rank() -> None:
    n = 8
    poles, p, b = hippo_pairs(n)
    assert_near(poles.real, torch.full((n // 2,), -0.5, dtype=torch.float64))
    full = torch.cat([poles, poles.conj()]).diag()
    wide = torch.cat([p, p.conj()])
    a = full - wide[:, None] * wide.conj()[None]
    # What no change of basis changes: traces of powers, and the response C A^k B for C = B*.
    legs = hippo_legs(n).to(a.dtype)
    column = (2 * torch.arange(n) + 1).double().sqrt().to(a.dtype)
    mine = torch.cat([b, b.conj()])
    for k in range(4):
        power, want = torch.linalg.matrix_power(a, k), torch.linalg.matrix_power(legs, k)
        assert_near(power.diagonal().sum().real, want.diagonal().sum().real)
        assert_near((mine.conj() @ power @ mine).real, (column @ want @ column).real)


def test_kernel_of_a_fresh_layer_is_hippos_own() -> None:
    """The dense matrix of the paper, stepped by the bilinear rule."""
    torch.manual_seed(0)
    kind = S4(d_state=8)
    module = build_s4(kind, model_of(kind))
    assert isinstance(module, S4Mixer)
    n, state = 40, 8
    p = (torch.arange(state, dtype=torch.float64) + 0.5).sqrt()
    skew = hippo_legs(state) + torch.outer(p, p) + 0.5 * torch.eye(state, dtype=torch.float64)
    frequency, basis = torch.linalg.eigh(skew * -1j)
    into = basis.mH[frequency > 0]
    kernel, c = module.kernel(n), torch.view_as_complex(module.c.detach()).to(into.dtype)
    b = (2 * torch.arange(state, dtype=torch.float64) + 1).sqrt()
    for channel in (0, 5):
        step = module.log_step[channel].double().exp().item()
        eye = torch.eye(state, dtype=torch.float64)
        inverse = torch.linalg.inv(eye - step / 2 * hippo_legs(state))
        a_bar = inverse @ (eye + step / 2 * hippo_legs(state))
        row, x = 2 * (c[channel] @ into).real, inverse @ b * step
        taps = []
        for _ in range(n):
            taps.append(row @ x)
            x = a_bar @ x
        assert_near(kernel[channel], torch.stack(taps).float())


def test_s4d_kernel_term_by_term() -> None:
    module = module_of(KINDS["s4d"])
    kernel = module.kernel(5)
    step = module.log_step.exp()
    a = torch.complex(-module.log_decay.exp(), module.frequency)
    b, c = torch.view_as_complex(module.b.detach()), torch.view_as_complex(module.c.detach())
    for t in range(5):
        moved = torch.exp(step[:, None] * a)
        taps = 2 * (c * (moved - 1) / a * b * moved**t).sum(dim=-1).real
        assert_near(kernel[:, t].float(), taps)
