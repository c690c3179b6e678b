"""Tokenizers: of folders as `tokenizers` reads them, of `.gguf` metadata as they were written."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import gguf
import pytest
from decode.tiny import TEXT, byte_level, checkpoint
from tokenizers import Tokenizer as Backend

from worthit.decode._gguf_tokenizer import merges_of, tokenizer_of_gguf
from worthit.decode.tokenizer import load_tokenizer, tokenizer_of_folder
from worthit.errors import InputError, SpecError

STRINGS = [
    "Hello, world!",
    "3.14159 and 2026-11-22, 1000000",
    "emoji 👩‍👩‍👧 🇪🇸 🙂",
    "<|im_start|>user\nhi<|im_end|>\n",
    "naïve façade Ñandú",
    "  leading and   inner  spaces\t\ttabs  ",
    "def f(x):\n    return x**2\n\n\n",
    "中文字符 日本語 한국어",
    "",
    "it's we'll I'M THEY'RE",
    "a\u0301 \u200b zero",
    "<|endoftext|> x",
]


def write(path: Path, **facts: Any) -> Path:
    writer = gguf.GGUFWriter(path, "llama")
    for key, value in facts.items():
        full = "tokenizer.chat_template" if key == "chat_template" else f"tokenizer.ggml.{key}"
        if isinstance(value, bool):
            writer.add_bool(full, value)
        elif isinstance(value, int):
            writer.add_uint32(full, value)
        elif isinstance(value, str):
            writer.add_string(full, value)
        else:
            writer.add_array(full, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def metadata_of(backend: Backend) -> dict[str, Any]:
    """What llama.cpp's converter writes of a byte-level tokenizer."""
    data = json.loads(backend.to_str())
    tokens = [token for token, _ in sorted(backend.get_vocab().items(), key=lambda kv: kv[1])]
    special = {token["id"] for token in data["added_tokens"]}
    return {
        "model": "gpt2",
        "pre": "smollm",
        "tokens": tokens,
        "token_type": [3 if i in special else 1 for i in range(len(tokens))],
        "merges": [" ".join(merge) for merge in data["model"]["merges"]],
        "bos_token_id": 1,
        "eos_token_id": 2,
        "add_bos_token": False,
    }


def test_a_folder_is_read_with_its_special_tokens(tmp_path: Path) -> None:
    checkpoint(tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    backend = byte_level()
    for text in STRINGS:
        assert tokenizer.encode(text) == backend.encode(text).ids
        assert tokenizer.decode(tokenizer.encode(text), has_special=True) == text
    assert tokenizer.stop_ids == (2, 0)
    assert tokenizer.special == {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}


def test_metadata_give_the_tokenizer_they_were_written_from(tmp_path: Path) -> None:
    backend = byte_level()
    tokenizer = tokenizer_of_gguf(write(tmp_path / "t.gguf", **metadata_of(backend)))
    for text in STRINGS:
        assert tokenizer.encode(text) == backend.encode(text).ids, text
        assert tokenizer.decode(tokenizer.encode(text), has_special=True) == text
    assert tokenizer.stop_ids == (2, 0)


def test_the_first_token_is_added_where_the_file_says_so(tmp_path: Path) -> None:
    facts = {**metadata_of(byte_level()), "add_bos_token": True}
    tokenizer = tokenizer_of_gguf(write(tmp_path / "t.gguf", **facts))
    assert tokenizer.encode("the")[0] == 1
    assert tokenizer.encode("the", has_special=False)[0] != 1


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"pre": "unheard-of"}, "tokenizer.ggml.pre: must be one of .*, got 'unheard-of'"),
        ({"model": "wordpiece"}, "tokenizer.ggml.model: must be gpt2 or llama, got 'wordpiece'"),
        ({"tokens": []}, "holds no tokenizer"),
        ({"eos_token_id": 10**6}, "does not fit together"),
        ({"merges": ["one-part"]}, "does not fit together"),
        ({"merges": ["zz qq"]}, "does not fit together"),
    ],
)
def test_metadata_that_are_wrong(changed: dict[str, Any], says: str, tmp_path: Path) -> None:
    facts = {**metadata_of(byte_level()), **changed}
    facts = {k: v for k, v in facts.items() if v != []}
    with pytest.raises(SpecError, match=says):
        tokenizer_of_gguf(write(tmp_path / "t.gguf", **facts))


# --- SentencePiece ------------------------------------------------------------------------------

