"""JumpReLU: a latent is on above a threshold of its own, and how many are on is what costs.

Rajamanoharan et al. 2024, "Jumping Ahead: Improving Reconstruction Fidelity with JumpReLU Sparse
Autoencoders", arXiv:2407.14435, equations 9 to 12:

    f = h H(h - theta)        L = |x - y|^2 + lambda sum_i H(h_i - theta_i)
    d f / d theta = -(theta / eps) K((h - theta) / eps)      K = 1 within half a bandwidth, else 0
    d H / d theta = -(1 / eps) K((h - theta) / eps)

| paper | here |
|---|---|
| theta | `threshold`, not its logarithm |
| lambda | `penalty` |
| eps | `bandwidth` |

Steps have no gradient; the threshold's is estimated from the inputs that fall close to it. A
bandwidth far below the spread of pre-activations sees none, and the number of latents never moves.
The paper trains the logarithm; Adam then moves small thresholds by little more than nothing, so the
threshold itself is trained here and held at 0 or above. Dead latents have no inputs near their
threshold: `revive` pulls their pre-activations up (Conerly et al. 2025, "Circuits Updates").
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from worthit.interp.sae.base import Objective, SaeConfig, SparseAutoencoder


@dataclass(frozen=True, kw_only=True)
class JumpReluConfig(SaeConfig):
    """`penalty` weighs the number of latents that are on against the squared error."""

    penalty: float = 1.0
    bandwidth: float = 0.05
    init_threshold: float = 0.01
    revive: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.positive("penalty", "bandwidth")


class JumpReluSae(SparseAutoencoder):
    """A threshold for each latent."""

    kind = "jumprelu"
    config_class = JumpReluConfig
    config: JumpReluConfig

    def add_biases(self) -> None:
        """A bias and a threshold each."""
        super().add_biases()
        start = getattr(self.config, "init_threshold", 0.0)
        self.threshold = nn.Parameter(torch.full((self.config.width,), start))

    def activate(self, h: Tensor) -> Tensor:
        """`h` where above its threshold, and above 0."""
        return h.relu() * (h > self.threshold)

    def objective(self, x: Tensor, *, dead: Tensor | None = None, warm: float = 1.0) -> Objective:
        """Squared error, and how many are on."""
        config, encoded = self.config, self.encoded(x)
        # Below the threshold by half a bandwidth a latent still pulls at it.
        e = encoded.where(encoded.h > self.threshold.detach() - config.bandwidth / 2)
        theta = e.of(self.threshold)
        f: Tensor = _Jump.apply(e.h, theta, config.bandwidth)
        is_on: Tensor = _Step.apply(e.h, theta, config.bandwidth)
        parts = {"penalty": config.penalty * warm / len(x) * e.only(is_on).sum()}
        if config.revive and dead is not None and bool(dead.any()):
            which = dead.nonzero()[:, 0]
            shift = self.b_dec if config.is_centred else 0.0
            h = (x - shift) @ self.encoder[which].T + self.b_enc[which]
            below = (self.threshold[which] - h).relu() * self.norms[which]
            parts["revive"] = config.revive * below.sum() / len(x)
        return self.made(x, e, f, parts)

    @torch.no_grad()
    def after_step(self) -> None:
        """Below 0 the gate would let negative latents through."""
        super().after_step()
        self.threshold.clamp_(min=0.0)

    @torch.no_grad()
    def scale_latents(self, by: Tensor) -> None:
        """Biases and thresholds follow."""
        self.b_enc.mul_(by)
        self.threshold.mul_(by)


class _Jump(torch.autograd.Function):
    """h where h > theta, with the estimated gradient of theta."""

    @staticmethod
    def forward(ctx: Any, h: Tensor, theta: Tensor, bandwidth: float) -> Tensor:
        ctx.save_for_backward(h, theta)
        ctx.bandwidth = bandwidth
        return h * (h > theta)

    @staticmethod
    def backward(ctx: Any, d: Tensor) -> tuple[Tensor, Tensor, None]:
        h, theta = ctx.saved_tensors
        near = (h - theta).abs() < ctx.bandwidth / 2
        return d * (h > theta), _summed(-(theta / ctx.bandwidth) * near * d, theta), None


class _Step(torch.autograd.Function):
    """1 where h > theta, with the estimated gradient of theta and none of h."""

    @staticmethod
    def forward(ctx: Any, h: Tensor, theta: Tensor, bandwidth: float) -> Tensor:
        ctx.save_for_backward(h, theta)
        ctx.bandwidth = bandwidth
        return (h > theta).to(h)

    @staticmethod
    def backward(ctx: Any, d: Tensor) -> tuple[None, Tensor, None]:
        h, theta = ctx.saved_tensors
        near = (h - theta).abs() < ctx.bandwidth / 2
        return None, _summed(-near.to(h) / ctx.bandwidth * d, theta), None


def _summed(d: Tensor, theta: Tensor) -> Tensor:
    """Over the rows, where one threshold serves all of them."""
    return d if d.shape == theta.shape else d.sum(0)
