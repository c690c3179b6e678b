"""Changing behaviour through the stream: add, ablate, set, project; and into the weights.

    h + a v                 activation addition (Turner et al. 2023, arXiv:2308.10248;
                            Rimsky et al. 2023, arXiv:2312.06681)
    h - (h v^) v^           directional ablation (Arditi et al. 2024, arXiv:2406.11717, equation 4)
    W <- (I - v^ v^T) W     the same in all matrices that write (equation 5): `without_direction`

Each is a function for `worthit.interp.hooks.intervene`. The first token of a sequence is left as it
is by `add`: many models keep an attention sink there, whose state is no text's.

`without_direction` equals ablating `written(model)` to rounding. Where the embedding is also the
output head, the head keeps its own copy: tied, the ablation would also change how the stream is
read.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from worthit.errors import InputError
from worthit.interp.directions import unit
from worthit.interp.hooks import intervene
from worthit.nn.decoder import Block, Decoder
from worthit.nn.ffn import FeedForward
from worthit.nn.tokens import Tokens

Intervention = Callable[[Tensor, Tokens], Tensor]
Measure = Callable[[Decoder], Mapping[str, float]]


def add(vector: Tensor, strength: float = 1.0, *, has_first: bool = False) -> Intervention:
    """`h + strength * vector`, at every token but the first of a sequence unless `has_first`."""

    def added(h: Tensor, tokens: Tokens) -> Tensor:
        step = (strength * vector).to(h)
        if has_first:
            return h + step
        return h + step * (tokens.positions > 0)[..., None].to(h)

    return added


def ablate(*vectors: Tensor) -> Intervention:
    """`h` without its component in the span of `vectors`, each `(d,)`."""
    basis = orthonormal(vectors)

    def ablated(h: Tensor, _: Tokens) -> Tensor:
        b = basis.to(h)
        return h - (h @ b.T) @ b

    return ablated


def set_along(vector: Tensor, value: float) -> Intervention:
    """`h` with its component along `vector` set to `value`, in the units of the stream."""
    along = unit(vector)

    def clamped(h: Tensor, _: Tokens) -> Tensor:
        v = along.to(h)
        return h + (value - h @ v)[..., None] * v

    return clamped


def mapped(function: Callable[[Tensor], Tensor], strength: float = 1.0) -> Intervention:
    """An eraser or a conceptor as an intervention; `strength` below 1 goes part of the way."""

    def moved(h: Tensor, _: Tokens) -> Tensor:
        y = function(h)
        return y if strength == 1.0 else h + strength * (y - h)

    return moved


def in_turn(*functions: Intervention) -> Intervention:
    """Several interventions at one point, one after another."""

    def all_of(h: Tensor, tokens: Tokens) -> Tensor:
        for function in functions:
            h = function(h, tokens)
        return h

    return all_of


def orthonormal(vectors: Iterable[Tensor]) -> Tensor:
    """An orthonormal basis `(rank, d)` of the span of `vectors`."""
    rows = torch.stack([unit(v.double()) for v in vectors])
    _, s, basis = torch.linalg.svd(rows, full_matrices=False)
    return basis[s > 1e-6]


def apart(vectors: Sequence[Tensor]) -> list[Tensor]:
    """The nearest vectors that are orthogonal to each other, at the lengths they had.

    Symmetric orthogonalisation (Löwdin 1950): no one of them is preferred.

    Raises:
        InputError: one of them lies in the span of the others.
    """
    rows = torch.stack([unit(v.double()) for v in vectors])
    u, s, v = torch.linalg.svd(rows, full_matrices=False)
    if float(s[-1]) < 1e-6:
        raise InputError("vectors: one lies in the span of the others; leave it out")
    found = u @ v
    return [row.to(old) * old.norm() for row, old in zip(found, vectors, strict=True)]


# --- several at once --------------------------------------------------------------------------


@dataclass(frozen=True)
class Interference:
    """What steering several behaviours at once does to each.

    Attributes:
        base: score of each behaviour with no steering.
        alone: `alone[i][j]`, score of behaviour j while i alone is steered.
        together: scores while all are.
    """

    base: Mapping[str, float]
    alone: Mapping[str, Mapping[str, float]]
    together: Mapping[str, float]

    def kept(self, name: str) -> float:
        """Which share of its effect alone a behaviour keeps beside the others."""
        effect = self.alone[name][name] - self.base[name]
        return (self.together[name] - self.base[name]) / effect if effect else float("nan")

    def spill(self, of: str, onto: str) -> float:
        """What steering `of` does to `onto`, as a share of what steering `onto` does to itself."""
        own = self.alone[onto][onto] - self.base[onto]
        return (self.alone[of][onto] - self.base[onto]) / own if own else float("nan")

    def to_json(self) -> dict[str, Any]:
        """All scores, and the shares that matter."""
        names = list(self.alone)
        return {
            "base": dict(self.base),
            "alone": {name: dict(scores) for name, scores in self.alone.items()},
            "together": dict(self.together),
            "kept": {name: self.kept(name) for name in names},
            "spill": {a: {b: self.spill(a, b) for b in names if b != a} for a in names},
        }


def interference(
    model: Decoder, steered: Mapping[str, Mapping[str, Intervention]], measure: Measure
) -> Interference:
    """Measure each behaviour alone and all together.

    Args:
        steered: for each behaviour, its interventions by point.
        measure: scores of the model by behaviour, the same keys.
    """
    base = dict(measure(model))
    if set(base) < set(steered):
        raise InputError(f"measure: must score {', '.join(steered)}, got {', '.join(base)}")
    alone = {}
    for name, functions in steered.items():
        with intervene(model, functions):
            alone[name] = dict(measure(model))
    with steering(model, steered.values()):
        together = dict(measure(model))
    return Interference(base=base, alone=alone, together=together)


def steering(
    model: Decoder, several: Iterable[Mapping[str, Intervention]]
) -> AbstractContextManager[None]:
    """Within it, all interventions act; those at one point in the order given."""
    merged: dict[str, Intervention] = {}
    for functions in several:
        for point, function in functions.items():
            merged[point] = in_turn(merged[point], function) if point in merged else function
    return intervene(model, merged)


# --- into the weights -------------------------------------------------------------------------


def written(model: Decoder) -> list[str]:
    """The points at which something is written to the stream."""
    names = ["embed"]
    for i, block in enumerate(model.layers):
        names += [f"layers.{i}.mixer_out"] if len(block.mixers) else []
        names += [f"layers.{i}.ffn_out"] if block.ffn is not None else []
    return names


def without_direction(model: Decoder, *vectors: Tensor) -> Decoder:
    """A copy of `model` that cannot write along `vectors`, each `(d_model,)`.

    Raises:
        InputError: a part whose output is not a matrix's: a norm after it, packed weights.
    """
    problems = list(_not_baked(model))
    if problems:
        raise InputError(*problems, context="baking a direction into the weights")
    made = copy.deepcopy(model)
    basis = orthonormal(vectors)

    def clear(weight: Tensor, axis: int) -> None:
        """Take the span out of the axis of `weight` along which it writes."""
        w = weight.data.double().movedim(axis, -1)
        w = w - (w @ basis.T) @ basis
        weight.data.copy_(w.movedim(-1, axis))

    if made.spec.has_tied_embeddings:
        table = made.embedding.weight
        head = nn.Linear(table.shape[1], table.shape[0], bias=made.spec.has_head_bias)
        head.to(table).weight.data.copy_(table)
        made.head, made.spec = head, replace(made.spec, has_tied_embeddings=False)
        if made.source_config is not None:
            made.source_config = {**made.source_config, "tie_word_embeddings": False}
    if made.embedding_in is not None:
        clear(made.embedding_in.weight, 0)
    else:
        clear(made.embedding.weight, 1)
    if made.positions is not None:
        for table in made.positions.parameters():
            clear(table, 1)
    for block in made.layers:
        for part in [*(m.o_proj for m in block.mixers), *([block.ffn.down] if block.ffn else [])]:
            clear(part.weight, 0)
            if part.bias is not None:
                clear(part.bias, 0)
    return made


def _not_baked(model: Decoder) -> Iterable[str]:
    spec = model.spec
    if model.embedding_norm is not None:
        yield "the embedding is followed by a norm, which writes the direction again"
    if spec.position.kind == "sinusoidal":
        yield "sinusoidal positions are no weights; ablate while it runs instead"
    if not isinstance(model.embedding, nn.Embedding):
        yield "the embedding is packed; load the model with packed=False"
    for i, block in enumerate(model.layers):
        if type(block) is not Block or block.spec.placement not in ("pre",):
            yield f"layer {i}: a norm follows its matrices; ablate while it runs instead"
        for mixer in block.mixers:
            if not isinstance(getattr(mixer, "o_proj", None), nn.Linear):
                yield f"layer {i}: {type(mixer).__name__} has no plain output matrix"
        plain = type(block.ffn) is FeedForward and isinstance(block.ffn.down, nn.Linear)
        if block.ffn is not None and not plain:
            yield f"layer {i}: {type(block.ffn).__name__} has no plain output matrix"
