"""Weights to start training from."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from worthit.nn import Decoder, build
from worthit.spec.model import ModelSpec

EMBEDDING_STD = 0.02


@dataclass(frozen=True)
class Seeded:
    """Builds the model of `spec` with the weights of a seed: `seeded(spec)(seed)`.

    A value, not a closure, so that a process of its own can be told to build the model too.
    """

    spec: ModelSpec

    def __call__(self, seed: int) -> Decoder:
        """The model; the caller's random numbers are left as they are."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = build(self.spec)
            initialise(model)
        return model


def seeded(spec: ModelSpec) -> Seeded:
    """A function from a seed to the model of `spec`, initialised for training."""
    return Seeded(spec)


def initialise(model: nn.Module) -> None:
    """Give a fresh `model` weights to train from, in place.

    What each module starts from is kept, but for tables of embeddings: normal with `EMBEDDING_STD`
    (GPT-2's, Radford et al. 2019) where torch's has 1, so that a head tied to it starts undecided.
    """
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=EMBEDDING_STD)
