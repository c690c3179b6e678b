"""Read the checkpoints of a recipe before merging them: what their task vectors have in common.

    tau_i = theta_i - theta_0      length, direction and signs of what fine-tuning changed

- length: |tau_i| / |theta_0|, and the step that 99 % of the entries stay below;
- density: the share of entries, largest first, that hold 90 % of the squared length;
- cosine of two task vectors: 0 for tasks that do not touch, 1 for the same task twice;
- conflict: of entries among the largest fifth of both, the share whose signs differ.

Large checkpoints are sampled, evenly over all tensors, and the share that was read is part of the
answer. Without a base the weights themselves stand in for task vectors, and only cosines are told.

Source:
    Ilharco et al. 2023, "Editing Models with Task Arithmetic", arXiv:2212.04089 (cosines of task
    vectors); Yadav et al. 2023, "TIES-Merging", arXiv:2306.01708 (redundant entries, conflicts).
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from worthit.errors import InputError
from worthit.merge._groups import grouped
from worthit.merge._sums import VECTORS, Piece, Sums
from worthit.merge.files import TORCH, Files, as_rows
from worthit.merge.members import (
    FLOATS,
    Member,
    check_alike,
    check_mergeable,
    is_vocabulary,
    messages,
    open_member,
    open_rows,
)
from worthit.merge.read_recipe import parse
from worthit.merge.recipe import Recipe
from worthit.merge.vocabulary import plan_tokens

# Entries of each checkpoint that are read; where there are fewer, all of them.
SAMPLE = 1 << 23
# Entries read in a row: a page or so of a file.
BLOCK = 4096
# Entries of a task vector that its quantiles are read off.
KEPT = 1 << 20
# The share of the squared length by which a density is told.
ENERGY = 0.9
PARTS = ("embeddings", "attention", "feed-forward", "other", VECTORS)
_ATTENTION = re.compile(r"attn|attention|q_proj|k_proj|v_proj|o_proj|query_key_value|mixer|ssm")
_FEED_FORWARD = re.compile(r"mlp|ffn|feed_forward|experts|moe|fc1|fc2|w1|w2|w3")


@dataclass(frozen=True, kw_only=True)
class Vector:
    """One task vector: what fine-tuning changed.

    Attributes:
        model: by its name in the recipe.
        length: |tau| / |theta_0|.
        p99: 99 % of the entries have at most this magnitude.
        density: the share of entries that hold 90 % of the squared length.
        changed: the share of entries that differ from the base at all.
        by_part: length by part of the model.
    """

    model: str
    length: float
    p99: float
    density: float
    changed: float
    by_part: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two task vectors, or two checkpoints where there is no base.

    Attributes:
        cosine: of the task vectors; None without a base.
        of_weights: of the checkpoints themselves.
        conflict: of entries large in both, the share whose signs differ; None without a base.
        overlap: of entries large in one, the share that is large in the other too.
        by_part: cosine by part of the model.
    """

    one: str
    two: str
    cosine: float | None
    of_weights: float
    conflict: float | None
    overlap: float | None
    by_part: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What the checkpoints of a recipe are like.

    Attributes:
        recipe: as far as it could be read; its method may be a stand-in.
        models: without the base.
        n_params: of the tensors that all checkpoints have in one shape.
        share: of their entries that was read; 1 is all.
        to_base: cosine of each checkpoint with the base.
        problems: what stands in the way of merging entry by entry.
        warnings: what is odd.
    """

    recipe: Recipe
    models: tuple[str, ...]
    n_params: int
    share: float
    vectors: tuple[Vector, ...]
    pairs: tuple[Pair, ...]
    to_base: Mapping[str, float]
    problems: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The reading's part of the record of `worthit judge --merge`."""
        return {
            "base_model": self.recipe.base_model,
            "models": list(self.models),
            "n_params": self.n_params,
            "share_read": self.share,
            "problems": list(self.problems),
            "warnings": list(self.warnings),
            "cosine_to_base": dict(self.to_base),
            "task_vectors": [{**vars(v), "by_part": dict(v.by_part)} for v in self.vectors],
            "pairs": [{**vars(p), "by_part": dict(p.by_part)} for p in self.pairs],
        }


