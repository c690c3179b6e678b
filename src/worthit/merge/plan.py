"""What a recipe means for its checkpoints: every output tensor with its inputs and parameters.

Planning reads headers, configs and vocabularies, and finds everything that is wrong before any
weight is read: models that are not there, layers that do not exist, shapes and vocabularies that do
not fit, parameters that are missing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from worthit.errors import InputError, problem
from worthit.merge._groups import grouped
from worthit.merge.della import check as check_probabilities
from worthit.merge.files import TORCH
from worthit.merge.members import (
    FLOATS,
    Member,
    check_alike,
    check_mergeable,
    is_before,
    is_head,
    is_vocabulary,
    messages,
    open_member,
    split_name,
)
from worthit.merge.read_recipe import parse, read_text
from worthit.merge.recipe import Recipe, Slice, Source
from worthit.merge.settings import REQUIRED, resolve
from worthit.merge.vocabulary import Tokens, plan_tokens
from worthit.spec.checkpoint import Tensor

# Masks and tables that some writers stored and every loader makes anew.
BUFFERS = ("rotary_emb.inv_freq", ".masked_bias", ".attn.bias", ".attention.bias")


@dataclass(frozen=True, kw_only=True)
class Job:
    """One tensor of the output.

    Attributes:
        name: in the output.
        shape: of the output.
        dtype: of the arithmetic's result, and `out_dtype` of what is written, as safetensors has
            them.
        inputs: which tensor of which model, by the models' names, in the order of the recipe.
        base: which of them the method starts from.
        arguments: of the method's function.
        is_vocabulary: whether its rows are laid out anew in the output's vocabulary.
        is_copied: whether its bytes are taken as they are, after a check that all inputs agree.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    out_dtype: str
    inputs: tuple[tuple[str, Tensor], ...]
    base: str | None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    is_vocabulary: bool = False
    is_copied: bool = False


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A recipe with its checkpoints, ready to run."""

    recipe: Recipe
    members: Mapping[str, Member]
    jobs: tuple[Job, ...] = field(repr=False)
    tokens: Tokens | None = None
    n_layers: int | None = None
    warnings: tuple[str, ...] = ()

    @property
    def donor(self) -> Member:
        """Whose config, and tokenizer unless the recipe says otherwise, the output has."""
        return self.members[self.recipe.base_model or self.recipe.models[0]]


def plan_merge(path: str | Path) -> Plan:
    """Read a recipe file and the headers of its checkpoints.

    Raises:
        InputError: every problem of the recipe and of the checkpoints with it, at once.
        MissingCapability: no YAML reader is installed.
    """
    path = Path(path)
    return plan_text(read_text(path), folder=path.parent, name=path.name)


def plan_text(text: str, *, folder: Path = Path(), name: str = "recipe") -> Plan:
    """As `plan_merge`, from the text of a recipe; models' paths are seen from `folder`."""
    recipe, problems = parse(text, folder=folder, name=name)
    if recipe is None:
        raise InputError(*problems, context=name)
    members: dict[str, Member] = {}
    for model in recipe.models:
        try:
            members[model] = open_member(model, folder)
        except InputError as error:
            problems += [f"{_where(recipe, model)}: {m}" for m in messages(error)]
    planner = _Planner(recipe, members)
    if len(members) == len(recipe.models):
        planner.run()
        problems += planner.problems
    if problems:
        raise InputError(*dict.fromkeys(problems), context=name)
    return Plan(
        recipe=recipe,
        members=members,
        jobs=tuple(planner.jobs),
        tokens=planner.tokens,
        n_layers=planner.n_layers,
        warnings=tuple(dict.fromkeys([*recipe.warnings, *planner.warnings])),
    )


def _where(recipe: Recipe, model: str) -> str:
    """The first place in a recipe that names a model."""
    if model == recipe.base_model:
        return "base_model"
    for piece in recipe.slices:
        if model == piece.base_model:
            return problem((*piece.path, "base_model"), "").rstrip(": ")
        for source in piece.sources:
            if source.model == model:
                return problem((*source.path, "model"), "").rstrip(": ")
    return model


