"""Worked sums: every row beside plain arithmetic, and a checker of steps beside a loop."""

from __future__ import annotations

import re

import pytest
import torch

from worthit.lab.tasks import task, worked_sums
from worthit.lab.tasks.worked_sums import decode, n_right_steps, questions, read_answer, read_sum
from worthit.train.batch import IGNORE


@pytest.mark.parametrize("n_tries", [0, 2])
def test_every_row_ends_in_right_working(n_tries: int) -> None:
    data = task("worked-sums", n_terms=3, n_tries=n_tries, n_held_out=64)
    assert worked_sums.row_length(3, n_tries) == data.seq_len
    tries, n_wrong = 0, 0
    for split in ("train", "test"):
        for batch in data.held_out(split):
            for inputs, targets in zip(
                batch.input_ids.tolist(), batch.targets.tolist(), strict=True
            ):
                learned = [t for t in targets if t != IGNORE]
                text = decode(learned)
                first = next(i for i, t in enumerate(targets) if t != IGNORE)
                before = decode(inputs[: first + 1])
                prompt, _, tried = before.partition("=")
                # Targets follow their inputs.
                assert inputs[first + 1 : first + len(learned)] == learned[:-1]
                total = eval(prompt) % 10
                answer = read_answer(text)
                assert answer is not None
                assert answer == read_sum(prompt + "=").answer
                assert answer[-1] == str(total)
                assert answer[:-1] == "".join(re.findall(r":(\d)", text))
                for left, right in re.findall(r"([^:;#]+):(\d+);", text):
                    assert eval(left) % 10 == int(right)
                steps = [tried_ for tried_ in tried.split("~") if tried_]
                tries += len(steps)
                for one in steps:
                    is_right = n_right_steps(read_sum(prompt + "="), one)
                    n_wrong += not is_right[1]
    if n_tries:
        assert 0.7 < tries / 128 < 1.3
        assert 0.35 < n_wrong / tries < 0.65
    else:
        assert tries == 0


def test_steps_are_checked_exactly() -> None:
    asked = read_sum("7+8+9=")
    for text, expected in [
        ("", (0, True)),
        ("7+", (0, True)),
        ("7+8:5;", (1, True)),
        ("7+8:4;", (0, False)),
        ("7+8:5;5+9:4;", (2, True)),
        ("7+8:5;5+9:4;#4", (3, True)),
        ("7+8:5;5+9:4;#7", (2, False)),
        ("7+8:5;#5", (1, False)),
        ("7+8:5;5+9:4;4+1:5;", (2, False)),
        ("7+8:4;4+9:3;~7+8:5;", (1, True)),
        ("7+8:5;5#5", (1, False)),
    ]:
        assert n_right_steps(asked, text) == expected, text


def test_questions_are_of_the_test_split_and_differ() -> None:
    found = questions(40, n_terms=3, seed=1)
    assert len({one.prompt for one in found}) == 40
    data = task("worked-sums", n_terms=3, seed=1, n_held_out=512)
    generator = torch.Generator().manual_seed(5)
    shown = {
        decode(r).partition("=")[0] + "=" for r in data.batch(generator, 512).input_ids.tolist()
    }
    assert not shown & {one.prompt for one in found}
    assert questions(40, n_terms=3, seed=1) == found
