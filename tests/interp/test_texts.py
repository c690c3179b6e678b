"""Files in: every problem with its line, and states where they are asked for."""

from __future__ import annotations

import json

import pytest
import torch
from interp.tiny import model_of
from torch.testing import assert_close

from worthit.errors import InputError
from worthit.interp.hooks import activations
from worthit.interp.texts import fact_of, kind_of, read_rows, states


def written(tmp_path, *lines) -> str:
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(x if isinstance(x, str) else json.dumps(x) for x in lines))
    return str(path)


def test_good_rows_come_as_they_are(tmp_path) -> None:
    rows = [{"positive": "sí", "negative": "no"}, {"positive": "a", "negative": "b"}]
    assert read_rows(written(tmp_path, rows[0], "", rows[1]), "pairs") == rows


def test_every_problem_is_named_with_its_line(tmp_path) -> None:
    path = written(
        tmp_path,
        {"positive": "a", "negative": "b"},
        '{"positive": "a", "negat',
        {"positive": "a", "negative": "a"},
        {"text": "a", "label": 1},
        [1, 2],
        {"positive": 3, "negative": " "},
        {"positive": "a", "negative": "b", "colour": "x"},
        {"positive": "a", "negative": "b"},
    )
    with pytest.raises(InputError) as caught:
        read_rows(path, "pairs")
    text = str(caught.value)
    assert "8 problems" in text
    for part in (
        "line 2: is no JSON",
        "line 3: positive and negative are the same",
        "needs positive, negative; these keys are of labels",
        "line 5: must be an object",
        "line 6: positive: must be a text, got int",
        "line 6: negative: must not be empty",
        "line 7: unknown keys colour",
        "line 8: the same as line 1",
    ):
        assert part in text, part


def test_files_that_are_none(tmp_path) -> None:
    with pytest.raises(InputError, match="there is no such file"):
        read_rows(tmp_path / "none.jsonl", "pairs")
    with pytest.raises(InputError, match="is empty"):
        read_rows(written(tmp_path, ""), "pairs")
    (tmp_path / "bytes.jsonl").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="must be UTF-8"):
        read_rows(tmp_path / "bytes.jsonl", "pairs")


def test_facts_and_questions(tmp_path) -> None:
    row = {
        "prompt": "{} is in",
        "subject": "Paris",
        "target": "Rome",
        "neighbours": [["Oslo is in", "Norway"]],
    }
    fact = fact_of(read_rows(written(tmp_path, row), "facts")[0])
    assert (fact.target, fact.neighbours) == (" Rome", (("Oslo is in", " Norway"),))
    with pytest.raises(InputError, match="line 1: prompt: must have"):
        read_rows(written(tmp_path, {**row, "prompt": "is in"}), "facts")
    with pytest.raises(InputError, match="neighbours: must be a list of"):
        read_rows(written(tmp_path, {**row, "neighbours": ["Oslo"]}), "facts")
    path = written(tmp_path, {"question": "1+1?", "answer": ["2", "two"]})
    assert kind_of(path, ("labels", "questions")) == "questions"
    with pytest.raises(InputError, match="answer: must be a text, or a list"):
        read_rows(written(tmp_path, {"question": "1+1?", "answer": []}), "questions")


def test_states_are_those_of_each_text_alone() -> None:
    model = model_of("attention", "attention")
    rows = [[1, 2, 3], [4, 5], [6, 7, 8], [9, 1, 2, 3]]
    names = ["embed", "layers.0.resid_post"]
    for position in ("last", "mean"):
        found = states(model, rows, names, position=position, batch=2)
        for name in names:
            for row, got in zip(rows, found[name], strict=True):
                x = activations(model, torch.tensor([row]), name)[name][0].detach()
                assert_close(got, x[-1] if position == "last" else x[1:].mean(0))
    with pytest.raises(InputError, match="texts 2: need 2 tokens or more"):
        states(model, [[1, 2], [3]], ["embed"], position="mean")
