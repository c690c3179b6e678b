"""FLOPs of mixers with a state: what `cost` predicts beside what runs.

Projections: every product that is not the recurrence, counted by torch, equals the ledger without
its scan. Chunked forms: all products of a pass, with the decays within a chunk as the papers write
them (their products of sub-chunks are ours for stability, and more) and the triangular systems
solved by an inverse, which is what kernels multiply by. One step: every operation on numbers as
many as the state's, in the plain loop. Scans without products (Mamba, RWKV-4) are counted by their
loop over a whole sequence, S4's convolution by its transforms. Left out everywhere: what is a
vector a head and token (normalisers, own terms, gates of the rules), running sums of decays, and
S4's kernel, which no input changes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
import torch
from nn.flop_counts import CountedFlops
from nn.recurrent_checks import D_MODEL, built, run
from nn.tolerances import assert_near
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from worthit.cost.ledger import Op, Pass
from worthit.cost.ops import mixer_ops
from worthit.nn.attention import delta_rule, gated_linear_attention, linear_attention, retnet
from worthit.nn.attention import gated_delta_rule as gated_delta
from worthit.nn.ssm import mamba, mamba2, rwkv, rwkv5, rwkv7, s4, s4d, ssd
from worthit.spec.model import (
    S4,
    Attention,
    LinearAttention,
    Mamba,
    Mamba2,
    Mixer,
    Rwkv,
)

BATCH, N, CHUNK = 2, 24, 8
LINEAR = LinearAttention(
    kind="linear", n_key_heads=2, n_value_heads=4, key_dim=6, value_dim=8, d_conv=4, chunk=CHUNK
)
LATER = Rwkv(d_attention=2 * D_MODEL, head_dim=8, mix_rank=3, rank=5, chunk=CHUNK)
CHUNKED: dict[str, Mixer] = {
    **{
        kind: replace(LINEAR, kind=kind)
        for kind in ("linear", "retention", "gated", "delta", "gated-delta")
    },
    "mamba2": Mamba2(n_heads=8, head_dim=8, d_state=6, n_groups=2, d_conv=4, chunk=CHUNK),
    **{f"rwkv {n}": replace(LATER, version=n) for n in (5, 6, 7)},
    "random features": Attention(n_heads=4, n_kv_heads=2, head_dim=8, n_features=12),
}
SCANNED: dict[str, Mixer] = {
    "mamba": Mamba(d_inner=64, d_state=6, d_conv=4, dt_rank=4),
    "rwkv 4": Rwkv(d_attention=2 * D_MODEL),
    "s4": S4(d_state=8),
    "s4d": S4(d_state=8, rank=0),
}


def ledger(mixer: Mixer, p: Pass) -> tuple[float, float]:
    """FLOPs of the recurrence, and of everything else."""
    ops: list[Op] = list(mixer_ops(mixer, float(D_MODEL), p))
    scans = [float(op.flops) for op in ops if op.kernel == "scan"]
    assert len(scans) == 1
    return scans[0], sum(float(op.flops) for op in ops) - scans[0]


PREFILL = Pass(phase="prefill", batch=BATCH, new=N, is_fused=False)
STEP = Pass(phase="decode", batch=BATCH, new=1, past=N, is_fused=False)


def products(call: Callable[[], object]) -> int:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def scores_as_published(q: Tensor, k: Tensor, total: Tensor) -> Tensor:
    """(q o b) (k / b)^T: one product, which overflows where decays are strong."""
    return ((q * total.exp()) @ (k * (-total).exp()).mT).tril()


def solved_by_inverse(system: Tensor, right: Tensor, **options: bool) -> Tensor:
    eye = torch.eye(system.shape[-1], dtype=system.dtype)
    return torch.linalg.inv(system.tril(-1) + eye) @ right


@pytest.fixture
def as_published(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gated_linear_attention, "scores", scores_as_published)
    monkeypatch.setattr(rwkv7, "scores", scores_as_published)
    monkeypatch.setattr(torch.linalg, "solve_triangular", solved_by_inverse)
    monkeypatch.setattr(mamba2, "ssd", partial(mamba2.ssd, chunk=CHUNK))


@pytest.mark.usefixtures("as_published")
@pytest.mark.parametrize("mixer", CHUNKED.values(), ids=CHUNKED)
def test_products_of_a_prefill(mixer: Mixer) -> None:
    module, x = built(mixer), torch.randn(BATCH, N, D_MODEL)
    assert products(lambda: run(module, x)) == sum(ledger(mixer, PREFILL))


@pytest.mark.parametrize("mixer", CHUNKED.values(), ids=CHUNKED)
def test_published_forms_give_our_numbers(mixer: Mixer, request: pytest.FixtureRequest) -> None:
    """What was counted above is the same function."""
    module, x = built(mixer), torch.randn(BATCH, N, D_MODEL)
    if hasattr(module, "omega"):
        module.omega.data.clamp_(max=-1.0)  # decays that the published form survives
    want = run(module, x)
    request.getfixturevalue("as_published")
    assert_near(run(module, x), want)


@pytest.mark.parametrize("mixer", SCANNED.values(), ids=SCANNED)
def test_products_beside_a_scan(mixer: Mixer, monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(x: Tensor, *args: object, **options: object) -> tuple[Tensor, Tensor]:
        return x, x

    monkeypatch.setattr(mamba, "selective_scan", nothing)
    monkeypatch.setattr(rwkv, "wkv", lambda w, u, k, v, state, is_real: (v, None))
    for kind in (s4.S4Mixer, s4d.S4DMixer):
        monkeypatch.setattr(kind, "kernel", lambda self, n: torch.ones(D_MODEL, n))
    monkeypatch.setattr(s4, "convolve", lambda u, kernel: u)
    module, x = built(mixer), torch.randn(BATCH, N, D_MODEL)
    assert products(lambda: run(module, x)) == ledger(mixer, PREFILL)[1]


# One step, on every number of the state


def step_of(name: str, mixer: Mixer) -> tuple[Callable[[], object], int]:
    """The plain loop over one token, and how many numbers the state holds."""
    g = torch.Generator().manual_seed(0)

    def rand(*shape: int) -> Tensor:
        return torch.rand(BATCH, *shape, generator=g)

    if isinstance(mixer, Attention):
        heads, k, v = mixer.n_heads, mixer.n_features, mixer.head_dim + 1
    elif isinstance(mixer, LinearAttention):
        heads, k, v = mixer.n_value_heads, mixer.key_dim, mixer.value_dim
    elif isinstance(mixer, Rwkv):
        heads, k, v = mixer.n_heads, mixer.head_dim, mixer.head_dim
    else:
        assert isinstance(mixer, Mamba2)
        heads, k, v = mixer.n_heads, mixer.d_state, mixer.head_dim
    state, q, key, value = (
        rand(heads, k, v),
        rand(heads, 1, k),
        rand(heads, 1, k),
        rand(heads, 1, v),
    )
    decay, strength = -rand(heads, 1), rand(heads, 1)
    loops: dict[str, Callable[[], object]] = {
        "linear": lambda: linear_attention.attend_in_order(q, key, value, state),
        "retention": lambda: retnet.retain_in_order(q, key, value, decay[0, :, 0], state),
        "gated": lambda: gated_linear_attention.attend_in_order(q, key, value, -key, state),
        "delta": lambda: delta_rule.delta_rule_in_order(q, key, value, strength, state),
        "gated-delta": lambda: gated_delta.gated_delta_rule_in_order(
            q, key, value, decay, strength, state
        ),
        "rwkv 5": lambda: rwkv5.wkv_in_order(q, key, value, -key, key[0, :, 0], state),
        "rwkv 6": lambda: rwkv5.wkv_in_order(q, key, value, -key, key[0, :, 0], state),
        "rwkv 7": lambda: rwkv7.dplr_in_order(q, key, value, -key, -key, key, state),
        "random features": lambda: linear_attention.attend_in_order(q, key, value, state),
    }
    if name == "mamba2":
        # Groups of one head each, so that B and C are not repeated.
        x, step = rand(1, heads, v), rand(1, heads)
        b, c, a = rand(1, heads, k), rand(1, heads, k), -torch.ones(heads)
        return lambda: ssd.ssd_in_order(x, step, a, b, c, state), heads * k * v
    return loops[name], heads * k * v


@pytest.mark.parametrize("name", CHUNKED)
def test_operations_of_one_step(name: str) -> None:
    loop, n_state = step_of(name, CHUNKED[name])
    with torch.no_grad(), CountedFlops(BATCH * n_state) as counter:
        loop()
    assert counter.flops == ledger(CHUNKED[name], STEP)[0]


def test_operations_of_mambas_loop() -> None:
    """Algorithm 2 with B discretised for every state; `cost` adds the decays' product of a scan."""
    mixer = SCANNED["mamba"]
    assert isinstance(mixer, Mamba)
    d, n = mixer.d_inner, mixer.d_state
    x, step = torch.rand(BATCH, N, d), torch.rand(BATCH, N, d)
    a, b, c = -torch.rand(d, n), torch.rand(BATCH, N, n), torch.rand(BATCH, N, n)
    state, outputs = torch.zeros(BATCH, d, n), []
    with CountedFlops(BATCH * d * n) as counter:
        for t in range(N):
            a_bar = torch.exp(step[:, t, :, None] * a)
            b_bar = step[:, t, :, None] * b[:, t, None]
            state = a_bar * state + b_bar * x[:, t, :, None]
            outputs.append((c[:, t, None] * state).sum(dim=-1))
    want, _ = mamba.selective_scan_in_order(x, step, a, b, c)
    assert_near(torch.stack(outputs, dim=1), want)
    per_state = counter.flops / (BATCH * N * d * n)
    assert counter.flops == N * ledger(mixer, STEP)[0]
    assert ledger(mixer, PREFILL)[0] == counter.flops / per_state * (per_state + 1)


