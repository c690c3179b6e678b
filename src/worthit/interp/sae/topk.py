"""TopK: the k largest latents of each input and no others.

Gao et al. 2024, "Scaling and evaluating sparse autoencoders", arXiv:2406.04093, section 2.3 and
appendix A.2:

    f = TopK(W (x - b_dec) + b_enc)        L = |x - y|^2 + alpha |e - e^|^2

| paper | here |
|---|---|
| k | `k` |
| e = x - y, e^ | the error, and what the best `k_aux` dead latents make of it |
| alpha | `aux` |
| k_aux = d/2 | as there; fewer dead latents weigh less |

The number of latents is chosen, not tuned by a penalty, and none is shrunk. They are chosen by
pre-activations times decoder lengths (`is_rescaled`), so that a row cannot win by its scale;
folding the lengths (`fold_norms`) gives the same latents with unit rows.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from worthit.errors import InputError
from worthit.interp.sae.base import Objective, SaeConfig, SparseAutoencoder
from worthit.interp.sae.entries import Encoded, Few


@dataclass(frozen=True, kw_only=True)
class TopKConfig(SaeConfig):
    """`k` latents an input; `aux` weighs the loss by which dead latents come back."""

    k: int = 32
    aux: float = 1.0
    is_rescaled: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.k <= self.width:
            raise InputError(
                f"k: must be between 1 and width, got k={self.k} and width={self.width}"
            )


class TopKSae(SparseAutoencoder):
    """As many latents as asked for."""

    kind = "topk"
    config_class: ClassVar[type[SaeConfig]] = TopKConfig
    config: TopKConfig

    def activate(self, h: Tensor) -> Tensor:
        """The k largest of each row, where above 0; in units of pre-activations times lengths."""
        h = h * self.norms if self.config.is_rescaled else h
        top = h.topk(self.config.k, dim=-1, sorted=False)
        return torch.zeros_like(h).scatter(-1, top.indices, top.values.relu())

    def decode(self, latents: Tensor) -> Tensor:
        """`(..., d_in)`; rescaled latents go with unit rows."""
        rows = self.decoder / self.norms[:, None] if self.config.is_rescaled else self.decoder
        return latents @ rows + self.b_dec

    def objective(self, x: Tensor, *, dead: Tensor | None = None, warm: float = 1.0) -> Objective:
        """Squared error, and what dead latents make of it."""
        encoded = self.encoded(x)
        e = self.chosen(encoded)
        f = e.h.relu()
        y = e.decode(f, self.decoder)
        parts = {}
        if dead is not None and self.config.aux:
            n_dead = int(dead.sum())
            if n_dead:
                error = (x - y - self.b_dec).detach()
                parts["aux"] = self.aux_loss(encoded, error, dead, n_dead)
        return self.made(x, e, f, parts, decoded=y)

    def chosen(self, encoded: Encoded) -> Few:
        """The entries that are on."""
        h = encoded.h * self.norms.detach() if self.config.is_rescaled else encoded.h
        return _at(encoded, h.topk(self.config.k, dim=-1, sorted=False).indices)

    def aux_loss(self, encoded: Encoded, error: Tensor, dead: Tensor, n_dead: int) -> Tensor:
        """How badly the best dead latents explain `error`, less where few are dead."""
        k_aux = self.config.d_in // 2
        share, k_aux = min(n_dead / max(k_aux, 1), 1.0), min(k_aux, n_dead)
        which = dead.nonzero()[:, 0]
        h = encoded.h[:, which]
        if self.config.is_rescaled:
            h = h * self.norms.detach()[which]
        best = which[h.topk(k_aux, dim=-1, sorted=False).indices]
        e = _at(encoded, best)
        explained = e.decode(e.h, self.decoder)
        return self.config.aux * share * (explained - error).square().sum() / len(error)

    @torch.no_grad()
    def whiten_inputs(self, mean: Tensor, there: Tensor, back: Tensor) -> None:
        """Lengths are folded first: rows are longer afterwards, and would win by that."""
        if self.config.is_rescaled:
            self.fold_norms()
            self.config = replace(self.config, is_rescaled=False)
        super().whiten_inputs(mean, there, back)

    @torch.no_grad()
    def scale_latents(self, by: Tensor) -> None:
        """Biases follow."""
        self.b_enc.mul_(by)


def _at(encoded: Encoded, indices: Tensor) -> Few:
    """The entries at `indices` `(batch, k)`."""
    rows = torch.arange(len(indices)).repeat_interleave(indices.shape[1])
    return encoded.at(rows, indices.flatten())
