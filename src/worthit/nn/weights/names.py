"""Our parameters beside the tensors of published checkpoints: names, and layouts where they differ.

A family's file lists `Entry`s, each of which ties one or several of our names to one or several of
theirs; `*` stands for the layer's number. A name may be a parameter's or a module's, whose `weight`
and `bias` are then meant. Where one parameter has several entries, the first of which the file has
a tensor is taken, and the first of all when writing: so checkpoints of different ages are read.

    Entry("layers.*.mixers.0.o_proj", "model.layers.*.self_attn.o_proj")
    Entry("layers.*.ffn.up", ("...gate_proj", "...up_proj"), STACKED)

Entries that fit nothing in a model are skipped, so that one list serves dense and sparse layers. A
`Layout` converts both ways; the shapes that a file must have are our own shapes, converted.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from worthit.errors import unknown_name
from worthit.spec.hf._read import FAMILIES, known_model_types
from worthit.spec.model import ModelSpec

Convert = Callable[[Sequence[Tensor]], list[Tensor]]


@dataclass(frozen=True)
class Layout:
    """The same numbers in the order of a checkpoint and in ours."""

    to_ours: Convert
    to_theirs: Convert

    def then(self, after: Layout) -> Layout:
        """From theirs through this layout and then through `after` to ours."""
        return Layout(
            lambda theirs: after.to_ours(self.to_ours(theirs)),
            lambda ours: self.to_theirs(after.to_theirs(ours)),
        )


def each(to_ours: Callable[[Tensor], Tensor], to_theirs: Callable[[Tensor], Tensor]) -> Layout:
    """A layout that treats every tensor by itself."""
    return Layout(lambda ts: [to_ours(t) for t in ts], lambda ts: [to_theirs(t) for t in ts])


def _transpose(tensor: Tensor) -> Tensor:
    """Matrices with their last two dimensions swapped; vectors as they are."""
    return tensor if tensor.dim() < 2 else tensor.transpose(-1, -2)


SAME = each(lambda t: t, lambda t: t)
# GPT-2's Conv1D stores (in, out); gpt-oss and Llama 4 store (experts, in, out).
TRANSPOSED = each(_transpose, _transpose)


def stacked(n: int) -> Layout:
    """`n` of theirs, of equal shape, are ours one below another."""
    return Layout(lambda ts: [torch.cat(list(ts))], lambda ts: list(ts[0].chunk(n)))


# Gate and value projections, one matrix here.
STACKED = stacked(2)


def _deinterleave(tensor: Tensor) -> Tensor:
    """`(experts, inner, ...)` whose inner rows alternate, as the even ones above the odd ones."""
    return tensor.unflatten(1, (-1, 2)).transpose(1, 2).flatten(1, 2)


def _interleave(tensor: Tensor) -> Tensor:
    return tensor.unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2)


# Gate and value of gpt-oss's experts.
DEINTERLEAVED = each(_deinterleave, _interleave)
# One vector a head becomes the rows of one tensor.
BY_HEAD = Layout(lambda ts: [torch.stack(list(ts))], lambda ts: list(ts[0].unbind()))


def split(*rows: int) -> Layout:
    """One of theirs is ours one below another, of these numbers of rows."""
    return Layout(lambda ts: list(ts[0].split(rows)), lambda ts: [torch.cat(list(ts))])


def heads_of_parts(n_heads: int, n_parts: int, width: int) -> Layout:
    """One of theirs goes by heads, and in each head through the parts: query, key, value.

    Ours are the parts, each of `n_heads * width` rows.
    """

    def to_ours(theirs: Sequence[Tensor]) -> list[Tensor]:
        grouped = theirs[0].unflatten(0, (n_heads, n_parts, width))
        return [grouped[:, part].flatten(0, 1) for part in range(n_parts)]

    def to_theirs(ours: Sequence[Tensor]) -> list[Tensor]:
        parts = [part.unflatten(0, (n_heads, width)) for part in ours]
        return [torch.stack(parts, dim=1).flatten(0, 2)]

    return Layout(to_ours, to_theirs)


def piled(n_piles: int, each_of: int) -> Layout:
    """One matrix an expert and a projection becomes one tensor `(experts, rows, width)`.

    Theirs come expert by expert, `each_of` projections in a row, whose rows ours has one below
    another.
    """

    def to_ours(theirs: Sequence[Tensor]) -> list[Tensor]:
        shape = theirs[0].shape
        pile = torch.stack(list(theirs)).view(n_piles, each_of, *shape)
        return [pile.flatten(1, 2)]

    def to_theirs(ours: Sequence[Tensor]) -> list[Tensor]:
        return [part for expert in ours[0] for part in expert.chunk(each_of)]

    return Layout(to_ours, to_theirs)


@dataclass(frozen=True)
class Entry:
    """Some of our names, the names of the same numbers in a checkpoint, and their layout."""

    ours: str | tuple[str, ...]
    theirs: str | tuple[str, ...]
    layout: Layout = SAME


@dataclass(frozen=True)
class Rule:
    """An `Entry` for tensors that are there: full names on both sides."""

    ours: tuple[str, ...]
    theirs: tuple[str, ...]
    layout: Layout = SAME

    @classmethod
    def same(cls, name: str) -> Rule:
        """One tensor under our own name."""
        return cls((name,), (name,))


@dataclass(frozen=True)
class Names:
    """A model type's entries, and what of its files is no parameter of ours.

    Attributes:
        entries: in order of preference where several fit.
        base: the prefix that files of the headless model leave out.
        ignored: regular expressions of further tensors that are not read.
    """

    entries: Sequence[Entry]
    base: str = "model."
    ignored: tuple[str, ...] = ()


# Masks and tables that some writers stored, and what follows from the config in any case.
BUFFERS = re.compile(
    r"(rotary_emb\.\w*inv_freq|\.masked_bias|embed_tokens\.embed_scale)$"
    r"|\.attn\.bias$|\.attention\.bias$"
)


def names_of(spec: ModelSpec) -> Names:
    """What checkpoints of `spec`'s model type call its parameters."""
    for family, types in FAMILIES.items():
        if spec.model_type in types:
            module = importlib.import_module(f"worthit.nn.weights.{family}")
            names: Names = module.NAMES[spec.model_type](spec)
            return names
    raise unknown_name("model type", spec.model_type, known_model_types())


