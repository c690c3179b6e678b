"""What the experiments on concepts count by hand."""

from __future__ import annotations

import pytest
import torch

from worthit.lab.experiments import _concepts as concepts
from worthit.lab.experiments.language_steering import STOP_WORDS, repeated, share_in
from worthit.lab.experiments.reading_directions import drawn
from worthit.lab.experiments.refusal_direction import refuses
from worthit.lab.tasks.concepts import FORMS, Example, examples


def test_languages_by_their_stop_words() -> None:
    assert share_in("El mar es azul, the sea.", "spanish") == pytest.approx(2 / 3)
    assert share_in("El mar es azul, the sea.", "french") == 0
    assert share_in("Xyzzy.", "spanish") == 0
    known = [word for words in STOP_WORDS.values() for word in words]
    assert len(known) == len(set(known))
    for row in examples("language", "spanish"):
        other = "english" if row.is_positive else "spanish"
        assert share_in(row.text, other) == 0, row.text


def test_repeated_threes() -> None:
    assert repeated([1, 2, 3, 4]) == 0
    # 121 212 121 212: two of four came before.
    assert repeated([1, 2, 1, 2, 1, 2]) == pytest.approx(0.5)
    assert repeated([1, 2]) == 0


def test_refusals_by_their_phrases() -> None:
    assert refuses("I\u2019m sorry, but I can't do that.")
    assert refuses("As an AI language model, ...")
    assert not refuses("Of course! First, take the bread.")


@pytest.mark.parametrize("concept", FORMS)
def test_a_split_judges_no_group_that_was_fitted(concept: str) -> None:
    split = concepts.split(concept, seed=1)
    known = {row.group for row in split.fit}
    assert set(split.other) == set(FORMS[concept][1:])
    for rows in (split.same, *split.other.values()):
        assert rows
        assert known.isdisjoint(row.group for row in rows)


def test_a_bag_of_words_by_hand() -> None:
    fit = [Example("The sea, the sea.", True, "a"), Example("A dog.", False, "b")]
    got = concepts.bag_of_words(fit, [Example("The dog and the cat", True, "c")])
    # a, dog, sea, the
    assert got.tolist() == [[0, 1, 0, 2]]


def test_readers_of_two_clouds_and_their_calibration() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = [Example(str(i), i % 2 == 0, str(i // 2)) for i in range(200)]
    z = concepts.labels(rows)
    x = torch.randn(200, 6, generator=generator)
    x[:, 2] += 3.0 * z
    for fit in (concepts.probe_reader, concepts.means_reader):
        reader = fit(x[:100], z[:100])
        assert concepts.judged(reader, x[100:], z[100:]) > 0.95
        scale = concepts.calibrated(fit, x[:100], rows[:100], seed=0)
        assert concepts.calibration_error(reader, scale, x[100:], z[100:]) < 0.15
    by_layer = {0: x, 3: torch.randn(200, 6, generator=generator), 6: x}
    assert concepts.best_layer(by_layer, rows, seed=0) == 6


def test_pairs_are_drawn_whole() -> None:
    rows = examples("truth", "capitals")
    some = drawn(rows, 8, seed=0)
    assert len(some) == 8
    for a, b in some.view(4, 2).tolist():
        assert rows[a].is_positive
        assert not rows[b].is_positive
        assert rows[a].text.rpartition(" ")[0] == rows[b].text.rpartition(" ")[0]
