"""Preferences in text to ids: conversations as TRL lays them out, and what cannot be learned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import transformers
import trl
from decode import tiny

from worthit.align.text import encode
from worthit.decode.tokenizer import Tokenizer, load_tokenizer
from worthit.errors import InputError
from worthit.spec.preferences import from_rows


def said(*turns: str) -> list[dict[str, str]]:
    """Turns in order, the roles by their first letters: `u:the cat`."""
    roles = {"s": "system", "u": "user", "a": "assistant"}
    return [{"role": roles[t[0]], "content": t[2:]} for t in turns]


COMMON = said("s:sat", "u:the cat", "a:on", "u:the mat")
ROWS: dict[str, dict[str, Any]] = {
    "one turn each, of a conversation": {
        "chosen": [*COMMON, *said("a:and the dog")],
        "rejected": [*COMMON, *said("a:log")],
    },
    "several turns": {
        "chosen": [*COMMON, *said("a:and", "u:the dog", "a:sat on")],
        "rejected": [*COMMON, *said("a:log", "u:the dog", "a:the log")],
    },
    "a prompt of its own, and other lengths": {
        "prompt": COMMON,
        "chosen": said("a:and", "u:the dog", "a:sat on"),
        "rejected": said("a:log"),
    },
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    tiny.checkpoint(folder)
    return folder


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Tokenizer:
    return load_tokenizer(folder)


@pytest.mark.parametrize("name", ROWS)
def test_conversations_are_laid_out_as_trl_does(
    name: str, folder: Path, tokenizer: Tokenizer
) -> None:
    row = ROWS[name]
    (pair,) = encode(from_rows([row]), tokenizer, max_length=200).pairs
    theirs = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"), chat_template=tiny.TEMPLATE
    )
    expected = trl.apply_chat_template(trl.maybe_extract_prompt(dict(row)), theirs)
    texts = {side: tokenizer.decode(getattr(pair, side), has_special=True) for side in expected}
    assert texts["prompt"] == expected["prompt"]
    # The line end after a turn's end is the template's, and no model says it.
    assert texts["chosen"] + "\n" == expected["chosen"]
    assert texts["rejected"] + "\n" == expected["rejected"]
    assert pair.chosen[-1] == pair.rejected[-1] == tokenizer.stop_ids[0]


def test_answers_part_where_the_assistant_speaks(tokenizer: Tokenizer) -> None:
    rows = [
        {
            "chosen": said("u:the cat", "a:sat", "u:on", "a:the mat"),
            "rejected": said("u:the cat", "a:sat", "u:and", "a:the log"),
        }
    ]
    with pytest.raises(InputError, match="line 1: answers part at a turn of the user"):
        encode(from_rows(rows), tokenizer, max_length=200)


def test_a_template_that_lays_out_the_past_otherwise_is_refused(folder: Path) -> None:
    tokenizer = load_tokenizer(folder)
    # As templates do that take the thoughts out of earlier turns.
    tokenizer.chat_template = "{{ messages | length }} turns: " + tiny.TEMPLATE
    with pytest.raises(InputError, match="put all turns but the last into the prompt"):
        encode(from_rows([ROWS["several turns"]]), tokenizer, max_length=200)
