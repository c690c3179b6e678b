"""Where latents are on: for each its strongest places in a text, with what stands around them.

One pass over the text keeps, for each latent asked for, the few rows with the largest values and
how often it is on; memory does not grow with the text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from worthit.interp.sae.base import SparseAutoencoder
from worthit.interp.stream import Source

# Bins of the histogram of values where a latent is on.
N_BINS = 20


@dataclass(frozen=True)
class Example:
    """One place: its value, the tokens around it, and the latent's value at each of them."""

    value: float
    sequence: int
    position: int
    tokens: list[str]
    values: list[float]
    at: int


@dataclass(frozen=True)
class FeatureRecord:
    """What is known of one latent."""

    feature: int
    n_rows: int
    n_on: int
    density: float
    mean_on: float
    largest: float
    histogram: list[int]
    examples: list[Example]
    promoted: list[tuple[str, float]]
    suppressed: list[tuple[str, float]]
    alike: list[tuple[int, float]]

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)


@dataclass
class Usage:
    """How often every latent is on, `(width,)`, and how strongly."""

    n_rows: int
    n_on: Tensor
    total: Tensor
    largest: Tensor


@torch.no_grad()
def usage_of(sae: SparseAutoencoder, source: Source) -> Usage:
    """Of all latents, over all rows of `source`."""
    (name,) = source.names
    width = sae.config.width
    usage = Usage(0, torch.zeros(width), torch.zeros(width), torch.zeros(width))
    for chunk in source.chunks():
        latents = sae.encode(chunk[name])
        usage.n_rows += len(latents)
        usage.n_on += (latents > 0).sum(0)
        usage.total += latents.sum(0)
        usage.largest = torch.maximum(usage.largest, latents.amax(0))
    return usage


@torch.no_grad()
def features_of(
    sae: SparseAutoencoder,
    source: Source,
    features: Sequence[int],
    decode: Any,
    *,
    n_examples: int = 12,
    around: int = 12,
    n_tokens: int = 8,
) -> list[FeatureRecord]:
    """A record of each of `features`.

    Args:
        source: the model, its text, and the one point that `sae` reads.
        decode: from a list of ids to text.
        around: tokens shown on both sides of a place.
        n_tokens: how many of the tokens that a latent promotes and suppresses are listed.
    """
    (name,) = source.names
    which = torch.tensor(list(features))
    values = torch.cat([sae.encode(chunk[name])[:, which] for chunk in source.chunks()])
    return [
        _record(sae, source, feature, values[:, i], decode, n_examples, around, n_tokens)
        for i, feature in enumerate(features)
    ]


def _record(
    sae: SparseAutoencoder,
    source: Source,
    feature: int,
    values: Tensor,
    decode: Any,
    n_examples: int,
    around: int,
    n_tokens: int,
) -> FeatureRecord:
    on = values[values > 0]
    largest = float(on.max()) if len(on) else 0.0
    bins = torch.histc(on, N_BINS, 0.0, largest) if len(on) else torch.zeros(N_BINS)
    promoted, suppressed = tokens_of_direction(source.model, sae.directions()[feature], n_tokens)
    cosines = sae.directions() @ sae.directions()[feature]
    cosines[feature] = -1.0
    alike = cosines.topk(min(5, len(cosines) - 1))
    by_sequence = values.view(len(source.ids), source.rows_each)
    return FeatureRecord(
        feature=feature,
        n_rows=len(values),
        n_on=len(on),
        density=len(on) / len(values),
        mean_on=float(on.mean()) if len(on) else 0.0,
        largest=largest,
        histogram=[int(n) for n in bins],
        examples=_examples(source, by_sequence, decode, n_examples, around),
        promoted=[(decode([i]), v) for i, v in promoted],
        suppressed=[(decode([i]), v) for i, v in suppressed],
        alike=list(zip(alike.indices.tolist(), alike.values.tolist(), strict=True)),
    )


def _examples(
    source: Source, values: Tensor, decode: Any, n_examples: int, around: int
) -> list[Example]:
    """The strongest places, one a sequence, so that they are not one passage many times."""
    best, positions = values.max(dim=1)
    found = []
    for sequence in best.argsort(descending=True)[:n_examples].tolist():
        value = float(best[sequence])
        if value <= 0:
            break
        position = int(positions[sequence]) + source.skip
        first = max(0, position - around)
        last = min(source.ids.shape[1], position + around + 1)
        row = [0.0] * source.skip + values[sequence].tolist()
        found.append(
            Example(
                value,
                sequence,
                position,
                [decode([i]) for i in source.ids[sequence, first:last].tolist()],
                row[first:last],
                position - first,
            )
        )
    return found


@torch.no_grad()
def tokens_of_direction(
    model: Any, direction: Tensor, n: int
) -> tuple[list[tuple[int, float]], list[tuple[int, float]]]:
    """The tokens whose logits a direction of the stream raises and lowers most (logit lens).

    The final norm is taken as its weight alone; what the layers between make of it is left out.
    """
    direction = direction.to(model.dtype)
    gain = getattr(model.final_norm, "weight", None)
    if gain is not None:
        direction = direction * gain
    if model.embedding_out is not None:
        direction = model.embedding_out(direction)
    head = model.head if model.head is not None else model.embedding
    logits = (head.weight @ direction).float()
    up, down = logits.topk(n), logits.topk(n, largest=False)
    return (
        list(zip(up.indices.tolist(), up.values.tolist(), strict=True)),
        list(zip(down.indices.tolist(), down.values.tolist(), strict=True)),
    )
