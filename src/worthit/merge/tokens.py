"""Vocabularies: one for the output, and for each of its tokens a row of each checkpoint's tables.

Checkpoints whose tokenizers differ number their tokens differently, and averaging row by row would
mix unrelated words. So each table is first laid out in the output's numbering. A token that a
checkpoint lacks takes, for that checkpoint, the base's row, or else the mean over those that have
it; one that nobody has is zero. A recipe can name another source for any token.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from worthit.errors import InputError, MissingCapability
from worthit.merge.recipe import TokenizerChoice, TokenRule
from worthit.merge.stack import Rows
from worthit.spec.resolve import read_json

TOKENIZER = "tokenizer.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
# Rows read for the mean that fills padding.
MEAN_ROWS = 1024


@dataclass(frozen=True)
class Vocabulary:
    """The tokens of a folder's tokenizer and their ids; those added later with their settings."""

    ids: Mapping[str, int] = field(repr=False)
    added: Mapping[str, Mapping[str, Any]] = field(repr=False)


@dataclass(frozen=True)
class Alignment:
    """How tables are laid out in the output's numbering.

    Attributes:
        n_rows: rows of the output's tables.
        n_tokens: rows that are tokens; the rest is padding, the mean of all before.
        rows: by model, which of its rows goes where; -1 where it has none.
        defaults: for a token that a model lacks, the rows whose mean it takes; none is zero.
    """

    n_rows: int
    n_tokens: int
    rows: Mapping[str, Tensor] = field(repr=False)
    defaults: Mapping[int, tuple[tuple[str, int], ...]] = field(repr=False)
    forced: frozenset[int] = frozenset()


def read_vocabulary(folder: Path) -> Vocabulary | None:
    """The vocabulary in a folder's `tokenizer.json`; None where it has none.

    Raises:
        SpecError: a file that is no tokenizer.
    """
    path = folder / TOKENIZER
    if not path.is_file():
        return None
    data = read_json(path)
    model = data.get("model") if isinstance(data, dict) else None
    vocab = model.get("vocab") if isinstance(model, dict) else None
    if isinstance(vocab, list):  # unigram: pairs of a piece and its score, in order
        ids = {piece[0]: i for i, piece in enumerate(vocab)}
    elif isinstance(vocab, dict):
        ids = dict(vocab)
    else:
        raise InputError(f"{path}: has no vocabulary")
    added = {entry["content"]: entry for entry in data.get("added_tokens") or []}
    ids |= {token: entry["id"] for token, entry in added.items()}
    return Vocabulary(ids, added)


def fingerprint(folder: Path) -> str | None:
    """What tells one tokenizer file from another; None where there is none."""
    path = folder / TOKENIZER
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None


def differing_ids(one: Vocabulary, two: Vocabulary) -> int:
    """How many ids stand for different tokens in two vocabularies."""
    by_id = {i: token for token, i in one.ids.items()}
    other = {i: token for token, i in two.ids.items()}
    return sum(by_id.get(i) != other.get(i) for i in by_id.keys() | other.keys())


def new_tokens(
    base: str, vocabularies: Mapping[str, Vocabulary], sizes: Mapping[str, int]
) -> dict[str, Mapping[str, Any]]:
    """Tokens that the base lacks, with their settings; plain ones first, as each model has them.

    A token beyond the rows of its model's table was never trained, and is left out.
    """
    known = vocabularies[base].ids
    plain: dict[str, Mapping[str, Any]] = {}
    special: dict[str, Mapping[str, Any]] = {}
    for name, vocabulary in vocabularies.items():
        for token, i in sorted(vocabulary.ids.items(), key=lambda entry: entry[1]):
            if token in known or i >= sizes[name]:
                continue
            if token in vocabulary.added:
                special.setdefault(token, vocabulary.added[token])
            else:
                plain.setdefault(token, {"content": token})
    return {t: s for t, s in plain.items() if t not in special} | special


