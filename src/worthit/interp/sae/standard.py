"""The standard sparse autoencoder: rectified latents under an L1 penalty.

Bricken et al. 2023, "Towards Monosemanticity", transformer-circuits.pub; with the penalty weighted
by decoder lengths as in Templeton et al. 2024, "Scaling Monosemanticity", which makes it invariant
to how a latent and its row share their scale:

    L = |x - y|^2 + lambda sum_i f_i |d_i|,    f = relu(W (x - b_dec) + b_enc)

| paper | here |
|---|---|
| lambda | `penalty` |
| d_i | a row of `decoder` |

The penalty pulls at every latent that is on: what it reports is smaller than what is there
(shrinkage), which `gated` was made to remove.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from worthit.interp.sae.base import Objective, SaeConfig, SparseAutoencoder


@dataclass(frozen=True, kw_only=True)
class StandardConfig(SaeConfig):
    """`penalty` weighs the L1 term against the squared error."""

    penalty: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.positive("penalty")


class StandardSae(SparseAutoencoder):
    """Rectified latents; sparse because they cost."""

    kind = "standard"
    config_class = StandardConfig
    config: StandardConfig
    resamples = True

    def activate(self, h: Tensor) -> Tensor:
        """relu."""
        return h.relu()

    def objective(self, x: Tensor, *, dead: Tensor | None = None, warm: float = 1.0) -> Objective:
        """Squared error, and the penalty; `dead` latents are resampled between steps instead."""
        encoded = self.encoded(x)
        e = encoded.where(encoded.h > 0)
        f = e.h.relu()
        penalty = self.config.penalty * warm / len(x)
        return self.made(x, e, f, {"penalty": penalty * e.weighted(f, self.norms)})
