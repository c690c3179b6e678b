"""How good an autoencoder is: what it explains, with how many latents, and what the model loses.

| metric | what |
|---|---|
| `explained_variance` | 1 - error / variance, sums over all rows (not a mean of ratios) |
| `l0` | latents on, a row |
| `sinks` | share of rows of many times the median length, which none of the others counts |
| `dead` | share of latents never on |
| `shrinkage` | 1 - E|y|^2 / E[x.y]: what a penalty takes off reconstructions (arXiv:2404.16014) |
| `loss` | cross-entropy of the model as it is, in nats a token |
| `loss_sae` | with the reconstruction in place of its activations |
| `loss_ablated` | with the decoder's bias, nearly their mean, in place of them |
| `recovered` | (ablated - sae) / (ablated - model): 1 when nothing is lost |
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from worthit.interp.hooks import intervene
from worthit.interp.sae.base import SparseAutoencoder
from worthit.interp.stream import usual
from worthit.nn.decoder import Decoder


@dataclass(frozen=True)
class Fit:
    """What an autoencoder makes of rows that it may not have seen."""

    n_rows: int
    explained_variance: float
    l0: float
    dead: float
    shrinkage: float
    sinks: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)


@torch.no_grad()
def fit_of(sae: SparseAutoencoder, chunks: Iterable[Tensor]) -> Fit:
    """Of rows `(n, d_in)`, summed in double precision over all chunks."""
    d = sae.config.d_in
    n, error, squares, on = 0, 0.0, 0.0, 0.0
    total = torch.zeros(d, dtype=torch.float64)
    inner = own = 0.0
    ever = torch.zeros(sae.config.width, dtype=torch.bool)
    n_all = 0
    for chunk in chunks:
        x = chunk[usual(chunk)]
        n_all += len(chunk)
        latents = sae.encode(x)
        y = sae(x)
        active = latents > 0
        ever |= active.any(0)
        on += float(active.sum())
        x_, y_ = x.double(), y.double()
        error += float((x_ - y_).square().sum())
        squares += float(x_.square().sum())
        total += x_.sum(0)
        shift = sae.b_dec.double()
        inner += float(((x_ - shift) * (y_ - shift)).sum())
        own += float((y_ - shift).square().sum())
        n += len(x)
    variance = squares - float(total.square().sum()) / max(n, 1)
    return Fit(
        n_rows=n,
        explained_variance=1 - error / variance,
        l0=on / max(n, 1),
        dead=1 - float(ever.double().mean()),
        shrinkage=1 - own / inner if inner > 0 else float("nan"),
        sinks=1 - n / max(n_all, 1),
    )


@dataclass(frozen=True)
class Recovered:
    """Cross-entropies in nats a token, with and without the autoencoder in the stream."""

    loss: float
    loss_sae: float
    loss_ablated: float

    @property
    def recovered(self) -> float:
        """Share of the loss that ablation costs and the reconstruction does not."""
        gap = self.loss_ablated - self.loss
        return (self.loss_ablated - self.loss_sae) / gap if gap else float("nan")

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return {**asdict(self), "recovered": self.recovered, "delta": self.loss_sae - self.loss}


@torch.no_grad()
def loss_recovered(
    model: Decoder,
    sae: SparseAutoencoder,
    at: str,
    ids: Tensor,
    *,
    skip: int = 1,
    batch: int = 8,
) -> Recovered:
    """What the model loses when it sees the reconstruction at a point.

    Args:
        ids: `(n, length)`, text; the first `skip` tokens are left as they are.
    """

    def kept(x: Tensor, new: Tensor, positions: Tensor) -> Tensor:
        return torch.where((positions < skip)[..., None], x, new.to(x.dtype))

    mean = sae.b_dec
    ways = {
        "loss": None,
        "loss_sae": lambda x, tokens: kept(x, sae(x.float()), tokens.positions),
        "loss_ablated": lambda x, tokens: kept(x, mean.expand_as(x), tokens.positions),
    }
    found = {}
    for name, way in ways.items():
        total = 0.0
        for some in ids.split(batch):
            with intervene(model, {} if way is None else {at: way}):
                logits = model(some)[:, skip:-1].float()
            targets = some[:, skip + 1 :]
            total += float(
                functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum")
            )
        found[name] = total / (len(ids) * (ids.shape[1] - skip - 1))
    return Recovered(**found)
