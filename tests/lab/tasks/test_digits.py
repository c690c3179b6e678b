"""Digits: the images of scikit-learn as tokens."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from worthit.errors import InputError
from worthit.lab.tasks import digits, task
from worthit.train.batch import IGNORE

pytest.importorskip("sklearn")


def test_rows_are_the_images() -> None:
    from sklearn.datasets import load_digits

    data = task("digits")
    known = load_digits()
    expected = Counter(
        (tuple(int(p) for p in pixels), int(digit))
        for pixels, digit in zip(known.data, known.target, strict=True)
    )
    found: Counter[tuple[tuple[int, ...], int]] = Counter()
    for split in ("train", "validation", "test"):
        for batch in data.held_out(split):
            rows = zip(batch.input_ids.tolist(), batch.targets.tolist(), batch.groups, strict=True)
            for inputs, targets, group in rows:
                assert inputs[-1] == 17
                assert targets[:-1] == [IGNORE] * 64
                digit = targets[-1] - 18
                assert group == f"digit {digit}"
                found[tuple(inputs[:-1]), digit] += 1
    assert found == expected
    assert sum(found.values()) == 1797
    # No image occurs twice, so that no split can hold a copy of another's.
    assert max(found.values()) == 1
    assert (data.vocab_size, data.seq_len) == (28, 65)


def test_splits_are_even_and_seeded() -> None:
    data, other = digits.build(), digits.build(seed=1)
    sizes = {split: len(rows.input_ids) for split, rows in data.rows.items()}
    assert abs(sizes["test"] / 1797 - 0.2) < 0.01
    assert abs(sizes["validation"] / 1797 - 0.1) < 0.01
    assert set(Counter(data.rows["test"].groups).values()) <= {35, 36, 37}
    assert torch.equal(digits.build().rows["test"].input_ids, data.rows["test"].input_ids)
    assert not torch.equal(other.rows["test"].input_ids, data.rows["test"].input_ids)


def test_fewer_levels() -> None:
    data = digits.build(n_levels=2)
    pixels = data.rows["train"].input_ids[:, :-1]
    assert set(pixels.unique().tolist()) == {0, 1}
    assert data.vocab_size == 2 + 1 + 10
    with pytest.raises(InputError, match="n_levels: must lie between 2 and 17, got 1"):
        digits.build(n_levels=1)
