"""Sets whose words alone do not tell: counted, not trusted."""

from __future__ import annotations

import re
from collections import Counter, defaultdict

import pytest

from worthit.errors import UnknownName
from worthit.lab.tasks.concepts import FORMS, examples, halves

EVERY = [(concept, form) for concept, forms in FORMS.items() for form in forms]


def surplus(concept: str, form: str) -> dict[str, Counter[str]]:
    """By group, how much oftener each word comes on the positive side."""
    found: dict[str, Counter[str]] = defaultdict(Counter)
    for row in examples(concept, form):
        for word in re.findall(r"\w+", row.text.casefold()):
            found[row.group][word] += 1 if row.is_positive else -1
    return {group: Counter({w: n for w, n in c.items() if n}) for group, c in found.items()}


@pytest.mark.parametrize(("concept", "form"), EVERY)
def test_sides_are_even_and_texts_differ(concept: str, form: str) -> None:
    rows = examples(concept, form)
    assert len(rows) >= 48
    assert 2 * sum(row.is_positive for row in rows) == len(rows)
    assert len({row.text for row in rows}) == len(rows)
    for group in {row.group for row in rows}:
        sides = Counter(row.is_positive for row in rows if row.group == group)
        assert sides[True] == sides[False]


@pytest.mark.parametrize(("concept", "form"), [one for one in EVERY if one[0] != "language"])
def test_words_that_tell_in_one_group_come_in_no_other(concept: str, form: str) -> None:
    if form == "kinds":
        # Every kind is right of one group and wrong of another.
        total: Counter[str] = Counter()
        for counts in surplus(concept, form).values():
            total.update(counts)
        assert not any(total.values())
        return
    groups: dict[str, set[str]] = defaultdict(set)
    for row in examples(concept, form):
        for word in re.findall(r"\w+", row.text.casefold()):
            groups[word].add(row.group)
    for group, counts in surplus(concept, form).items():
        assert all(groups[word] == {group} for word in counts), (group, counts)


def test_other_forms_have_other_words_that_tell() -> None:
    for concept, (one, other) in (
        ("sentiment", ("report", "opinion")),
        ("refusal", ("order", "question")),
    ):
        first, second = ({w for c in surplus(concept, f).values() for w in c} for f in (one, other))
        assert len(first) >= 12
        assert not first & second - {"feed", "help", "up"}, concept


def test_statements_are_true_by_hand() -> None:
    true = {
        form: {r.text for r in examples("truth", form) if r.is_positive} for form in FORMS["truth"]
    }
    false = {
        form: {r.text for r in examples("truth", form) if not r.is_positive}
        for form in FORMS["truth"]
    }
    assert "The capital of France is Paris." in true["capitals"]
    assert "The capital of France is Madrid." in false["capitals"]
    assert "The capital of France is not Madrid." in true["negated"]
    assert "Madrid is a city in France." in false["cities"]
    assert "A trout is a kind of fish." in true["kinds"]
    assert "A trout is a kind of tree." in false["kinds"]
    numbers = {w: i for i, w in enumerate(["two", "three", "four", "five", "six", "seven"], 2)}
    numbers |= {"eight": 8, "nine": 9, "ten": 10, "eleven": 11, "twelve": 12}
    for text in true["sums"] | false["sums"]:
        a, b, c = re.fullmatch(r"(\w+) plus (\w+) is (\w+)\.", text.lower()).groups()
        if {a, b, c} <= set(numbers):
            is_right = numbers[a] + numbers[b] == numbers[c]
            assert is_right == (text in true["sums"])


def test_halves_share_no_group() -> None:
    rows = examples("truth", "capitals")
    one, other = halves(rows, seed=3)
    assert {r.group for r in one}.isdisjoint(r.group for r in other)
    assert len(one) == len(other) == len(rows) // 2
    assert halves(rows, seed=3)[0] == one != halves(rows, seed=4)[0]


def test_names_that_are_none() -> None:
    with pytest.raises(UnknownName, match="sentiment"):
        examples("sentimnt", "report")
    with pytest.raises(UnknownName, match="opinion"):
        examples("sentiment", "capitals")
