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

import torch
from torch import Tensor, nn

from worthit.interp.sae.base import Objective, SaeConfig, SparseAutoencoder


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
        gate = e.only(e.h)
        magnitude = e.of(self.r_mag.exp()) * (e.h - e.of(self.b_gate)) + e.of(self.b_mag)
        decoder = self.decoder.detach() if self.config.is_frozen else self.decoder
        b_dec = self.b_dec.detach() if self.config.is_frozen else self.b_dec
        through = e.decode(gate, decoder) + b_dec
        penalty = self.config.penalty * warm / len(x)
        norms = decoder.norm(dim=-1) if self.config.is_frozen else self.norms
        return self.made(
            x,
            e,
            e.only(magnitude.relu()),
            {
                "penalty": penalty * (gate * e.of(norms)).sum(),
                "gates": (through - x).square().sum() / len(x),
            },
        )

    @torch.no_grad()
    def scale_latents(self, by: Tensor) -> None:
        """Both biases follow."""
        self.b_gate.mul_(by)
        self.b_mag.mul_(by)