def align(
    ids: Mapping[str, int],
    vocabularies: Mapping[str, Vocabulary],
    sizes: Mapping[str, int],
    base: str | None,
    choice: TokenizerChoice,
) -> Alignment:
    """Lay out the tables of every model in the numbering `ids`.

    Args:
        ids: the output's vocabulary.
        vocabularies: of each model that is merged.
        sizes: rows of each model's tables.
        base: whose rows stand in for those that others lack.
        choice: what the recipe says of single tokens, and of padding.

    Raises:
        InputError: a rule for a token that nobody has, or from a model that is not merged.
    """
    n_tokens = max(ids.values(), default=-1) + 1
    n_rows = -(-n_tokens // choice.multiple_of) * choice.multiple_of
    rows = {name: torch.full((n_tokens,), -1, dtype=torch.int64) for name in vocabularies}
    for name, vocabulary in vocabularies.items():
        own = {t: i for t, i in vocabulary.ids.items() if i < sizes[name]}
        pairs = [(ids[t], i) for t, i in own.items() if t in ids]
        if pairs:
            at, row = torch.tensor(pairs).unbind(1)
            rows[name][at] = row
    problems: list[str] = []
    defaults: dict[int, tuple[tuple[str, int], ...]] = {}
    table = torch.stack(list(rows.values()))
    lacking = (table < 0).any(0).nonzero().flatten().tolist()
    for at in lacking:
        having = [(name, int(r[at])) for name, r in rows.items() if r[at] >= 0]
        of_base = [pair for pair in having if pair[0] == base]
        defaults[at] = tuple(of_base or having)
    forced = set()
    for token, rule in choice.tokens.items():
        at = ids[token]
        if rule.has_source:
            found = _source(token, rule, vocabularies, sizes)
            if isinstance(found, str):
                problems.append(f"tokenizer.tokens.{token}.source: {found}")
            else:
                defaults[at] = found
        if rule.is_forced:
            forced.add(at)
    if problems:
        raise InputError(*problems)
    return Alignment(n_rows, n_tokens, rows, defaults, frozenset(forced))


def _source(
    token: str,
    rule: TokenRule,
    vocabularies: Mapping[str, Vocabulary],
    sizes: Mapping[str, int],
) -> tuple[tuple[str, int], ...] | str:
    """The row that a rule names, or what is wrong with it."""
    if rule.model is None:
        return ()
    if rule.model not in vocabularies:
        return f"{rule.model} is not merged, or has no tokenizer.json"
    row = rule.token_id
    if row is None:
        wanted = token if rule.token is None else rule.token
        row = vocabularies[rule.model].ids.get(wanted)
        if row is None:
            return f"{rule.model} has no token {wanted!r}"
    if row >= sizes[rule.model]:
        return f"{rule.model} has no row {row}, its table has {sizes[rule.model]}"
    return ((rule.model, row),)


class AlignedRows:
    """A table laid out in the output's numbering: a model's rows, and defaults for the rest."""

    def __init__(self, name: str, tables: Mapping[str, Rows], alignment: Alignment) -> None:
        self.name = name
        self.tables = tables
        self.alignment = alignment
        self.n_rows = alignment.n_rows
        self.n_columns = tables[name].n_columns
        self._mean: Tensor | None = None

    def read(self, start: int, stop: int) -> Tensor:
        """See `worthit.merge.stack.Rows`."""
        n = self.alignment.n_tokens
        made = self._tokens(start, min(stop, n)) if start < n else None
        if stop <= n:
            assert made is not None
            return made
        padding = self._padding().expand(stop - max(start, n), -1)
        return padding if made is None else torch.cat([made, padding])

    def _tokens(self, start: int, stop: int) -> Tensor:
        own = self.tables[self.name]
        wanted = self.alignment.rows[self.name][start:stop].clone()
        for at in self.alignment.forced:
            if start <= at < stop:
                wanted[at - start] = -1
        made: Tensor | None = None
        for first, last in _runs(wanted):
            row = int(wanted[first])
            part = (
                own.read(row, row + last - first)
                if row >= 0
                else torch.stack([self._default(start + i) for i in range(first, last)])
            )
            if made is None:
                made = torch.zeros(stop - start, self.n_columns, dtype=part.dtype)
            made[first:last] = part
        assert made is not None
        return made

    def _default(self, at: int) -> Tensor:
        rows = [
            self.tables[name].read(row, row + 1)[0]
            for name, row in self.alignment.defaults.get(at, ())
            if name in self.tables
        ]
        if not rows:
            return torch.zeros_like(self.tables[self.name].read(0, 1)[0])
        return torch.stack(rows).mean(0)

    def _padding(self) -> Tensor:
        if self._mean is None:
            n = self.alignment.n_tokens
            total: Any = 0
            for start in range(0, n, MEAN_ROWS):
                total = total + self._tokens(start, min(start + MEAN_ROWS, n)).double().sum(0)
            self._mean = (total / n).to(self.tables[self.name].read(0, 1).dtype)
        return self._mean


def _runs(rows: Tensor) -> list[tuple[int, int]]:
    """Stretches of consecutive rows, or of missing ones.

    >>> _runs(torch.tensor([4, 5, 6, -1, -1, 0]))
    [(0, 3), (3, 5), (5, 6)]
    """
    if not len(rows):
        return []
    step = rows[1:] - rows[:-1]
    missing = rows < 0
    goes_on = (~missing[1:] & ~missing[:-1] & (step == 1)) | (missing[1:] & missing[:-1])
    cuts = [0, *((~goes_on).nonzero().flatten() + 1).tolist(), len(rows)]
    return list(pairwise(cuts))


def write_tokenizer(
    base: Path, into: Path, ids: Mapping[str, int], settings: Mapping[str, Mapping[str, Any]]
) -> None:
    """Write the base's tokenizer with more tokens, ids as the tables have them.

    Raises:
        MissingCapability: the package that writes tokenizers is not installed.
    """
    try:
        import tokenizers
    except ImportError:
        raise MissingCapability(
            "a new vocabulary needs the extra 'merge'", "pip install 'worthit[merge]'"
        ) from None
    made = tokenizers.Tokenizer.from_file(str(base / TOKENIZER))
    for token, setting in settings.items():
        options = {k: setting[k] for k in ADDED_OPTIONS if k in setting}
        made.add_tokens([tokenizers.AddedToken(token, **options)])
        if made.token_to_id(token) != ids[token]:
            raise InputError(
                f"{base / TOKENIZER}: token {token!r} should become id {ids[token]}, got "
                f"{made.token_to_id(token)}; its ids have holes, so choose another tokenizer source"
            )
    made.save(str(into / TOKENIZER))
    config_path = into / TOKENIZER_CONFIG
    if settings and config_path.is_file():
        config = json.loads(config_path.read_text(encoding="utf-8"))
        decoder = config.get("added_tokens_decoder")
        if isinstance(decoder, dict):
            for token, setting in settings.items():
                entry = dict(DEFAULTS, special=False) | {
                    k: setting[k] for k in (*ADDED_OPTIONS, "special") if k in setting
                }
                decoder[str(ids[token])] = {"content": token, **entry}
            text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
            config_path.write_text(text, encoding="utf-8")


ADDED_OPTIONS = ("single_word", "lstrip", "rstrip", "normalized", "special")
DEFAULTS = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": True}


def merged_ids(
    choice: TokenizerChoice,
    base: str,
    vocabularies: Mapping[str, Vocabulary],
    sizes: Mapping[str, int],
) -> tuple[str, dict[str, int], dict[str, Mapping[str, Any]]]:
    """Whose tokenizer the output starts from, its vocabulary, and what was added to it.

    Raises:
        InputError: the source has no tokenizer.
    """
    donor = base if choice.source in ("base", "union") else choice.source
    if donor not in vocabularies:
        raise InputError(f"{donor} has no {TOKENIZER} to take the vocabulary from")
    ids = dict(vocabularies[donor].ids)
    added: dict[str, Mapping[str, Any]] = {}
    if choice.source == "union":
        added = dict(new_tokens(donor, vocabularies, sizes))
    added |= {t: {"content": t} for t in choice.tokens if t not in ids and t not in added}
    end = max(ids.values(), default=-1) + 1
    return donor, ids | {token: end + i for i, token in enumerate(added)}, added


def sequence_of(models: Sequence[str], base: str | None) -> tuple[str, ...]:
    """The models in the order in which their tokens are taken: the base first."""
    return tuple(dict.fromkeys(([base] if base else []) + list(models)))
