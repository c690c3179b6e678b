"""Twenty verbs, conjugated in English and in Spanish: rules of spelling, and tables of exceptions.

A form is what follows the pronoun: `stops`, `will stop`, `ha parado`. The tenses pair one to one:

    present      I stop          yo paro         (presente)
    past         I stopped       yo paré         (pretérito perfecto simple)
    future       I will stop     yo pararé       (futuro simple)
    conditional  I would stop    yo pararía      (condicional simple)
    perfect      I have stopped  yo he parado    (pretérito perfecto compuesto)

The persons are the three of the singular: I, you, he; yo, tú, él. Rules alone make every form of a
regular verb; `verbs.json` holds what they do not give.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

TENSES = ("present", "past", "future", "conditional", "perfect")
PERSONS = ("1", "2", "3")
LANGUAGES = ("en", "es")
PRONOUNS = {"en": ("I", "you", "he"), "es": ("yo", "tú", "él")}
VERBS_FILE = Path(__file__).with_name("verbs.json")

Forms = dict[tuple[str, str], str]  # by tense and person


@dataclass(frozen=True)
class Verb:
    """A verb and its translation.

    Attributes:
        infinitives: by language; English without "to".
        forms: by language, then by tense and person.
        regular: by language, the tenses and persons whose form the rules give.
        unseen: the split that holds the verb where splits are by verb; empty for training.
    """

    infinitives: Mapping[str, str]
    forms: Mapping[str, Forms]
    regular: Mapping[str, frozenset[tuple[str, str]]]
    unseen: str = ""


@cache
def verbs() -> tuple[Verb, ...]:
    """The twenty verbs, in the order of the data file."""
    data = json.loads(VERBS_FILE.read_text(encoding="utf-8"))
    return tuple(_verb(entry) for entry in data["verbs"])


def english(infinitive: str, exceptions: Mapping[str, Any] | None = None) -> Forms:
    """The fifteen forms of an English verb, by rule but for `exceptions`.

    >>> english("stop")["past", "1"], english("study")["present", "3"]
    ('stopped', 'studies')
    """
    exceptions = exceptions or {}
    past = _past(infinitive)
    present = exceptions.get("present", (infinitive, infinitive, _third_person(infinitive)))
    past_forms = exceptions.get("past", (past, past, past))
    participle = exceptions.get("participle", past)
    columns = {
        "present": present,
        "past": past_forms,
        "future": [f"will {infinitive}"] * 3,
        "conditional": [f"would {infinitive}"] * 3,
        "perfect": [f"{have} {participle}" for have in ("have", "have", "has")],
    }
    return _forms(columns)


def spanish(infinitive: str, exceptions: Mapping[str, Any] | None = None) -> Forms:
    """The fifteen forms of a Spanish verb, by rule but for `exceptions`.

    >>> spanish("buscar")["past", "1"], spanish("leer")["past", "3"]
    ('busqué', 'leyó')
    """
    exceptions = exceptions or {}
    stem, ending = infinitive[:-2], infinitive[-2:]
    future = exceptions.get("future", infinitive)
    participle = exceptions.get("participle", _participle(stem, ending))
    columns = {
        "present": exceptions.get("present", [stem + e for e in _PRESENT[ending]]),
        "past": exceptions.get("past", _preterite(stem, ending)),
        "future": [future + e for e in ("é", "ás", "á")],
        "conditional": [future + e for e in ("ía", "ías", "ía")],
        "perfect": [f"{have} {participle}" for have in ("he", "has", "ha")],
    }
    return _forms(columns)


def _verb(entry: Mapping[str, Any]) -> Verb:
    rules = {"en": english, "es": spanish}
    infinitives = {"en": entry["english"], "es": entry["spanish"]}
    forms, regular = {}, {}
    for language, conjugate in rules.items():
        by_rule = conjugate(infinitives[language])
        forms[language] = conjugate(infinitives[language], entry.get(language))
        regular[language] = frozenset(
            cell for cell, form in forms[language].items() if by_rule[cell] == form
        )
    return Verb(infinitives, forms, regular, entry.get("unseen", ""))


def _forms(columns: Mapping[str, Any]) -> Forms:
    return {
        (tense, person): columns[tense][place]
        for tense in TENSES
        for place, person in enumerate(PERSONS)
    }


# --- English spelling ----------------------------------------------------------------------------

_VOWELS = "aeiou"


def _third_person(verb: str) -> str:
    if verb.endswith(("s", "x", "z", "ch", "sh", "o")):
        return verb + "es"
    return verb[:-1] + "ies" if _ends_in_consonant_y(verb) else verb + "s"


def _past(verb: str) -> str:
    if verb.endswith("e"):
        return verb + "d"
    if _ends_in_consonant_y(verb):
        return verb[:-1] + "ied"
    return verb + verb[-1] + "ed" if _doubles(verb) else verb + "ed"


def _ends_in_consonant_y(verb: str) -> bool:
    return verb.endswith("y") and verb[-2] not in _VOWELS


def _doubles(verb: str) -> bool:
    """One syllable, one vowel, then one consonant that is doubled: stop, plan; not fear, talk."""
    n_vowels = sum(letter in _VOWELS for letter in verb)
    return n_vowels == 1 and verb[-2] in _VOWELS and verb[-1] not in _VOWELS + "wxy"


# --- Spanish endings and spelling ----------------------------------------------------------------

_PRESENT = {"ar": ("o", "as", "a"), "er": ("o", "es", "e"), "ir": ("o", "es", "e")}
# What keeps its sound before e: c, g and z are written otherwise.
_BEFORE_E = {"c": "qu", "g": "gu", "z": "c"}


def _preterite(stem: str, ending: str) -> list[str]:
    if ending == "ar":
        before_e = stem[:-1] + _BEFORE_E.get(stem[-1], stem[-1])
        return [before_e + "é", stem + "aste", stem + "ó"]
    if _has_hiatus(stem):
        return [stem + "í", stem + "íste", stem + "yó"]
    return [stem + "í", stem + "iste", stem + "ió"]


def _participle(stem: str, ending: str) -> str:
    if ending == "ar":
        return stem + "ado"
    return stem + ("ído" if _has_hiatus(stem) else "ido")


def _has_hiatus(stem: str) -> bool:
    """A strong vowel before -er or -ir: the i that follows is stressed, or becomes y (leyó)."""
    return stem.endswith(("a", "e", "o"))