def read_checkpoints(
    text: str,
    *,
    folder: Path = Path(),
    name: str = "recipe",
    sample: int = SAMPLE,
    seed: int = 0,
) -> Reading:
    """Read the checkpoints that a recipe names; its method and parameters may still be missing.

    Args:
        text: of the recipe.
        folder: that models' paths are seen from.
        name: of the recipe, for messages.
        sample: entries of each checkpoint to read at most.
        seed: of the choice of entries.

    Raises:
        InputError: a recipe that names no models to compare, models that are not there, or a
            weight that is no number.
    """
    recipe, problems = parse(text, folder=folder, name=name, otherwise="linear")
    if recipe is None:
        raise InputError(*problems, context=name)
    members: dict[str, Member] = {}
    missing = []
    for model in recipe.models:
        try:
            members[model] = open_member(model, folder)
        except InputError as error:
            missing += [f"{model}: {message}" for message in messages(error)]
    if missing:
        raise InputError(*missing, context=name)
    models = tuple(m for m in members if m != recipe.base_model)
    if len(models) < (1 if recipe.base_model else 2):
        raise InputError("names one checkpoint, and nothing to compare it with", context=name)
    stored, problems, warnings = _compare(recipe, members)
    if not stored:
        raise InputError(*problems, "the checkpoints have no tensor in common", context=name)
    n_params = sum(members[recipe.models[0]].tensors[t].numel for t in stored)
    sums = Sums(len(models), kept_every=max(min(n_params, sample) // KEPT, 1))
    with torch.inference_mode(), Files() as files:
        for piece in _pieces(stored, members, recipe.base_model, models, files, sample, seed):
            sums.add(piece)
    return Reading(
        recipe=recipe,
        models=models,
        n_params=n_params,
        share=min(sums.n_read / n_params, 1.0),
        vectors=tuple(_vectors(sums, models)) if recipe.base_model else (),
        pairs=tuple(_pairs(sums, models, has_base=recipe.base_model is not None)),
        to_base={m: sums.cosine_to_base(i) for i, m in enumerate(models)}
        if recipe.base_model
        else {},
        problems=tuple(problems),
        warnings=tuple(warnings),
    )


def part_of(name: str, n_axes: int = 2) -> str:
    """The part of the model that a tensor belongs to, by its name and its number of axes.

    >>> [part_of(n) for n in ("wte.weight", "h.0.attn.c_attn.weight", "h.0.mlp.c_fc.weight")]
    ['embeddings', 'attention', 'feed-forward']
    >>> part_of("model.layers.0.post_attention_layernorm.weight", 1)
    'norms and biases'
    """
    if n_axes < 2:
        return VECTORS
    if is_vocabulary(name):
        return "embeddings"
    if _ATTENTION.search(name):
        return "attention"
    return "feed-forward" if _FEED_FORWARD.search(name) else "other"


def _compare(
    recipe: Recipe, members: Mapping[str, Member]
) -> tuple[list[str], list[str], list[str]]:
    """The tensors that all have in one shape, what stands in the way, and what is odd."""
    problems, warnings = check_alike(members.values())
    for member in members.values():
        problems += check_mergeable(member)
    _, found, odd = plan_tokens(recipe, members)
    problems += found
    warnings += odd
    are_tokens_alike = not found and recipe.tokenizer is None
    first, *others = members.values()
    stored = []
    misfits = []
    for name, tensor in first.tensors.items():
        shapes = [o.tensors[name].shape if name in o.tensors else None for o in others]
        dtypes = {tensor.dtype} | {o.tensors[name].dtype for o in others if name in o.tensors}
        if is_vocabulary(name) and not are_tokens_alike:
            continue
        if any(shape != tensor.shape for shape in shapes):
            unlike = next(o for o, s in zip(others, shapes, strict=True) if s != tensor.shape)
            got = unlike.tensors[name].shape if name in unlike.tensors else None
            has = "no such tensor" if got is None else str(list(got))
            misfits.append((name, f"{list(tensor.shape)} in {first.name}, {has} in {unlike.name}"))
        elif dtypes <= set(FLOATS) and tensor.numel:
            stored.append(name)
    if not are_tokens_alike:
        warnings.append("tables of tokens are left out: their rows stand for different tokens")
    return stored, [*dict.fromkeys(problems), *grouped(misfits)], list(dict.fromkeys(warnings))


def _pieces(
    names: Sequence[str],
    members: Mapping[str, Member],
    base: str | None,
    models: Sequence[str],
    files: Files,
    sample: int,
    seed: int,
) -> Iterator[Piece]:
    """The same entries of every checkpoint, a tensor at a time."""
    chance = np.random.Generator(np.random.PCG64(seed))
    first = members[models[0]].tensors
    rate = min(1.0, sample / sum(first[name].numel for name in names))
    for name in names:
        n_rows, n_columns = as_rows(first[name].shape)
        spans = _spans(n_rows, n_columns, rate, chance)
        read: dict[str, torch.Tensor] = {}
        for model, member in members.items():
            stored = member.tensors[name]
            if member.adapter is not None and name in member.adapter.replaced:
                stored = member.adapter.replaced[name]
            rows = open_rows(member, files, stored, wide=torch.float32)
            assert stored.dtype in TORCH
            read[model] = torch.cat([rows.read(start, stop) for start, stop in spans])
        n_read = sum(stop - start for start, stop in spans)
        yield Piece(
            part=part_of(name, len(first[name].shape)),
            base=None if base is None else read[base],
            models=tuple(read[model] for model in models),
            weight=n_rows / n_read,
        )


def _spans(
    n_rows: int, n_columns: int, rate: float, chance: np.random.Generator
) -> list[tuple[int, int]]:
    """Rows to read: blocks at a random place in each of as many equal strips."""
    if rate >= 1 or n_rows * n_columns <= BLOCK:
        return [(0, n_rows)]
    height = max(BLOCK // n_columns, 1)
    n_blocks = max(round(n_rows * rate / height), 1)
    edges = np.linspace(0, n_rows, n_blocks + 1).astype(int)
    spans = []
    for low, high in itertools.pairwise(edges.tolist()):
        start = int(chance.integers(low, max(high - height, low) + 1))
        spans.append((start, min(start + height, high)))
    return spans


def _vectors(sums: Sums, models: Sequence[str]) -> Iterator[Vector]:
    for i, model in enumerate(models):
        sizes, weights = sums.magnitudes(i)
        above = np.cumsum(weights) / weights.sum()
        energy = np.cumsum(weights * sizes.astype(np.float64) ** 2)
        has_length = energy[-1] > 0
        at = int(np.searchsorted(energy, ENERGY * energy[-1])) if has_length else 0
        yield Vector(
            model=model,
            length=sums.length(i),
            p99=float(sizes[int(np.searchsorted(above, 0.01))]),
            density=float(above[at]) if has_length else 0.0,
            changed=float(sums.changed[i] / sums.numel),
            by_part={p: sums.length(i, p) for p in PARTS if p in sums.products},
        )


def _pairs(sums: Sums, models: Sequence[str], *, has_base: bool) -> Iterator[Pair]:
    for i, j in itertools.combinations(range(len(models)), 2):
        both = sums.large_both[i, j]
        least = min(sums.large[i], sums.large[j])
        yield Pair(
            one=models[i],
            two=models[j],
            cosine=sums.cosine(i, j) if has_base else None,
            of_weights=sums.cosine_of_models(i, j),
            conflict=float(sums.differing[i, j] / both) if has_base and both else None,
            overlap=float(both / least) if has_base and least else None,
            by_part={p: sums.cosine(i, j, p) for p in PARTS if p in sums.products},
        )
