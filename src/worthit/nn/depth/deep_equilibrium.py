"""Deep equilibrium: a layer iterated to its fixed point, and differentiated there.

Bai, Kolter & Koltun 2019, "Deep Equilibrium Models", arXiv:1909.01377, equation 3 and theorem 1:

    z* = f(z*; x)        dl/d(.) = dl/dz* (I - J)^-1 df(z*; x)/d(.),  J = df/dz at z*

| paper | here |
|---|---|
| x, the injected input | `x` |
| z* | `solve(...)` |
| f(z; x) | `EquilibriumBlock.step` |
| (I - J)^-T dl/dz* | the fixed point of g = J^T g + dl/dz*, by the same solver |

The block adds to its stream; here the stream starts from `x` each time: f(z; x) = x + (block(z) -
z), or block(z + x) where the block ends in a norm. Nothing on the way to z* is kept for the
backward pass. Anderson's method mixes each token's own last iterates, so that no token's result
depends on later ones. `n_loops` bounds the iterations.

`jacobian_penalty` is that of Bai et al. 2021, arXiv:2106.14342, equation 6: it keeps f contracting.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from worthit.nn.cache import MixerCache
from worthit.nn.decoder import Block
from worthit.nn.tokens import Tokens

TOLERANCE = 1e-6  # largest change of a step, against the largest entry
MEMORY = 5  # iterates that Anderson's method mixes
RIDGE = 1e-9  # of the mean squared residual: keeps the least squares solvable


class EquilibriumBlock(Block):
    """A block whose output is where applying it changes nothing any more."""

    def forward(self, x: Tensor, tokens: Tokens, caches: list[object] | None = None) -> Tensor:
        """`(batch, n, d_model)` to the same shape."""
        n_steps = self.spec.n_loops
        with torch.no_grad():
            # Every iteration starts from the past alone; what it adds is forgotten.
            z = anderson(lambda z: self.step(z, x, tokens, _forks(caches)), x, n_steps)
        if not torch.is_grad_enabled():
            return self.step(z, x, tokens, caches)
        out = self.step(z, x, tokens, caches)
        at = z.detach().requires_grad_()
        again = self.step(at, x.detach(), tokens, _forks(caches))

        def adjoint(gradient: Tensor) -> Tensor:
            def step(g: Tensor) -> Tensor:
                (pulled,) = torch.autograd.grad(again, at, g, retain_graph=True)
                return pulled + gradient

            return anderson(step, gradient, n_steps)

        if out.requires_grad:
            out.register_hook(adjoint)
        return out

    def step(
        self, z: Tensor, x: Tensor, tokens: Tokens, caches: list[object] | None = None
    ) -> Tensor:
        """f(z; x)."""
        if self.spec.placement == "post":
            return super().forward(z + x, tokens, caches)
        return x + (super().forward(z, tokens, caches) - z)


def _forks(caches: list[object] | None) -> list[object] | None:
    if caches is None:
        return None
    return [cache.fork() for cache in caches if isinstance(cache, MixerCache)]


def iterate(f: Callable[[Tensor], Tensor], z: Tensor, n_steps: int) -> Tensor:
    """The reference: f applied `n_steps` times."""
    for _ in range(n_steps):
        z = f(z)
    return z


def anderson(f: Callable[[Tensor], Tensor], z: Tensor, n_steps: int) -> Tensor:
    """A fixed point of `f` near `z` `(..., d)`, each vector mixed by itself.

    Anderson 1965: the next iterate is the combination of the last outputs whose residuals
    f(z) - z, combined alike, are smallest. At most `n_steps` evaluations.
    """
    outputs: list[Tensor] = []
    residuals: list[Tensor] = []
    for _ in range(n_steps):
        y = f(z)
        residual = y - z
        if residual.abs().max() <= TOLERANCE * y.abs().max():
            return y
        outputs, residuals = [*outputs, y][-MEMORY:], [*residuals, residual][-MEMORY:]
        r = torch.stack(residuals, dim=-2).double()  # (..., m, d)
        gram = r @ r.transpose(-1, -2)
        scale = gram.diagonal(dim1=-2, dim2=-1).mean(dim=-1)[..., None, None].clamp_min(1e-300)
        m = gram.shape[-1]
        eye = torch.eye(m, dtype=gram.dtype, device=gram.device)
        # min |sum a_i r_i| with sum a_i = 1: a is (gram)^-1 1, divided by its sum.
        a = torch.linalg.solve(gram / scale + RIDGE * eye, torch.ones_like(gram[..., :1]))
        a = a / a.sum(dim=-2, keepdim=True)
        z = (a * torch.stack(outputs, dim=-2)).sum(dim=-2).to(z.dtype)
    return z


def jacobian_penalty(f: Callable[[Tensor], Tensor], z: Tensor) -> Tensor:
    """An estimate of |J|_F^2 / d at `z` `(..., d)` by one random vector (Hutchinson)."""
    z = z.detach().requires_grad_()
    y = f(z)
    (pulled,) = torch.autograd.grad(y, z, torch.randn_like(y), create_graph=True)
    return pulled.square().sum() / z.numel()
