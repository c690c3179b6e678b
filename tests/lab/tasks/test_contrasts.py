"""Contrast sets: as many as they say, no text on both sides, and what differs is what they say."""

from __future__ import annotations

import pytest

from worthit.lab.tasks import contrasts


@pytest.mark.parametrize(
    ("name", "n"), [("sentiment", 24), ("language", 12), ("truth", 40), ("refusal", 16)]
)
def test_pairs_are_distinct(name: str, n: int) -> None:
    pairs = getattr(contrasts, name)()
    assert len(pairs) == n
    positive, negative = (set(side) for side in zip(*pairs, strict=True))
    assert not positive & negative
    assert len(positive) == n


def test_only_what_is_said_differs() -> None:
    for a, b in contrasts.sentiment():
        changed = [(x, y) for x, y in zip(a.split(), b.split(), strict=True) if x != y]
        assert len(changed) == 2
    for a, b in contrasts.truth():
        assert a.rpartition(" is ")[0] == b.rpartition(" is ")[0]
    right = dict(contrasts.capitals())
    assert right["The capital of Nepal is"] == "Kathmandu"
    for true, false in contrasts.truth():
        question, _, city = true.rpartition(" ")
        assert right[question] == city.rstrip(".")
        assert right[question] != false.rpartition(" ")[2].rstrip(".")
