"""S4D: S4 without the low-rank part; a bank of damped oscillations.

Gu, Gupta, Goel & Re 2022, "On the Parameterization and Initialization of Diagonal State Space
Models", arXiv:2206.11893, equations 2 to 4 and section 4 (S4D-Lin):

    K_t = 2 Re sum_n C_n B_bar_n A_bar_n^t,    A_n = -1/2 + i pi n
    A_bar = exp(Delta A),    B_bar = (exp(Delta A) - 1) / A B          (zero-order hold)

| paper | here |
|---|---|
| N/2 | half of `d_state`: one of each conjugate pair |
| A | `-exp(log_decay) + i frequency`, `(d_model, N/2)` |
| B, C | `b`, `c`, stored as pairs of reals; B starts at 1 |
| Delta, D | `exp(log_step)`, `skip` |

The kernel is a Vandermonde product; recurrence and chunks are S4's with a diagonal matrix.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from worthit.nn.ssm.s4 import StateSpaceMixer, as_row
from worthit.spec import model as spec


class S4DMixer(StateSpaceMixer):
    """Diagonal."""

    def __init__(self, s4: spec.S4, model: spec.ModelSpec) -> None:
        super().__init__(s4, model)
        d, half = model.d_model, s4.d_state // 2
        self.log_decay = nn.Parameter(torch.full((d, half), math.log(0.5)))
        self.frequency = nn.Parameter(math.pi * torch.arange(half).float().repeat(d, 1))
        self.b = nn.Parameter(torch.stack([torch.ones(d, half), torch.zeros(d, half)], dim=-1))
        self.c = nn.Parameter(torch.randn(d, half, 2) * 0.5**0.5)

    def _discrete(self) -> tuple[Tensor, Tensor, Tensor]:
        """Delta A, B_bar and C, complex `(d_model, N/2)`, fp64."""
        poles = torch.complex(-self.log_decay.double().exp(), self.frequency.double())
        b, c = (torch.view_as_complex(t.double().contiguous()) for t in (self.b, self.c))
        turned = poles * self.log_step.double().exp()[:, None]
        return turned, torch.expm1(turned) / poles * b, c

    def kernel(self, n: int) -> Tensor:
        """The Vandermonde product."""
        turned, b, c = self._discrete()
        powers = torch.exp(turned[..., None] * torch.arange(n, device=b.device))
        return 2 * ((c * b)[:, None] @ powers)[:, 0].real

    def step_and_read(self, state: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        """Each pair by itself."""
        turned, b, c = self._discrete()
        state = turned.exp() * state + b * u[..., None]
        return 2 * (c * state).real.sum(dim=-1), state

    def step_matrices(self) -> tuple[Tensor, Tensor, Tensor]:
        """A rotation and a decay for each pair."""
        turned, b, c = self._discrete()
        a = turned.exp()
        real, imaginary = torch.diag_embed(a.real), torch.diag_embed(a.imag)
        rows = [torch.cat([real, -imaginary], dim=-1), torch.cat([imaginary, real], dim=-1)]
        return torch.cat(rows, dim=-2), torch.cat([b.real, b.imag], dim=-1), as_row(c)
