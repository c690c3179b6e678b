"""The 600 forms against a table typed out by hand, and the rules on verbs beyond the twenty."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from worthit.lab.tasks._verbs import LANGUAGES, VERBS_FILE, english, spanish, verbs

TABLE = Path(__file__).with_name("verb_forms.txt")
TENSES = ["present", "past", "future", "conditional", "perfect"]


def typed_forms() -> dict[tuple[str, str, str, str, str], str]:
    """By verb in both languages, tense, person and language."""
    found = {}
    for paragraph in TABLE.read_text(encoding="utf-8").split("\n\n")[1:]:
        heading, *lines = paragraph.splitlines()
        en, es = heading.split()
        for line in lines:
            tense, forms = line.split(": ")
            for language, part in zip(("en", "es"), forms.split(" | "), strict=True):
                for person, form in zip("123", part.split(", "), strict=True):
                    found[en, es, tense, person, language] = form
    return found


def test_every_form_is_the_one_of_the_typed_table() -> None:
    typed = typed_forms()
    assert len(typed) == 600
    assert len({key[:2] for key in typed}) == 20
    assert sorted({key[2] for key in typed}) == sorted(TENSES)
    made = {
        (verb.infinitives["en"], verb.infinitives["es"], tense, person, language): form
        for verb in verbs()
        for language in LANGUAGES
        for (tense, person), form in verb.forms[language].items()
    }
    assert made == typed


@pytest.mark.parametrize(
    ("verb", "third", "past"),
    [
        ("kiss", "kisses", "kissed"),
        ("fix", "fixes", "fixed"),
        ("buzz", "buzzes", "buzzed"),
        ("wash", "washes", "washed"),
        ("try", "tries", "tried"),
        ("play", "plays", "played"),
        ("drop", "drops", "dropped"),
        ("cook", "cooks", "cooked"),
        ("show", "shows", "showed"),
        ("mix", "mixes", "mixed"),
        ("agree", "agrees", "agreed"),
    ],
)
def test_english_spelling(verb: str, third: str, past: str) -> None:
    forms = english(verb)
    assert (forms["present", "3"], forms["past", "1"]) == (third, past)


@pytest.mark.parametrize(
    ("verb", "past", "participle"),
    [
        ("llegar", ("llegué", "llegaste", "llegó"), "llegado"),
        ("cruzar", ("crucé", "cruzaste", "cruzó"), "cruzado"),
        ("sacar", ("saqué", "sacaste", "sacó"), "sacado"),
        ("creer", ("creí", "creíste", "creyó"), "creído"),
        ("partir", ("partí", "partiste", "partió"), "partido"),
    ],
)
def test_spanish_spelling(verb: str, past: tuple[str, str, str], participle: str) -> None:
    forms = spanish(verb)
    assert tuple(forms["past", person] for person in "123") == past
    assert forms["perfect", "3"] == f"ha {participle}"


def test_regular_is_what_rules_give() -> None:
    by_name = {verb.infinitives["en"]: verb for verb in verbs()}
    # Eat is irregular, comer is not; only the participle of escribir is; leer follows its spelling.
    assert ("past", "1") not in by_name["eat"].regular["en"]
    assert len(by_name["eat"].regular["es"]) == 15
    assert len(by_name["write"].regular["es"]) == 12
    assert len(by_name["read"].regular["es"]) == 15
    assert len(by_name["say"].regular["es"]) == 0  # every column has its exception
    regular_in_both = [
        name
        for name, verb in by_name.items()
        if all(len(verb.regular[language]) == 15 for language in LANGUAGES)
    ]
    assert regular_in_both == [
        *("work", "stop", "study", "search", "live", "talk"),
        *("plan", "touch", "receive", "copy", "fear"),
    ]
    unseen = {name: verb.unseen for name, verb in by_name.items() if verb.unseen}
    assert set(unseen) <= set(regular_in_both)
    assert sorted(unseen.values()) == ["test"] * 4 + ["validation"] * 2


def test_no_exception_is_stated_that_the_rules_give() -> None:
    rules = {"en": english, "es": spanish}
    names = {"en": "english", "es": "spanish"}
    for entry in json.loads(VERBS_FILE.read_text(encoding="utf-8"))["verbs"]:
        for language, rule in rules.items():
            for column, value in entry.get(language, {}).items():
                infinitive = entry[names[language]]
                assert rule(infinitive, {column: value}) != rule(infinitive), (infinitive, column)
