"""Preference data: every shape and file that is read, and every way in which a file is wrong."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from worthit.spec.preferences import (
    N_SHOWN,
    Example,
    Message,
    PreferenceError,
    from_rows,
    read_preferences,
)

USER = {"role": "user", "content": "Past of go?"}
PAIR = {"prompt": "Past of go?", "chosen": "went", "rejected": "goed"}


def say(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def turn(role: str, text: str) -> Message:
    return Message(role=role, content=text)


def write(folder: Path, *rows: Any, name: str = "prefs.jsonl") -> Path:
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


# --- what is read --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "shape", "example"),
    [
        (PAIR, "pair", Example(prompt="Past of go?", chosen="went", rejected="goed", line=1)),
        (
            {"prompt": "Past of go?", "completion": "goed", "label": False},
            "binary",
            Example(prompt="Past of go?", chosen="goed", label=False, line=1),
        ),
        (
            {"prompt": "Past of go?", "completion": "went"},
            "demonstration",
            Example(prompt="Past of go?", chosen="went", line=1),
        ),
        ({"prompt": "Past of go?"}, "prompt", Example(prompt="Past of go?", line=1)),
        (
            {"chosen": [USER, say("went")], "rejected": [USER, say("goed")]},
            "pair",
            Example(
                prompt=(turn("user", "Past of go?"),),
                chosen=(turn("assistant", "went"),),
                rejected=(turn("assistant", "goed"),),
                line=1,
            ),
        ),
        # UltraFeedback: a prompt in text that the conversations repeat.
        (
            {"prompt": USER["content"], "chosen": [USER, say("a")], "rejected": [USER, say("b")]},
            "pair",
            Example(
                prompt=(turn("user", "Past of go?"),),
                chosen=(turn("assistant", "a"),),
                rejected=(turn("assistant", "b"),),
                line=1,
            ),
        ),
        (
            {"prompt": [USER], "completion": [say("went")], "label": 1},
            "binary",
            Example(
                prompt=(turn("user", "Past of go?"),),
                chosen=(turn("assistant", "went"),),
                label=True,
                line=1,
            ),
        ),
        (
            {"messages": [USER, say("went")]},
            "demonstration",
            Example(
                prompt=(turn("user", "Past of go?"),), chosen=(turn("assistant", "went"),), line=1
            ),
        ),
    ],
)
def test_every_shape(tmp_path: Path, row: Any, shape: str, example: Example) -> None:
    read = read_preferences(write(tmp_path, row))
    assert read.shape == shape
    assert list(read) == [example]


@pytest.mark.parametrize(
    ("chosen", "rejected", "split"),
    [
        # HH-RLHF: both dialogues in full; what the assistant says last is the answer.
        (
            "\n\nHuman: Hi\n\nAssistant: Hello there",
            "\n\nHuman: Hi\n\nAssistant: Hello you",
            ("\n\nHuman: Hi\n\nAssistant:", " Hello there", " Hello you"),
        ),
        ("She goes home", "She going home", ("She", " goes home", " going home")),
        ("went", "goed", ("", "went", "goed")),
        ("yes", "yes sir", ("", "yes", "yes sir")),
        ("yes sir", "yes", ("", "yes sir", "yes")),
    ],
)
def test_texts_without_a_prompt_share_their_beginning(
    tmp_path: Path, chosen: str, rejected: str, split: tuple[str, str, str]
) -> None:
    (only,) = read_preferences(write(tmp_path, {"chosen": chosen, "rejected": rejected}))
    assert (only.prompt, only.chosen, only.rejected) == split
    assert only.prompt + only.chosen == chosen
    assert only.prompt + only.rejected == rejected


@pytest.mark.parametrize("form", ["list", "object", "jsonl under another name"])
def test_json_in_its_forms(tmp_path: Path, form: str) -> None:
    rows = [PAIR, {**PAIR, "prompt": "Past of be?", "chosen": "was"}]
    text = {
        "list": json.dumps(rows, indent=1),
        "object": json.dumps({"data": rows}),
        "jsonl under another name": "\n".join(map(json.dumps, rows)),
    }[form]
    path = tmp_path / "prefs.json"
    path.write_text("﻿" + text, encoding="utf-8")
    assert [e.chosen for e in read_preferences(path)] == ["went", "was"]


def test_members_of_a_list_know_their_lines(tmp_path: Path) -> None:
    path = tmp_path / "prefs.json"
    path.write_text(f"[\n {json.dumps(PAIR)},\n\n {json.dumps(PAIR)}\n]")
    assert [e.line for e in read_preferences(path)] == [2, 4]


def test_parquet_and_saved_datasets(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    rows = [PAIR, {**PAIR, "prompt": "Past of be?"}]
    data = datasets.Dataset.from_list(rows)
    data.to_parquet(tmp_path / "prefs.parquet")
    data.save_to_disk(str(tmp_path / "saved"))
    datasets.DatasetDict({"train": data}).save_to_disk(str(tmp_path / "several"))
    expected = from_rows(rows).examples
    for path in ("prefs.parquet", "saved", "several/train"):
        assert read_preferences(tmp_path / path).examples == expected
    assert from_rows(data).examples == expected
    with pytest.raises(PreferenceError, match=r"several splits; name one: .*several/train"):
        read_preferences(tmp_path / "several")


def test_columns_that_are_not_read_are_named(tmp_path: Path) -> None:
    read = read_preferences(write(tmp_path, {**PAIR, "score": 3}, {**PAIR, "id": "x"}))
    assert read.ignored == ("score", "id")


def test_nothing_is_changed(tmp_path: Path) -> None:
    path = write(tmp_path, {**PAIR, "chosen": " went \r\n"}, PAIR, PAIR)
    before = path.read_bytes()
    read = read_preferences(path)
    assert path.read_bytes() == before
    assert [e.chosen for e in read] == [" went \r\n", "went", "went"]


# --- what is wrong -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ([1], "must be an object with keys, got"),
        ({"question": "a", "answer": "b"}, "has answer, question; known are chosen and rejected;"),
        ({"chosen": "a"}, "has chosen and no rejected; a pair needs both"),
        ({"rejected": "a", "prompt": "b"}, "has rejected and no chosen; a pair needs both"),
        ({**PAIR, "label": True}, "has chosen and rejected beside label"),
        ({"prompt": "a", "label": True}, "has a label and no completion"),
        ({"completion": "a"}, "has a completion and no prompt"),
        ({**PAIR, "chosen": "goed"}, "chosen and rejected are the same answer"),
        ({**PAIR, "chosen": " goed\n"}, "chosen and rejected are the same answer"),
        ({**PAIR, "chosen": " "}, "chosen: is empty"),
        ({**PAIR, "rejected": ""}, "rejected: is empty"),
        ({**PAIR, "rejected": 5}, "rejected: must be text or a list of messages, got 5"),
        ({**PAIR, "chosen": []}, "chosen: is empty"),
        ({**PAIR, "chosen": [say("a")]}, "chosen is messages and rejected text"),
        ({**PAIR, "chosen": [USER], "rejected": [say("a")]}, "chosen: must end with the assist"),
        ({**PAIR, "chosen": ["a"], "rejected": [say("a")]}, r"chosen\[0\]: must be a message"),
        (
            {"messages": [{"role": "bot", "content": "a"}]},
            r"messages\[0\].role: must be one of system, user, assistant, tool, got 'bot'",
        ),
        (
            {"messages": [USER, {"role": "assistant", "content": None}]},
            r"messages\[1\].content: must be text, got null",
        ),
        ({"messages": [USER]}, "messages: must be a conversation that ends with"),
        ({"prompt": "a", "completion": "b", "label": "good"}, "label: must be true or false, got"),
        ({"prompt": "a", "completion": "b", "label": 2}, "label: must be true or false, got 2"),
        ({"prompt": "a", "completion": "\t"}, "completion: is empty"),
        ({"prompt": " "}, "prompt: is empty"),
        ({**PAIR, "chosen": "\ud83d"}, "chosen: holds half of a character"),
    ],
)
def test_wrong_rows(tmp_path: Path, row: Any, message: str) -> None:
    path = write(tmp_path, PAIR, row)
    # Alone, so that it is not of another shape than the line before it.
    with pytest.raises(PreferenceError, match=rf"^prefs\.jsonl: line 1: {message}"):
        read_preferences(write(tmp_path, row))
    assert path.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"holds no examples"),
        (b"\n\n", r"holds no examples"),
        (
            json.dumps(PAIR).encode() + b'\n{"prompt": "a", "cho',
            r"line 2: broken JSON: unterminated string.*the file ends inside this line",
        ),
        (b'{"prompt": }\n' + json.dumps(PAIR).encode(), r"line 1: broken JSON: expected value"),
        (b'\n{"prompt": "caf\xe9"}\n', r"line 2: is not UTF-8 text \(byte 16 of the line\)"),
        (b'{"prompt": "a", "prompt": "b"}', r"line 1: says prompt twice"),
        (b"[" * 100_000, r"line 1: is nested too deeply"),
    ],
)
def test_broken_lines(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "prefs.jsonl"
    path.write_bytes(content)
    with pytest.raises(PreferenceError, match=message):
        read_preferences(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'[{"prompt": "a"},\n {"prompt": "b"', r"line 2: broken JSON: .*the file ends here"),
        (b'[{"prompt": "a"},\n {"prompt": "b"}', r"line 2: broken JSON: a comma or .*ends here"),
        (b'[{"prompt": "a"}\n{"prompt": "b"}]', r"line 2: broken JSON: a comma or the closing"),
        (b'[{"prompt": "a",\n "prompt": "b"}]', r"line 1: says prompt twice"),
        (b"[]", r"holds no examples"),
        (b'{"rows": {}}', r"line 1: has rows; known are"),
        (b'{"rows": {},\n "n": 1}', r"must be a list of rows"),
        (b'{"rows": [}', r"line 1: broken JSON"),
        (b'[\n"\xff"]', r"line 2: is not UTF-8 text"),
    ],
)
def test_broken_json(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "prefs.json"
    path.write_bytes(content)
    with pytest.raises(PreferenceError, match=message):
        read_preferences(path)


def test_everything_wrong_is_said_at_once(tmp_path: Path) -> None:
    path = tmp_path / "prefs.jsonl"
    rows = [
        json.dumps(PAIR),
        json.dumps({"prompt": "a", "completion": "b", "label": True}),
        json.dumps({**PAIR, "chosen": "goed"}),
        json.dumps({**PAIR, "chosen": [say("went")], "rejected": [say("goed")]}),
        '{"prompt',
    ]
    path.write_text("\n".join(rows))
    with pytest.raises(PreferenceError) as caught:
        read_preferences(path)
    assert caught.value.exit_code == 2
    assert caught.value.context == "prefs.jsonl"
    found = [p.split(": ")[0] for p in caught.value.problems]
    assert found == ["line 2", "line 3", "line 4", "line 5"]
    said = str(caught.value)
    assert "is a binary, and line 1 is a pair; one file has one shape: split it" in said
    assert "holds messages, and line 1 text" in said


def test_of_many_problems_of_a_kind_the_first_are_shown_and_all_counted(tmp_path: Path) -> None:
    n = N_SHOWN + 7
    bad = [{**PAIR, "chosen": i} for i in range(n)]
    with pytest.raises(PreferenceError) as caught:
        read_preferences(write(tmp_path, *bad, {**PAIR, "rejected": ""}))
    problems = caught.value.problems
    assert len(problems) == N_SHOWN + 2
    assert problems[-1].startswith(f"line {N_SHOWN + 1} to line {n}: 7 more like: chosen: must be")
    assert problems[-2].startswith(f"line {n + 1}: rejected: is empty")


def test_files_that_are_not_there_or_no_preferences(tmp_path: Path) -> None:
    write(tmp_path, PAIR)
    with pytest.raises(PreferenceError, match=r"no such file; did you mean prefs\.jsonl\?"):
        read_preferences(tmp_path / "pref.jsonl")
    with pytest.raises(PreferenceError, match=r"are read from \.jsonl"):
        read_preferences(tmp_path / "prefs.csv")
    with pytest.raises(PreferenceError, match="is a folder and no saved dataset"):
        read_preferences(tmp_path)


def test_parquet_that_is_cut_off(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    path = tmp_path / "prefs.parquet"
    datasets.Dataset.from_list([PAIR]).to_parquet(path)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(PreferenceError, match=r"prefs\.parquet: is no Parquet file, or is cut off"):
        read_preferences(path)


def test_the_page_runs_and_shows_what_is_said(tmp_path: Path) -> None:
    page = Path(__file__).resolve().parents[2] / "docs" / "preferences.md"
    text = page.read_text(encoding="utf-8")
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        exec(compile(block, page.name, "exec"), {})
    lines = [json.dumps(PAIR).encode()] * 9
    lines[1] = json.dumps({"prompt": "a", "completion": "b", "label": True}).encode()
    lines[2] = json.dumps({**PAIR, "chosen": "goed"}).encode()
    lines[4] = b'{"prompt": "caf\xe9"}'
    lines[8] = b'{"cho": "w'
    (tmp_path / "prefs.jsonl").write_bytes(b"\n".join(lines))
    with pytest.raises(PreferenceError) as caught:
        read_preferences(tmp_path / "prefs.jsonl")
    assert str(caught.value) in text


def test_rows_in_memory_are_numbered() -> None:
    with pytest.raises(PreferenceError, match=r"^row 2: chosen and rejected are the same"):
        from_rows([PAIR, {**PAIR, "chosen": "goed"}])
