"""Gated: whether a latent is on and how large it is are two questions.

Rajamanoharan et al. 2024, "Improving Dictionary Learning with Gated Sparse Autoencoders",
arXiv:2404.16014, equations 5 to 8:

    pi = W (x - b_dec) + b_gate        f = 1[pi > 0] relu(e^r W (x - b_dec) + b_mag)
    L = |x - y|^2 + lambda sum relu(pi) |d_i| + |x - (relu(pi) decoder + b_dec)|^2

| paper | here |
|---|---|
| W_gate, r_mag | `encoder`, `r_mag` |
| b_gate, b_mag | as there |
| lambda | `penalty` |

The penalty acts on the gate alone, so that magnitudes are not shrunk. Magnitudes are read off the
gate's own product (e^r (pi - b_gate) + b_mag): one product with the encoder, not two. The paper
freezes the decoder in the last term; sae_lens does not, and neither does this by default
(`is_frozen` for the paper's): gradients are then those of the library.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from worthit.interp.sae.base import Objective, SaeConfig, SparseAutoencoder
from worthit.interp.sae.entries import All, where_above


@dataclass(frozen=True, kw_only=True)
class GatedConfig(SaeConfig):
    """`penalty` weighs the gates' L1 term against the squared errors."""

    penalty: float = 1.0
    is_frozen: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self.positive("penalty")


class GatedSae(SparseAutoencoder):
    """A gate and a magnitude for each latent."""

    kind = "gated"
    config_class = GatedConfig
    config: GatedConfig
    resamples = True

    def add_biases(self) -> None:
        """Of gates and of magnitudes, and the logarithm of their ratio."""
        for name in ("b_gate", "b_mag", "r_mag"):
            setattr(self, name, nn.Parameter(torch.zeros(self.config.width)))

    @property
    def bias(self) -> Tensor:
        """The gates'."""
        return self.b_gate

    def activate(self, h: Tensor) -> Tensor:
        """Magnitudes where gates are open."""
        magnitude = self.r_mag.exp() * (h - self.b_gate) + self.b_mag
        return magnitude.relu() * (h > 0)

    def objective(self, x: Tensor, *, dead: Tensor | None = None, warm: float = 1.0) -> Objective:
        """Both squared errors, and the gates' penalty."""
        encoded = self.encoded(x)
        e = encoded.where(encoded.h > 0)
        # e^r (pi - b_gate) + b_mag, with what does not depend on the row put together.
        scale = self.r_mag.exp()
        shift = self.b_mag - scale * self.b_gate
        if isinstance(e, All):
            gate, magnitude = _Open.apply(e.h, scale, shift)
        else:
            gate, magnitude = e.h, (e.of(scale) * e.h + e.of(shift)).relu()
        decoder = self.decoder.detach() if self.config.is_frozen else self.decoder
        b_dec = self.b_dec.detach() if self.config.is_frozen else self.b_dec
        through = e.decode(gate, decoder) + b_dec
        penalty = self.config.penalty * warm / len(x)
        norms = decoder.norm(dim=-1) if self.config.is_frozen else self.norms
        return self.made(
            x,
            e,
            magnitude,
            {
                "penalty": penalty * e.weighted(gate, norms),
                "gates": (through - x).square().sum() / len(x),
            },
        )

    @torch.no_grad()
    def scale_latents(self, by: Tensor) -> None:
        """Both biases follow."""
        self.b_gate.mul_(by)
        self.b_mag.mul_(by)

    @torch.no_grad()
    def shift_latents(self, by: Tensor) -> None:
        """Both biases make up for it; a magnitude is stretched by e^r."""
        self.b_gate.sub_(by)
        self.b_mag.sub_(by * self.r_mag.exp())


class _Open(torch.autograd.Function):
    """Gates and magnitudes of all latents: relu(pi), and relu(scale pi + shift) where pi > 0."""

    @staticmethod
    def forward(ctx: Any, pi: Tensor, scale: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
        gate = pi.relu()
        magnitude = where_above(torch.addcmul(shift, pi, scale).relu_(), gate)
        ctx.save_for_backward(gate, magnitude, scale)
        return gate, magnitude

    @staticmethod
    def backward(ctx: Any, d_gate: Tensor, d_magnitude: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        gate, magnitude, scale = ctx.saved_tensors
        d = where_above(d_magnitude, magnitude)
        d_pi = where_above(d_gate, gate).addcmul_(d, scale)
        # Where a magnitude is above 0 its gate is pi.
        return d_pi, (d * gate).sum(0), d.sum(0)
