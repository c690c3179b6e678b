"""A text as one vector: the mean of a decoder's last hidden states, scaled to length 1.

A model that was trained to continue texts was not trained for this: its vectors tell topics apart
and little more. They are what such a model allows.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from worthit.errors import InputError

if TYPE_CHECKING:
    from worthit.nn.decoder import Decoder
    from worthit.spec.model import ModelSpec


def check(ids: Sequence[Sequence[int]], spec: ModelSpec) -> None:
    """Raise an `InputError` that names every text that cannot be read."""
    problems = []
    for i, row in enumerate(ids):
        if not row:
            problems.append(f"input: text {i} must have at least one token")
        elif len(row) > spec.context_len:
            problems.append(
                f"input: this model's maximum context length is {spec.context_len} tokens, and "
                f"text {i} has {len(row)}"
            )
        elif not all(0 <= token < spec.vocab_size for token in row):
            problems.append(f"input: ids must be whole numbers from 0 to {spec.vocab_size - 1}")
    if problems:
        raise InputError(*problems)


def embed(model: Decoder, ids: Sequence[int]) -> Tensor:
    """The vector `(d_model,)` of one text, fp32."""
    with torch.inference_mode():
        states = model.hidden_states(torch.tensor([ids], device=model.embedding.weight.device))
    return functional.normalize(states[0].float().mean(dim=0), dim=0).cpu()


def encoded(vector: Tensor, form: str) -> list[float] | str:
    """The vector as numbers, or as base64 of little-endian fp32."""
    if form == "base64":
        return base64.b64encode(vector.numpy().astype("<f4").tobytes()).decode("ascii")
    numbers: list[float] = vector.tolist()
    return numbers