def test_operations_of_rwkv_4s_loop() -> None:
    mixer = SCANNED["rwkv 4"]
    assert isinstance(mixer, Rwkv)
    d = mixer.d_attention
    w, u, k, v = torch.rand(d), torch.rand(d), torch.rand(BATCH, N, d), torch.rand(BATCH, N, d)
    start = (torch.rand(BATCH, d), torch.rand(BATCH, d), torch.rand(BATCH, d))
    with CountedFlops(BATCH * d) as counter:
        rwkv.wkv_in_order(w, u, k, v, start)
    assert counter.flops == ledger(mixer, PREFILL)[0] == N * ledger(mixer, STEP)[0]


@pytest.mark.parametrize("name", ["s4", "s4d"])
def test_transforms_of_s4s_convolution(name: str) -> None:
    mixer = SCANNED[name]
    u, kernel = torch.rand(BATCH, D_MODEL, N), torch.rand(D_MODEL, N)
    with CountedFlops(1) as counter:
        s4.convolve(u, kernel)
    # The only operation beside the transforms: one complex product a frequency and channel.
    assert counter.flops == BATCH * D_MODEL * (N + 1)
    predicted = ledger(mixer, PREFILL)[0]
    assert predicted == pytest.approx(counter.transforms + 6 * counter.flops, rel=1e-12)


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_operations_of_one_step_of_s4(rank: int) -> None:
    """In real numbers: pairs of states are turned, damped, fed, read; A_bar = D - P (2 Re Q)."""
    g = torch.Generator().manual_seed(0)
    half = 4

    def rand(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=g, dtype=torch.float64)

    (dr, di, br, bi, cr, ci), u = (rand(D_MODEL, half) for _ in range(6)), rand(BATCH, D_MODEL)
    p, q = (rand(rank, 2, D_MODEL, half) for _ in range(2))
    xr, xi = rand(BATCH, D_MODEL, half), rand(BATCH, D_MODEL, half)
    with CountedFlops(BATCH * D_MODEL * half) as counter:
        yr, yi = dr * xr - di * xi, dr * xi + di * xr
        for (pr, pi), (qr, qi) in zip(p, q, strict=True):
            onto = (qr * xr).sum(-1) + (qi * xi).sum(-1)
            yr, yi = yr - pr * onto[..., None], yi - pi * onto[..., None]
        yr, yi = yr + br * u[..., None], yi + bi * u[..., None]
        (cr * yr).sum(-1) + (ci * yi).sum(-1)
    x, b = torch.complex(xr, xi), torch.complex(br, bi)
    want = torch.complex(dr, di) * x + b * u[..., None]
    for (pr, pi), (qr, qi) in zip(p, q, strict=True):
        onto = (torch.complex(qr, -qi) * x).sum(-1).real
        want = want - torch.complex(pr, pi) * onto[..., None]
    assert_near(yr, want.real)
    assert_near(yi, want.imag)
    assert counter.flops == ledger(S4(d_state=2 * half, rank=rank), STEP)[0]