PIECES = ["▁", "t", "h", "e", "c", "a", "o", "n", "s", "d", "th", "▁t", "▁th", "▁the", "at"]
PIECES += ["▁c", "cat", "▁cat", "an", "and", "▁and", "he", "on", "▁o", "▁s", "sat", "▁sat", "ca"]


def sentencepiece_facts() -> dict[str, Any]:
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), *PIECES]
    scores = [0.0] * 259 + [-float((i * 7) % len(PIECES)) for i in range(len(PIECES))]
    return {
        "model": "llama",
        "tokens": tokens,
        "scores": scores,
        "token_type": [2, 3, 3] + [6] * 256 + [1] * len(PIECES),
        "bos_token_id": 1,
        "eos_token_id": 2,
        "unknown_token_id": 0,
    }


def by_score(text: str, tokens: list[str], scores: list[float]) -> list[int]:
    """SentencePiece's BPE as its authors describe it: join the best two neighbours, again."""
    numbers = {token: i for i, token in enumerate(tokens)}
    parts = list("▁" + text.replace(" ", "▁"))
    while True:
        joins = [
            (scores[numbers[a + b]], -i)
            for i, (a, b) in enumerate(itertools.pairwise(parts))
            if a + b in numbers
        ]
        if not joins:
            break
        at = -max(joins)[1]
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    ids = []
    for part in parts:
        ids += [numbers[part]] if part in numbers else [3 + byte for byte in part.encode()]
    return ids


def test_sentencepiece_joins_by_score(tmp_path: Path) -> None:
    facts = sentencepiece_facts()
    tokenizer = tokenizer_of_gguf(write(tmp_path / "t.gguf", **facts))
    for text in ("the cat sat on the mat", "and then", "hathecandan", "é🙂 the", " the  cat"):
        expected = by_score(text, facts["tokens"], facts["scores"])
        assert tokenizer.encode(text) == [1, *expected], text
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_merges_come_by_the_score_of_what_they_make() -> None:
    merges = merges_of(["a", "b", "ab", "abb", "bb"], [0, 0, -2, -1, -3])
    assert merges == [("a", "bb"), ("ab", "b"), ("a", "b"), ("b", "b")]


# --- chat ---------------------------------------------------------------------------------------


def test_a_chat_is_rendered_as_transformers_does(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    checkpoint(tmp_path)
    messages = [
        {"role": "system", "content": "Be <b>brief</b>."},
        {"role": "user", "content": "Hi, ¿qué tal?"},
    ]
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    ours = tokenizer_of_folder(tmp_path)
    assert ours.render_chat(messages) == theirs.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=False
    )


def test_a_template_file_comes_first_and_runs_in_a_sandbox(tmp_path: Path) -> None:
    checkpoint(tmp_path)
    template = tmp_path / "chat_template.jinja"
    template.write_text("{{ messages[0]['content'] }}!")
    tokenizer = tokenizer_of_folder(tmp_path)
    assert tokenizer.render_chat([{"role": "user", "content": "Hi"}]) == "Hi!"
    for attack in ("{{ ''.__class__.__mro__ }}", "{{ messages.append(1) }}"):
        template.write_text(attack)
        with pytest.raises(InputError, match="the model's chat template"):
            tokenizer_of_folder(tmp_path).render_chat([{"role": "user", "content": "Hi"}])


def test_a_template_that_chokes_on_a_message_is_no_bug_of_ours(tmp_path: Path) -> None:
    checkpoint(tmp_path)
    template = "{% for call in messages[0]['tool_calls'] %}{{ call }}{% endfor %}"
    (tmp_path / "chat_template.jinja").write_text(template)
    tokenizer = tokenizer_of_folder(tmp_path)
    with pytest.raises(InputError, match="the model's chat template: 'int' object is not iterable"):
        tokenizer.render_chat([{"role": "user", "content": "Hi", "tool_calls": 3}])


def test_templates_may_refuse(tmp_path: Path) -> None:
    checkpoint(tmp_path)
    (tmp_path / "chat_template.jinja").write_text("{{ raise_exception('no system') }}")
    with pytest.raises(InputError, match="no system"):
        tokenizer_of_folder(tmp_path).render_chat([{"role": "system", "content": "x"}])


def test_a_folder_without_a_tokenizer(tmp_path: Path) -> None:
    checkpoint(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(SpecError, match=r"holds no tokenizer\.json"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(SpecError, match="no tokenizer"):
        load_tokenizer(tmp_path)


def test_control_the_training_text_has_more_than_one_byte_a_character() -> None:
    assert any(len(text.encode()) > len(text) for text in TEXT)
