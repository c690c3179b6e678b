"""BatchTopK: k latents an input on average, shared out over the batch.

Bussmann, Leask and Nanda 2024, "BatchTopK Sparse Autoencoders", arXiv:2412.06410, section 3:

    f = the k n largest of all latents of n inputs        theta = E[min of the positive f]

| paper | here |
|---|---|
| k, batch size n | `k`, `len(x)` |
| theta | `level`, a running mean with step `level_step` |
| L_aux | as TopK's |

Inputs that need more latents get them. What is on then depends on the batch; in use a latent is on
above `level`, which makes it a JumpReLU autoencoder with one threshold, and it is saved as one.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from worthit.errors import InputError
from worthit.interp.sae.base import Objective, SaeConfig
from worthit.interp.sae.entries import Encoded, Few
from worthit.interp.sae.topk import TopKSae


@dataclass(frozen=True, kw_only=True)
class BatchTopKConfig(SaeConfig):
    """`k` latents an input on average; see `TopKConfig` for the rest."""

    k: float = 32
    aux: float = 1.0
    is_rescaled: bool = True
    level_step: float = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.k <= self.width:
            raise InputError(
                f"k: must be above 0 and at most width, got k={self.k} and width={self.width}"
            )


class BatchTopKSae(TopKSae):
    """As many latents as asked for, on average."""

    kind = "batchtopk"
    config_class = BatchTopKConfig
    config: BatchTopKConfig  # type: ignore[assignment]  # a share where TopK has a count

    def add_biases(self) -> None:
        """The level above which latents are on in use, in double precision: a running mean."""
        super().add_biases()
        self.register_buffer("level", torch.tensor(0.0, dtype=torch.float64))

    def activate(self, h: Tensor) -> Tensor:
        """What is above the level."""
        h = h * self.norms if self.config.is_rescaled else h
        return h.relu() * (h > self.level)

    def objective(self, x: Tensor, *, dead: Tensor | None = None, warm: float = 1.0) -> Objective:
        """As TopK's, and the level follows."""
        made = super().objective(x, dead=dead, warm=warm)
        with torch.no_grad():
            if self._least is not None:
                self.level.lerp_(self._least.double(), self.config.level_step)
        return made

    def chosen(self, encoded: Encoded) -> Few:
        """The largest of the whole batch; ties and zeros as they come."""
        h = encoded.h * self.norms.detach() if self.config.is_rescaled else encoded.h
        n = int(self.config.k * len(h))
        flat = h.flatten()
        # Those above half the level hold the largest, if they are enough: fewer to choose among.
        near = (flat > 0.5 * float(self.level)).nonzero()[:, 0]
        if len(near) >= n:
            best = near[flat[near].topk(n, sorted=False).indices]
        else:
            best = flat.relu().topk(n, sorted=False).indices
        best = best.sort().values
        chosen = flat[best]
        positive = chosen[chosen > 0]
        # What trains are pre-activations; what the level is in are those times decoder lengths.
        self._least = positive.min() if len(positive) else None
        width = h.shape[1]
        return encoded.at(best // width, best % width)

    @torch.no_grad()
    def scale_inputs(self, factor: float) -> None:
        """The level is in units of pre-activations times lengths, which both are scaled."""
        super().scale_inputs(factor)
        if self.config.is_rescaled:
            self.level.div_(factor)