class _Planner:
    """Lists the jobs, and keeps what is wrong instead of stopping at it."""

    def __init__(self, recipe: Recipe, members: Mapping[str, Member]) -> None:
        self.recipe = recipe
        self.members = members
        self.jobs: list[Job] = []
        self.problems: list[str] = []
        self.warnings: list[str] = []
        self.tokens: Tokens | None = None
        self.n_layers: int | None = None
        self.missing: list[tuple[str, str]] = []
        self.misfits: list[tuple[str, str]] = []
        self.absent: dict[str, str] = {}

    def run(self) -> None:
        is_copy = self.recipe.method.id == "passthrough"
        for member in [] if is_copy else self.members.values():
            self.problems += check_mergeable(member)
        problems, warnings = check_alike(self.members.values())
        self.problems += problems
        self.warnings += warnings
        if problems:
            # Everything else that does not fit would follow from it.
            return
        self.tokens, problems, warnings = plan_tokens(self.recipe, self.members)
        self.problems += problems
        self.warnings += warnings
        self._check_ranges()
        if self.problems:
            return
        for place in self._places():
            self._plan_tensor(place)
        self.problems += grouped(self.missing)
        self.problems += grouped(self.misfits)
        self.problems += [problem((name,), message) for name, message in self.absent.items()]

    # Tensors

    def _check_ranges(self) -> None:
        for source in (s for piece in self.recipe.slices for s in piece.sources):
            member = self.members[source.model]
            if source.layers is not None and source.layers[1] > member.n_layers:
                self.problems.append(
                    problem(
                        (*source.path, "layer_range"),
                        f"ends at {source.layers[1]}, and {source.model} has {member.n_layers} "
                        f"layers; end at {member.n_layers} at most",
                    )
                )

    def _places(self) -> Iterator[_Place]:
        """Every output tensor: its name, where its parts are, and how deep it lies."""
        slices = self.recipe.slices
        first, last = slices[0], slices[-1]
        outside = [n for n in self._names(first) if not self._is_layer(n, first)]
        outside += [n for n in self._names(last) if not self._is_layer(n, last)]
        for name in dict.fromkeys(outside):
            if is_before(name) or split_name(name) is not None:
                yield self._outside(name, first)
        if self.recipe.is_whole:
            yield from self._whole_layers(first)
        else:
            yield from self._sliced_layers()
        for name in dict.fromkeys(outside):
            if not (is_before(name) or split_name(name) is not None):
                yield self._outside(name, last)

    def _names(self, piece: Slice) -> list[str]:
        """The tensors of a slice's models, in the order of the first that has them."""
        return list(dict.fromkeys(n for s in piece.sources for n in self.members[s.model].tensors))

    def _is_layer(self, name: str, piece: Slice) -> bool:
        parts = split_name(name)
        return parts is not None and parts[0] == self.members[piece.sources[0].model].stack

    def _outside(self, name: str, piece: Slice) -> _Place:
        """A tensor outside the layers, or in a stack that is not the language model's."""
        return _Place(name, {s.model: name for s in piece.sources}, piece, 0.0)

    def _whole_layers(self, piece: Slice) -> Iterator[_Place]:
        depths = {s.model: self.members[s.model].n_layers for s in piece.sources}
        if len(set(depths.values())) > 1:
            shown = ", ".join(f"{n} in {model}" for model, n in depths.items())
            self.problems.append(f"models: have different numbers of layers: {shown}; use slices")
            return
        n = next(iter(depths.values()))
        for name in sorted(self._names(piece), key=lambda x: (split_name(x) or ("", 0, ""))[1]):
            if self._is_layer(name, piece):
                parts = split_name(name)
                assert parts is not None
                depth = parts[1] / (n - 1) if n > 1 else 1.0
                yield _Place(name, {s.model: name for s in piece.sources}, piece, depth)

    def _sliced_layers(self) -> Iterator[_Place]:
        n_out = 0
        for piece in self.recipe.slices:
            ranges = {s.model: s.layers for s in piece.sources}
            start, stop = ranges[piece.sources[0].model] or (0, 0)
            stack = self.members[piece.sources[0].model].stack
            for offset in range(stop - start):
                prefixes = {
                    model: f"{self.members[model].stack}.{(layers or (0, 0))[0] + offset}."
                    for model, layers in ranges.items()
                }
                rests: dict[str, None] = {}
                for model, prefix in prefixes.items():
                    rests |= dict.fromkeys(_rests(self.members[model], prefix))
                depth = offset / (stop - start - 1) if stop - start > 1 else 1.0
                for rest in rests:
                    inputs = {model: prefix + rest for model, prefix in prefixes.items()}
                    yield _Place(f"{stack}.{n_out}.{rest}", inputs, piece, depth)
                n_out += 1
        self.n_layers = n_out

    def _plan_tensor(self, place: _Place) -> None:
        found = {}
        lacking = []
        for model, name in place.inputs.items():
            stored = self._stored(self.members[model], name)
            if stored is None:
                lacking.append(model)
            else:
                found[model] = stored
        if lacking and any(buffer in place.name for buffer in BUFFERS):
            return
        if lacking and all(self.members[m].is_tied for m in lacking) and is_head(place.name):
            # A head that is the embedding stands in for the one that is missing.
            for model in lacking:
                table = self.members[model].embedding
                if table is not None:
                    found[model] = table
            lacking = [m for m in lacking if m not in found]
        if lacking:
            self.missing += [
                (place.inputs[m], f"missing in {m}, and there in {next(iter(found))}")
                for m in lacking
            ]
            return
        inputs = tuple((model, found[model]) for model in place.inputs)
        is_vocabulary_ = self.tokens is not None and is_vocabulary(place.name)
        shape = self._shape(place, inputs, is_vocabulary_)
        if shape is None:
            return
        self.jobs.append(self._job(place, inputs, shape, is_vocabulary_))

    def _stored(self, member: Member, name: str) -> Tensor | None:
        if member.adapter is not None and name in member.adapter.replaced:
            return member.adapter.replaced[name]
        return member.tensors.get(name)

    def _shape(
        self, place: _Place, inputs: Sequence[tuple[str, Tensor]], is_laid_out: bool
    ) -> tuple[int, ...] | None:
        """The output's shape, or None where the inputs do not fit together."""
        shapes = {stored.shape[1:] if is_laid_out else stored.shape for _, stored in inputs}
        if len(shapes) == 1:
            shape = inputs[0][1].shape
            if is_laid_out:
                assert self.tokens is not None
                shape = (self.tokens.alignment.n_rows, *shape[1:])
            return shape
        shown = ", ".join(f"{list(stored.shape)} in {model}" for model, stored in inputs)
        advice = ""
        if is_vocabulary(place.name) and len({stored.shape[1:] for _, stored in inputs}) == 1:
            advice = "; write tokenizer_source: union, or base"
        self.misfits.append((place.name, f"{shown}{advice}"))
        return None

    def _job(
        self,
        place: _Place,
        inputs: tuple[tuple[str, Tensor], ...],
        shape: tuple[int, ...],
        is_laid_out: bool,
    ) -> Job:
        recipe = self.recipe
        stored = {tensor.dtype for _, tensor in inputs}
        base = place.piece.base_model if recipe.method.base != "model" else None
        if not stored <= set(FLOATS):
            if len(stored) > 1:
                self.misfits.append((place.name, f"stored as {' and '.join(sorted(stored))}"))
            dtype = inputs[0][1].dtype
            return Job(
                name=place.name,
                shape=shape,
                dtype=dtype,
                out_dtype=dtype,
                inputs=inputs,
                base=base,
                is_copied=True,
            )
        dtype = recipe.dtype or _promoted(stored)
        return Job(
            name=place.name,
            shape=shape,
            dtype=dtype,
            out_dtype=recipe.out_dtype or dtype,
            inputs=inputs,
            base=base,
            arguments=self._arguments(place, base),
            is_vocabulary=is_laid_out,
        )

    def _arguments(self, place: _Place, base: str | None) -> dict[str, Any]:
        method = self.recipe.method
        models = [m for m in place.inputs if m != base or method.base == "model"]
        by_model = {s.model: s for s in place.piece.sources}
        arguments: dict[str, Any] = dict(method.fixed)
        for parameter in method.parameters:
            if parameter.is_per_model:
                values = [
                    resolve(
                        parameter,
                        self._scopes(place.piece, by_model[model]),
                        name=place.inputs[model],
                        depth=place.depth,
                    )
                    for model in models
                ]
            else:
                values = [
                    resolve(
                        parameter, self._scopes(place.piece), name=place.name, depth=place.depth
                    )
                ]
            for model, value in zip(
                models if parameter.is_per_model else [""], values, strict=True
            ):
                if value is REQUIRED:
                    where = f"parameters.{parameter.name}"
                    of = f" for {model}" if model else ""
                    self.absent.setdefault(
                        where + of, f"missing, first at {place.name}; {method.id} needs it"
                    )
            arguments[parameter.argument] = values if parameter.is_per_model else values[0]
        self._check_arguments(place, arguments)
        return arguments

    def _check_arguments(self, place: _Place, arguments: Mapping[str, Any]) -> None:
        """Values that are fine alone and impossible together."""
        weights = arguments.get("weights", [])
        if any(w is REQUIRED for w in weights):
            return
        if self.recipe.method.id == "linear" and arguments["normalize"] and sum(weights) == 0:
            self.absent.setdefault(
                "parameters.weight", f"sums to 0 at {place.name}, and cannot be normalized"
            )
        epsilons = arguments.get("epsilons", [])
        for density, epsilon in zip(arguments.get("densities", []), epsilons, strict=False):
            try:
                check_probabilities(density, epsilon)
            except InputError as error:
                self.absent.setdefault("parameters.epsilon", f"at {place.name}: {error}")

    def _scopes(self, piece: Slice, source: Source | None = None) -> Iterator[Mapping[str, Any]]:
        """Settings from the nearest to the widest."""
        if source is not None:
            yield source.parameters
        yield piece.parameters
        yield self.recipe.parameters


@dataclass(frozen=True)
class _Place:
    """Where an output tensor comes from: its name in each model, and how deep it lies."""

    name: str
    inputs: Mapping[str, str]
    piece: Slice
    depth: float


def _rests(member: Member, prefix: str) -> list[str]:
    """What the tensors of one layer are called behind its number."""
    return [name.removeprefix(prefix) for name in member.tensors if name.startswith(prefix)]


def _promoted(dtypes: set[str]) -> str:
    """The narrowest format that holds all of them, as torch promotes."""
    names = {torch_dtype: name for name, torch_dtype in TORCH.items()}
    result = None
    for dtype in sorted(dtypes):
        found = TORCH[dtype]
        result = found if result is None else torch.promote_types(result, found)
    assert result is not None
    return names[result]
