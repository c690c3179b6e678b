"""S4: one linear state space a channel, whose memory is a projection onto polynomials.

Gu, Goel & Re 2021, "Efficiently Modeling Long Sequences with Structured State Spaces",
arXiv:2111.00396, section 3 and appendix C. For each channel

    x' = A x + B u,    y = C x + D u,    A = Lambda - P P*

stepped by the bilinear rule with step Delta:

    A_bar = (2/Delta - A)^-1 (2/Delta + A),    B_bar = 2 (2/Delta - A)^-1 B

| paper | here |
|---|---|
| N | `d_state`, half as many complex numbers: eigenvalues come in conjugate pairs |
| Lambda | `-exp(log_decay) + i frequency`, `(d_model, N/2)` |
| P, B, C | `p` `(d_model, rank, N/2)`, `b`, `c` `(d_model, N/2)`, stored as pairs of reals |
| Delta, D | `exp(log_step)`, `skip` |
| u, y | input and output of a channel |
| C~ = C (1 - A_bar^L) | `_cut`: makes the generating function that of the first L taps |

Three forms, the same numbers: the *recurrence* (`step`, O(N) by Woodbury's identity), the
*convolution* (the kernel from its generating function at the roots of unity, then FFT), and chunks
of `CHUNK` tokens, which continue a state and leave one. A starts as HiPPO-LegS (equation 2), made
diagonal plus low rank. Around it: GELU, then a gated projection (GLU), as in the paper's blocks.

Departure: the generating function is multiplied through by 1 + z, so that z = -1 is no pole.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from worthit.nn.cache import StateCache
from worthit.nn.mixer import Mixer
from worthit.nn.tokens import Tokens
from worthit.spec import model as spec

CHUNK = 64
STEP_MIN, STEP_MAX = 1e-3, 1e-1


def build_s4(s4: spec.S4, model: spec.ModelSpec) -> Mixer:
    """S4, or where the low-rank part has rank 0 its diagonal form, S4D."""
    from worthit.nn.ssm.s4d import S4DMixer

    return S4DMixer(s4, model) if s4.rank == 0 else S4Mixer(s4, model)


def hippo_legs(n: int) -> Tensor:
    """The HiPPO-LegS matrix, `(n, n)`, fp64 (equation 2)."""
    root = (2 * torch.arange(n, dtype=torch.float64) + 1).sqrt()
    below = -(root[:, None] * root[None, :]).tril(-1)
    return below - torch.diag(torch.arange(1, n + 1, dtype=torch.float64))


def hippo_pairs(n: int) -> tuple[Tensor, Tensor, Tensor]:
    """Lambda, P and B of HiPPO-LegS in the eigenbasis of A + P P^T, one of each conjugate pair."""
    p = (torch.arange(n, dtype=torch.float64) + 0.5).sqrt()
    b = (2 * torch.arange(n, dtype=torch.float64) + 1).sqrt()
    normal = hippo_legs(n) + p[:, None] * p[None, :]
    # -1/2 on the diagonal, and the rest is skew-symmetric.
    skew = normal + 0.5 * torch.eye(n, dtype=torch.float64)
    frequency, basis = torch.linalg.eigh(skew * -1j)
    half = frequency > 0
    into = basis.mH[half]
    return -0.5 + 1j * frequency[half], into @ p.to(into.dtype), into @ b.to(into.dtype)


class StateSpaceMixer(Mixer):
    """What S4 and S4D share: skip, activation, gated projection, and when each form runs."""

    def __init__(self, s4: spec.S4, model: spec.ModelSpec) -> None:
        super().__init__()
        self.spec = s4
        d = model.d_model
        low, high = math.log(STEP_MIN), math.log(STEP_MAX)
        self.log_step = nn.Parameter(torch.rand(d) * (high - low) + low)
        self.skip = nn.Parameter(torch.randn(d))
        self.out_proj = nn.Linear(d, 2 * d, bias=False)

    def new_cache(self) -> StateCache:
        """`state` `(batch, d_model, d_state)`: real parts, then imaginary ones."""
        return StateCache()

    def forward(self, x: Tensor, tokens: Tokens, cache: StateCache | None = None) -> Tensor:
        """`(batch, n, d_model)` to the same shape."""
        x = tokens.without_padding(x)
        u = x.float().transpose(1, 2)  # (batch, d_model, n)
        if cache is None:
            y = convolve(u, self.kernel(u.shape[2]).to(u.dtype))
        else:
            y, state = self.continued(u, cache.get("state"))
            cache["state"] = state
        y = (y + self.skip.float()[:, None] * u).transpose(1, 2).to(x.dtype)
        out: Tensor = functional.glu(self.out_proj(functional.gelu(y)), dim=-1)
        return out

    def kernel(self, n: int) -> Tensor:
        """C A_bar^t B_bar for t < n, `(d_model, n)`."""
        raise NotImplementedError

    def step_matrices(self) -> tuple[Tensor, Tensor, Tensor]:
        """A_bar `(d_model, d_state, d_state)`, B_bar and C `(d_model, d_state)`, real, fp64."""
        raise NotImplementedError

    def step_and_read(self, state: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        """One token in O(N): what is read, `(batch, d_model)`, and the next complex state."""
        raise NotImplementedError

    def in_order(self, u: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Outputs `(batch, d_model, n)` and the last state, token by token: the reference."""
        a, b, c = (t.to(u.dtype) for t in self.step_matrices())
        if state is None:
            state = u.new_zeros(*u.shape[:2], a.shape[-1])
        outputs = []
        for u_t in u.unbind(2):
            state = (a @ state[..., None])[..., 0] + b * u_t[..., None]
            outputs.append((c * state).sum(dim=-1))
        return torch.stack(outputs, dim=2), state

    def continued(self, u: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
        """The same by chunks: what enters, what is read and what passes on are products."""
        if state is None:
            state = u.new_zeros(*u.shape[:2], self.spec.d_state)
        if u.shape[2] == 1:
            pairs = torch.complex(*(t.double() for t in state.chunk(2, dim=-1)))
            y, pairs = self.step_and_read(pairs, u[..., 0].double())
            return y[..., None].to(u.dtype), torch.cat([pairs.real, pairs.imag], -1).to(u.dtype)
        a, b, c = self.step_matrices()
        size = min(CHUNK, u.shape[2])
        # Columns A^j b and rows c A^(j + 1), for j < size.
        columns, rows = _krylov(a, b, size), _krylov(a.mT, c, size).mT @ a
        taps = (c[:, None] @ columns)[:, 0].to(u.dtype)
        written, reads = columns.to(u.dtype), rows.to(u.dtype)
        sizes = {part.shape[2] for part in u.split(size, dim=2)}
        passed = {n: torch.linalg.matrix_power(a, n).to(u.dtype) for n in sizes}
        outputs = []
        for part in u.split(size, dim=2):
            n = part.shape[2]
            outputs.append(convolve(part, taps[:, :n]) + (reads[:, :n] @ state[..., None])[..., 0])
            entered = (written[:, :, :n].flip(-1) @ part[..., None])[..., 0]
            state = (passed[n] @ state[..., None])[..., 0] + entered
        return torch.cat(outputs, dim=2), state


def _krylov(a: Tensor, b: Tensor, n: int) -> Tensor:
    """b, A b, A^2 b, ... as `n` columns, doubling how many there are."""
    columns = b[..., None]
    while columns.shape[-1] < n:
        columns = torch.cat([columns, a @ columns], dim=-1)
        a = a @ a
    return columns[..., :n]


def convolve(u: Tensor, kernel: Tensor) -> Tensor:
    """Causal convolution of `(batch, d_model, n)` with `(d_model, n)`, by FFT over 2 n slots."""
    n = u.shape[-1]
    product = torch.fft.rfft(u, n=2 * n) * torch.fft.rfft(kernel, n=2 * n)
    return torch.fft.irfft(product, n=2 * n)[..., :n]


class S4Mixer(StateSpaceMixer):
    """Diagonal plus low rank."""

    def __init__(self, s4: spec.S4, model: spec.ModelSpec) -> None:
        super().__init__(s4, model)
        d, half = model.d_model, s4.d_state // 2
        with torch.device("cpu"):  # values are needed also where parameters have no memory
            poles, p, b = hippo_pairs(s4.d_state)
        low_rank = torch.zeros(s4.rank, half, dtype=p.dtype)
        low_rank[0] = p

        def each(values: Tensor) -> Tensor:
            pairs = torch.view_as_real(values) if values.is_complex() else values
            here = torch.empty(0).device
            return pairs.float().to(here).expand(d, *pairs.shape).clone()

        self.log_decay = nn.Parameter(each((-poles.real).log()))
        self.frequency = nn.Parameter(each(poles.imag))
        self.p = nn.Parameter(each(low_rank))
        self.b = nn.Parameter(each(b))
        self.c = nn.Parameter(torch.randn(d, half, 2) * 0.5**0.5)

    def _parts(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Lambda, P, B, C, complex, and 2 / Delta; in fp64, for powers are taken of them."""
        poles = torch.complex(-self.log_decay.double().exp(), self.frequency.double())
        p, b, c = (torch.view_as_complex(t.double().contiguous()) for t in (self.p, self.b, self.c))
        return poles, p, b, c, 2 * torch.exp(-self.log_step.double())

    def step(self, state: Tensor, u: Tensor) -> Tensor:
        """A_bar x + B_bar u for complex states `(..., d_model, N/2)`, `u` `(..., d_model)`: O(N).

        (2/Delta - Lambda + P P*)^-1 = R - R P (1 + P* R P)^-1 P* R,  R = (2/Delta - Lambda)^-1
        """
        poles, p, b, _, rate = self._parts()

        def onto_p(x: Tensor) -> Tensor:
            # P* x over both halves of every pair: twice the real part.
            return 2 * (p.conj() * x[..., None, :]).sum(dim=-1).real

        forward = (rate[:, None] + poles) * state
        forward = forward - (p * onto_p(state)[..., None]).sum(dim=-2)
        right = (forward + 2 * b * u[..., None]) / (rate[:, None] - poles)
        rp = p / (rate[:, None, None] - poles[:, None])
        system = 2 * (p.conj() @ rp.mT).real + torch.eye(p.shape[1]).to(rp.real)
        weights = torch.linalg.solve(system, onto_p(right)[..., None])
        return right - (rp * weights).sum(dim=-2)

    def step_and_read(self, state: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        """By `step`."""
        state = self.step(state, u)
        return 2 * (self._parts()[3] * state).real.sum(dim=-1), state

    def step_matrices(self) -> tuple[Tensor, Tensor, Tensor]:
        """By stepping every unit vector once."""
        c = self._parts()[3]
        half = c.shape[1]
        eye = torch.eye(half, dtype=torch.float64, device=c.device)
        basis = torch.cat([torch.complex(eye, 0 * eye), torch.complex(0 * eye, eye)])
        states = basis[:, None].expand(-1, c.shape[0], -1)  # (d_state, d_model, N/2)
        a = self.step(states, states.real.new_zeros(2 * half, c.shape[0]))
        b = self.step(torch.zeros_like(c), c.real.new_ones(c.shape[0]))
        columns = torch.cat([a.real, a.imag], dim=-1).permute(1, 2, 0)
        return columns, torch.cat([b.real, b.imag], dim=-1), as_row(c)

    def _cut(self, n: int) -> Tensor:
        """C~ = C - C A_bar^n, complex."""
        a, _, c = self.step_matrices()
        rest = c - (c[:, None] @ torch.linalg.matrix_power(a, n))[:, 0]
        real, imaginary = rest.chunk(2, dim=-1)
        return torch.complex(real / 2, -imaginary / 2)

    def kernel(self, n: int) -> Tensor:
        """From the generating function at the n-th roots of unity (theorem 3).

        With s(v) = sum of v / ((2/Delta)(1 - z) - (1 + z) Lambda) over all poles, it is
        2 (s(C~ B) - (1 + z) s(C~ P) (1 + (1 + z) s(P* P))^-1 s(P* B)).
        """
        parts = (*self._parts(), self._cut(n))
        poles, p, b, rate, c = (parts[i].to(_narrow(parts[i])) for i in (0, 1, 2, 4, 5))
        angle = torch.arange(n // 2 + 1, dtype=torch.float64, device=c.device) * (math.pi / n)
        turn = torch.polar(torch.ones_like(angle), -angle)
        # 1 - z and 1 + z without cancellation, for z = exp(-2 i angle).
        minus = (2j * angle.sin() * turn).to(c.dtype)
        plus = (2 * angle.cos() * turn).to(c.dtype)
        below = rate[:, None, None] * minus - plus * poles[..., None]
        above = rate[:, None, None] * minus - plus * poles.conj()[..., None]
        one, other = 1 / below, 1 / above  # (d_model, N/2, n/2 + 1)

        def s(v: Tensor) -> Tensor:
            return v @ one + v.conj() @ other

        direct = s((c * b)[:, None])[:, 0]
        from_p = s(c[:, None] * p)  # (d_model, rank, frequencies)
        onto_b = s(p.conj() * b[:, None])
        rank = p.shape[1]
        among = s((p.conj()[:, :, None] * p[:, None]).flatten(1, 2)).unflatten(1, (rank, rank))
        system = torch.eye(rank, device=c.device)[..., None] + plus * among
        solved = torch.linalg.solve(system.permute(0, 3, 1, 2), onto_b.mT[..., None])[..., 0]
        found = 2 * (direct - plus * (from_p.mT * solved).sum(dim=-1))
        return torch.fft.irfft(found, n=n)


def _narrow(x: Tensor) -> torch.dtype:
    return torch.complex64 if x.is_complex() else torch.float32


def as_row(c: Tensor) -> Tensor:
    """The real row that reads 2 Re(C x) off a state's real and imaginary parts."""
    return torch.cat([2 * c.real, -2 * c.imag], dim=-1)
