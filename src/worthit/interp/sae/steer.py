"""Steering by a latent: its direction is added to the stream while the model writes.

    x <- x + strength v        v: the latent's decoder row, of length 1

`strength` is in units of the mean length of the stream at that point, so that 0.5 means the same at
every layer; the first token is left alone (see `worthit.interp.stream`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from worthit.errors import InputError
from worthit.interp.hooks import activations, intervene
from worthit.interp.sae.base import SparseAutoencoder
from worthit.nn.decoder import Decoder


@contextmanager
def adding(
    model: Decoder, at: str, direction: Tensor, amount: float, *, skip: int = 1
) -> Iterator[None]:
    """Within it, `amount` times `direction` `(d,)` is added at `at`."""
    step = (amount * direction).to(model.dtype)

    def add(x: Tensor, tokens: Any) -> Tensor:
        return x + step * (tokens.positions >= skip)[..., None]

    with intervene(model, {at: add}):
        yield


@contextmanager
def steered(
    model: Decoder,
    sae: SparseAutoencoder,
    feature: int,
    at: str,
    strength: float,
    *,
    length: float,
) -> Iterator[None]:
    """Within it, latent `feature` is pushed by `strength` times `length`.

    Args:
        length: of the stream, as `mean_length` measures it.

    Raises:
        InputError: there is no such latent.
    """
    if not 0 <= feature < sae.config.width:
        raise InputError(f"feature: must be between 0 and {sae.config.width - 1}, got {feature}")
    with adding(model, at, sae.directions()[feature], strength * length):
        yield


@torch.no_grad()
def mean_length(model: Decoder, ids: Tensor, at: str, *, skip: int = 1) -> float:
    """The mean length of what stands at a point, over text `(n, length)`."""
    return float(activations(model, ids, at)[at][:, skip:].float().norm(dim=-1).mean())
