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
from worthit.interp.sae.entries import All, summed_at, where_above


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
        h, theta = encoded.h, self.threshold
        # Few are on where many may be near: what is decoded is those that are on, and what is near
        # matters to thresholds alone.
        with torch.no_grad():
            near = (h - theta).abs_().lt_(config.bandwidth / 2)
            n_near = near.sum(0)
        e = encoded.where(h > theta)
        if isinstance(e, All):
            f: Tensor = _Jump.apply(e.h, theta, near, config.bandwidth)
            y = e.decode(f, self.decoder)
        else:
            f = e.h
            y = _Pulled.apply(
                e.decode(f, self.decoder), theta, near, self.decoder, config.bandwidth
            )
        n_on = e.n_on - (theta - theta.detach()) @ (n_near / config.bandwidth)
        parts = {"penalty": config.penalty * warm / len(x) * n_on}
        if config.revive and dead is not None and bool(dead.any()):
            which = dead.nonzero()[:, 0]
            shift = self.b_dec if config.is_centred else 0.0
            h = (x - shift) @ self.encoder[which].T + self.b_enc[which]
            below = (self.threshold[which] - h).relu() * self.norms[which]
            parts["revive"] = config.revive * below.sum() / len(x)
        return self.made(x, e, f, parts, decoded=y)

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
    """h where h > theta, in full, with the estimated gradient of theta."""

    @staticmethod
    def forward(ctx: Any, h: Tensor, theta: Tensor, near: Tensor, bandwidth: float) -> Tensor:
        f = h * (h > theta)
        ctx.save_for_backward(f, theta, near)
        ctx.bandwidth = bandwidth
        return f

    @staticmethod
    def backward(ctx: Any, d: Tensor) -> tuple[Tensor, Tensor, None, None]:
        f, theta, near = ctx.saved_tensors
        d_theta = -(theta / ctx.bandwidth) * (near * d).sum(0)
        # Thresholds are not below 0: what is on is above it.
        return where_above(d, f), d_theta, None, None


class _Pulled(torch.autograd.Function):
    """A reconstruction as it is; on its way back thresholds get their estimated gradient.

    Of latent i, near its threshold in some rows: the sum over those of dy . decoder_i, which is
    (near^T dy)_i . decoder_i, one product whatever is on.
    """

    @staticmethod
    def forward(
        ctx: Any, y: Tensor, theta: Tensor, near: Tensor, decoder: Tensor, bandwidth: float
    ) -> Tensor:
        ctx.save_for_backward(theta, near, decoder)
        ctx.bandwidth = bandwidth
        return y.view_as(y)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        theta, near, decoder = ctx.saved_tensors
        along = (summed_at(near, dy) * decoder).sum(-1)
        return dy, -(theta / ctx.bandwidth) * along, None, None, None
