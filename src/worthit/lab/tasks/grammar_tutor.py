"""The grammar tutor: verb forms in English and Spanish, one character a token.

Twenty verbs, five tenses, three persons, two languages: 600 forms (`_verbs.py`). A *cell* is one
verb, tense and person in both languages; each asks six questions:

    <conj><past><3>stop<=>stopped<end>       and in Spanish   <conj><past><3>parar<=>paró<end>
    <to-es>he stopped<=>paró<end>            and back         <to-en>él paró<=>stopped<end>
    <tense>he stopped<=><past><end>          and in Spanish   <tense>él paró<=><past><end>

An answer is always a form or a tense. A question that more than one cell could have asked is left
out, since it has no single answer or would stand on both sides of a split: "I read" is present or
past, and "yo fui" is *I was* or *I went*.

Splits:
    form: of each tense and person, two verbs are validation and two are test, drawn by `seed`; a
        cell is held out in both languages and all questions. A regular form can be derived; an
        irregular one often cannot, so see the results by `regularity` too. English has few forms,
        and the same word may be trained on for another person.
    verb: six verbs that are regular in both languages are never seen. They are asked for forms
        and tenses, which rules give, and not for translations, which are in no other verb. Each
        has a verb of the same spelling in training: stop for plan, search for touch.

What it tells apart: whether a model learns rules and exceptions at a size that trains in a minute.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import torch

from worthit.errors import InputError, unknown_name
from worthit.lab.tasks._table import Table, next_tokens
from worthit.lab.tasks._verbs import LANGUAGES, PERSONS, PRONOUNS, TENSES, Verb, verbs
from worthit.train.batch import Batch

SEQ_LEN = 32
VOCAB_SIZE = 128
TASKS = ("conjugate", "translate", "identify")
SPLITS = ("form", "verb")
GROUPINGS = ("tense/person", "task", "language", "regularity", "verb")
# Verbs of each tense and person that a split by form holds out: of twenty, a tenth.
N_HELD_OUT = 2

_TAGS = ("<pad>", "<end>", "<=>", "<conj>", "<to-en>", "<to-es>", "<tense>")
_SYMBOLS = (
    *_TAGS,
    *(f"<{name}>" for name in (*TENSES, *PERSONS)),
    *(chr(code) for code in range(32, 127)),
    *"áéíñóúüÁÉÍÑÓÚÜ¡¿«»",
)
_IDS = {symbol: i for i, symbol in enumerate(_SYMBOLS)}
_TOKEN = re.compile("|".join(re.escape(s) for s in _SYMBOLS if len(s) > 1) + "|.", re.DOTALL)
PAD, END = _IDS["<pad>"], _IDS["<end>"]


@dataclass(frozen=True)
class Example:
    """One question: `prompt` ends in `<=>`, `answer` is what follows, without `<end>`.

    `language` is the one that the verb is conjugated in, or translated into, or given in.
    """

    task: str
    language: str
    verb: Verb
    tense: str
    person: str
    prompt: str
    answer: str

    @property
    def cell(self) -> tuple[str, str, str]:
        """Verb, tense and person: what a split by form holds out as one."""
        return self.verb.infinitives["en"], self.tense, self.person

    def group(self, grouping: str) -> str:
        """The label under which this example is reported."""
        if grouping == "regularity":
            regular = self.verb.regular[self.language]
            return "regular" if (self.tense, self.person) in regular else "irregular"
        labels = {
            "tense/person": f"{self.tense}/{self.person}",
            "task": self.task,
            "language": self.language,
            "verb": self.verb.infinitives["en"],
        }
        return labels[grouping]


class GrammarTutor(Table):
    """The task as `Data`; `examples` are the rows of each split, in their order."""

    def __init__(self, examples: dict[str, tuple[Example, ...]], grouping: str) -> None:
        self.examples = examples
        rows = {split: _encode(part, grouping) for split, part in examples.items()}
        super().__init__("grammar-tutor", VOCAB_SIZE, rows)


def build(
    *,
    split: str = "form",
    tasks: Sequence[str] = TASKS,
    group_by: str = "tense/person",
    seed: int = 0,
) -> GrammarTutor:
    """The grammar tutor.

    Args:
        split: `form` or `verb`; see the top of the file.
        tasks: which of `conjugate`, `translate`, `identify` to ask.
        group_by: how results are reported: `tense/person`, `task`, `language`, `regularity`
            (whether rules give the form) or `verb`.
        seed: draws the held-out cells of a split by form.

    Raises:
        UnknownName: a value that is not among these.
    """
    for kind, got, known in [
        ("split", (split,), SPLITS),
        ("task", tasks, TASKS),
        ("grouping", (group_by,), GROUPINGS),
    ]:
        for name in got:
            if name not in known:
                raise unknown_name(kind, name, known)
    if not tasks:
        raise InputError(f"tasks: must name at least one, got none; pick of {', '.join(TASKS)}")
    place = _places_by_form(seed) if split == "form" else _places_by_verb()
    parts: dict[str, list[Example]] = {"train": [], "validation": [], "test": []}
    for example in examples():
        where = place[example.cell]
        is_derivable = split == "form" or where == "train" or example.task != "translate"
        if example.task in tasks and is_derivable:
            parts[where].append(example)
    if not parts["test"]:
        raise InputError(
            "tasks: a verb that was never seen cannot be translated, so that a split by verb "
            "needs conjugate or identify; add one, or split by form"
        )
    return GrammarTutor({name: tuple(part) for name, part in parts.items()}, group_by)


# --- questions and answers as text ---------------------------------------------------------------


@cache
def examples() -> tuple[Example, ...]:
    """Every question with a single answer, in the order of verbs, tenses and persons."""
    asked = tuple(_questions())
    times = Counter(example.prompt for example in asked)
    return tuple(example for example in asked if times[example.prompt] == 1)


def answers(prompt: str) -> frozenset[str]:
    """Every right answer to a prompt, those with several included.

    Raises:
        InputError: not a question of this task.
    """
    found = _all_answers().get(prompt)
    if found is None:
        raise InputError(
            f"prompt: not a question of the grammar tutor, got {prompt!r}; "
            "ask as in '<conj><past><3>stop<=>' or '<to-es>he stopped<=>'"
        )
    return found


def check(prompt: str, answer: str) -> bool:
    """Whether `answer` is exactly right: the form or the tense, with nothing before or after.

    >>> check("<to-es>he stopped<=>", "paró"), check("<to-es>he stopped<=>", "paro")
    (True, False)
    """
    return answer in answers(prompt)


def encode(text: str) -> list[int]:
    """Ids of a text: a tag in angle brackets is one token, any other character another.

    Raises:
        InputError: a character that has no symbol.
    """
    symbols = _TOKEN.findall(text)
    unknown = [symbol for symbol in symbols if symbol not in _IDS]
    if unknown:
        raise InputError(f"text: no symbol for {unknown[0]!r}; use English and Spanish letters")
    return [_IDS[symbol] for symbol in symbols]


def decode(ids: Sequence[int]) -> str:
    """The text of `ids` up to the first `<end>`: what `check` takes."""
    ids = list(ids)
    ids = ids[: ids.index(END)] if END in ids else ids
    return "".join(_SYMBOLS[i] for i in ids)


def _questions() -> Iterator[Example]:
    for verb in verbs():
        for tense in TENSES:
            for place, person in enumerate(PERSONS):
                forms = {lang: verb.forms[lang][tense, person] for lang in LANGUAGES}
                said = {lang: f"{PRONOUNS[lang][place]} {forms[lang]}" for lang in LANGUAGES}
                for lang, other in (("en", "es"), ("es", "en")):
                    asked = {
                        "conjugate": f"<conj><{tense}><{person}>{verb.infinitives[lang]}<=>",
                        "translate": f"<to-{lang}>{said[other]}<=>",
                        "identify": f"<tense>{said[lang]}<=>",
                    }
                    for task, prompt in asked.items():
                        answer = f"<{tense}>" if task == "identify" else forms[lang]
                        yield Example(task, lang, verb, tense, person, prompt, answer)


@cache
def _all_answers() -> dict[str, frozenset[str]]:
    found: dict[str, set[str]] = {}
    for example in _questions():
        found.setdefault(example.prompt, set()).add(example.answer)
    return {prompt: frozenset(right) for prompt, right in found.items()}


# --- splits and rows -----------------------------------------------------------------------------

_Places = dict[tuple[str, str, str], str]  # the split of each cell


def _places_by_form(seed: int) -> _Places:
    generator = torch.Generator().manual_seed(seed)
    names = [verb.infinitives["en"] for verb in verbs()]
    places = {}
    for tense in TENSES:
        for person in PERSONS:
            for rank, verb in enumerate(torch.randperm(len(names), generator=generator).tolist()):
                is_test, is_held_out = rank < N_HELD_OUT, rank < 2 * N_HELD_OUT
                where = "test" if is_test else "validation" if is_held_out else "train"
                places[names[verb], tense, person] = where
    return places


def _places_by_verb() -> _Places:
    return {
        (verb.infinitives["en"], tense, person): verb.unseen or "train"
        for verb in verbs()
        for tense in TENSES
        for person in PERSONS
    }


def _encode(part: Sequence[Example], grouping: str) -> Batch:
    questions = [encode(example.prompt) for example in part]
    endings = [[*encode(example.answer), END] for example in part]
    inputs, targets = next_tokens(questions, endings, SEQ_LEN, PAD)
    return Batch(inputs, targets, tuple(example.group(grouping) for example in part))