def bind(
    names: Names, ours: Collection[str], n_layers: int, theirs: Collection[str] | None = None
) -> list[Rule]:
    """The rules for a model's parameters `ours`; each of them is in exactly one.

    Args:
        theirs: the tensors of a file, which decide between alternatives; None for writing.
    """
    chosen = choose(names.entries, ours, n_layers, theirs)
    forgotten = sorted(set(ours) - set(chosen))
    assert not forgotten, f"no checkpoint names for {forgotten}"
    return list(dict.fromkeys(chosen.values()))


def choose(
    entries: Iterable[Entry],
    ours: Collection[str],
    n_layers: int,
    theirs: Collection[str] | None = None,
) -> dict[str, Rule]:
    """The rule for each of `ours` that any of `entries` is about."""
    chosen: dict[str, Rule] = {}
    for entry in entries:
        for rule in _instances(entry, ours, n_layers):
            taken = chosen.get(rule.ours[0])
            if taken is None or (theirs is not None and is_better(rule, taken, theirs)):
                chosen.update(dict.fromkeys(rule.ours, rule))
    return chosen


def _instances(entry: Entry, ours: Collection[str], n_layers: int) -> Iterable[Rule]:
    mine, other = _as_tuple(entry.ours), _as_tuple(entry.theirs)
    has_layers = any("*" in name for name in mine)
    for number in range(n_layers) if has_layers else (0,):
        for leaf in ("", ".weight", ".bias"):
            here = tuple(name.replace("*", str(number)) + leaf for name in mine)
            there = tuple(name.replace("*", str(number)) + leaf for name in other)
            if all(name in ours for name in here):
                yield Rule(here, there, entry.layout)


def _as_tuple(names: str | tuple[str, ...]) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else names


def is_better(rule: Rule, taken: Rule, theirs: Collection[str]) -> bool:
    """Whether a file of the tensors `theirs` holds `rule`'s and none of `taken`'s."""

    def is_there(candidate: Rule) -> bool:
        return any(name in theirs for name in candidate.theirs)

    return is_there(rule) and not is_there(taken)


def shapes(rules: Iterable[Rule], ours: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """What shape each tensor of a checkpoint must have for the parameters `ours`."""
    found: dict[str, tuple[int, ...]] = {}
    for rule in rules:
        on_meta = [ours[name].to("meta") for name in rule.ours]
        converted = rule.layout.to_theirs(on_meta)
        found.update(zip(rule.theirs, (tuple(t.shape) for t in converted), strict=True))
    return found
