"""Which vocabulary the output of a merge has, and whether one is needed: found from files alone.

Without `tokenizer_source`, row i of every table must be the same token, or words of different
tokenizers would be averaged: that is checked here, before any weight is read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from worthit.errors import InputError
from worthit.merge.members import Member, messages, open_member
from worthit.merge.recipe import Recipe, TokenizerChoice
from worthit.merge.tokens import (
    Alignment,
    Vocabulary,
    align,
    differing_ids,
    fingerprint,
    merged_ids,
    read_vocabulary,
    sequence_of,
)

# The share of ids that may stand for other tokens before it is no longer a few names.
DIFFERENT_IDS = 0.01


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """The output's vocabulary: the folder of the tokenizer it starts from, ids, what was added."""

    folder: Path
    ids: Mapping[str, int] = field(repr=False)
    added: Mapping[str, Mapping[str, Any]]
    alignment: Alignment


def plan_tokens(
    recipe: Recipe, members: Mapping[str, Member]
) -> tuple[Tokens | None, list[str], list[str]]:
    """The vocabulary that a recipe asks for.

    Returns:
        None where tables are merged as they are; every problem; warnings.
    """
    base = recipe.base_model or recipe.models[0]
    if recipe.tokenizer is None:
        problems, warnings = _check(members, base, is_copy=recipe.method.id == "passthrough")
        return None, problems, warnings
    return _plan(recipe, recipe.tokenizer, members, base)


def _plan(
    recipe: Recipe, choice: TokenizerChoice, members: Mapping[str, Member], base: str
) -> tuple[Tokens | None, list[str], list[str]]:
    where = ".".join(map(str, choice.path))
    everyone = {name: members[name] for name in sequence_of(recipe.models, base)}
    if choice.source not in ("base", "union", *members):
        # It gives its tokenizer and no weights.
        try:
            everyone[choice.source] = open_member(choice.source, recipe.folder)
        except InputError as error:
            return None, [f"{where}: {message}" for message in messages(error)], []
    vocabularies: dict[str, Vocabulary] = {}
    sizes: dict[str, int] = {}
    warnings = []
    for name, member in everyone.items():
        table = member.embedding
        if table is None:
            return None, [f"{where}: no embedding was found in {name} to lay out anew"], []
        sizes[name] = table.shape[0]
        found = read_vocabulary(member.folder)
        if found is None and vocabularies:
            first, found = next(iter(vocabularies.items()))
            warnings.append(f"{name}: has no tokenizer.json; taken to be that of {first}")
        if found is not None:
            vocabularies[name] = found
    try:
        donor, ids, added = merged_ids(choice, base, vocabularies, sizes)
        merged = {name: vocabularies[name] for name in members if name in vocabularies}
        alignment = align(ids, merged, sizes, recipe.base_model, choice)
    except InputError as error:
        return None, [f"{where}: {message}" for message in error.problems], warnings
    folder = everyone[donor].folder
    return Tokens(folder=folder, ids=ids, added=added, alignment=alignment), [], warnings


def _check(
    members: Mapping[str, Member], base: str, *, is_copy: bool
) -> tuple[list[str], list[str]]:
    """Whether the same ids are the same tokens everywhere."""
    prints = {name: fingerprint(member.folder) for name, member in members.items()}
    if len(set(prints.values())) == 1 or (is_copy and prints[base] is None):
        return [], []
    vocabulary = read_vocabulary(members[base].folder)
    problems: list[str] = []
    warnings: list[str] = []
    if vocabulary is None:
        return problems, warnings
    for name, member in members.items():
        other = None if prints[name] == prints[base] else read_vocabulary(member.folder)
        n = 0 if other is None else differing_ids(vocabulary, other)
        if other is None or not n:
            continue
        n_all = max(len(vocabulary.ids), len(other.ids))
        text = f"{n} of {n_all} ids stand for other tokens in {name} than in {base}"
        if n > DIFFERENT_IDS * n_all:
            problems.append(
                f"tokenizer_source: missing, and {text}; write tokenizer_source: union, or base"
            )
        else:
            warnings.append(f"{text}: their rows are merged all the same")
    return problems, warnings
