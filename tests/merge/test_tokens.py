"""Vocabularies that differ: every row stands for its token, as in `mergekit`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from merge.make_expected import run_reference
from merge.tiny import HIDDEN, tensors, write
from safetensors.torch import load_file
from torch import Tensor

from worthit.errors import InputError
from worthit.merge.plan import plan_text
from worthit.merge.run import merge

WORDS = {
    "base": ["<unk>", "<s>", "the", "cat", "sat", "on", "mat", "dog", "ran", "far"],
    "a": ["<unk>", "<s>", "cat", "the", "sat", "sun", "mat", "dog", "ran", "far", "moon"],
    "b": ["<unk>", "<s>", "the", "cat", "sun", "on", "mat", "dog", "ran"],
}
# Rows of a table beyond its tokens: padding.
ROWS = {"base": 12, "a": 12, "b": 10}


def tokenizer(folder: Path, words: list[str], special: tuple[str, ...] = ("<unk>", "<s>")) -> None:
    """A tokenizer of whole words, in the files that `transformers` reads."""
    import tokenizers
    from tokenizers.models import WordLevel

    made = tokenizers.Tokenizer(WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.add_special_tokens(list(special))
    made.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": "<unk>",
        "bos_token": "<s>",
        "added_tokens_decoder": {
            str(words.index(t)): {
                "content": t,
                "lstrip": False,
                "normalized": False,
                "rstrip": False,
                "single_word": False,
                "special": True,
            }
            for t in special
        },
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, words in WORDS.items():
        write(tmp_path / name, tensors(name, vocab=ROWS[name]), vocab_size=ROWS[name])
        tokenizer(tmp_path / name, words)
    return tmp_path


def table(folder: Path, name: str = "model.embed_tokens.weight") -> dict[str, Tensor]:
    """Rows of an output's table by token."""
    data = json.loads((folder / "tokenizer.json").read_text())
    ids = data["model"]["vocab"] | {t["content"]: t["id"] for t in data["added_tokens"]}
    rows = load_file(folder / "model.safetensors")[name]
    config = json.loads((folder / "config.json").read_text())
    assert config["vocab_size"] == len(rows)
    return {token: rows[i] for token, i in ids.items()}


def row(model: str, word: str, name: str = "model.embed_tokens.weight") -> Tensor:
    return tensors(model, vocab=ROWS[model])[name][WORDS[model].index(word)]


def merged(folder: Path, text: str, out: str = "out") -> Path:
    (folder / f"{out}.yml").write_text(text)
    merge(folder / f"{out}.yml", folder / out)
    return folder / out


LINEAR = "merge_method: linear\nmodels: [a, b]\nparameters: {weight: 1}\n"


@pytest.mark.parametrize("table_name", ["model.embed_tokens.weight", "lm_head.weight"])
def test_a_union_by_hand(folder: Path, table_name: str) -> None:
    out = merged(folder, LINEAR + "tokenizer_source: union\n")
    found = table(out, table_name)
    assert set(found) == set(WORDS["a"]) | set(WORDS["b"])
    for word in ("the", "cat", "<s>"):  # both have it, under other numbers
        wanted = (row("a", word, table_name) + row("b", word, table_name)) / 2
        torch.testing.assert_close(found[word], wanted)
    # One has it: the other takes its row, and the mean is that row.
    torch.testing.assert_close(found["moon"], row("a", "moon", table_name))
    torch.testing.assert_close(found["on"], row("b", "on", table_name))


def test_the_base_gives_what_others_lack(folder: Path) -> None:
    text = "merge_method: task_arithmetic\nbase_model: base\nmodels: [a, b]\n"
    out = merged(folder, text + "parameters: {weight: 1}\ntokenizer_source: base\n")
    found = table(out)
    assert set(found) == set(WORDS["base"])
    # `far`: b has no such token and stands in with the base's row, so it adds nothing.
    torch.testing.assert_close(found["far"], row("a", "far"))
    both = row("a", "cat") + row("b", "cat") - row("base", "cat")
    torch.testing.assert_close(found["cat"], both)


def test_a_model_beside_gives_its_tokenizer_alone(folder: Path) -> None:
    out = merged(folder, LINEAR + "tokenizer_source: base\n", "of-a")
    assert set(table(out)) == set(WORDS["a"])
    out = merged(folder, LINEAR + "tokenizer_source: ./base\n", "beside")
    assert set(table(out)) == set(WORDS["base"])


def test_rules_for_single_tokens_and_padding(folder: Path) -> None:
    text = LINEAR + (
        "tokenizer:\n"
        "  source: union\n"
        "  pad_to_multiple_of: 16\n"
        "  tokens:\n"
        "    cat: {source: b, force: true}\n"
        "    <new>: {source: {kind: model_token, model: a, token: dog}}\n"
        "    <zero>: {source: {kind: zero}}\n"
    )
    out = merged(folder, text)
    found = table(out)
    torch.testing.assert_close(found["cat"], row("b", "cat"))
    torch.testing.assert_close(found["<new>"], row("a", "dog"))
    assert found["<zero>"].abs().sum() == 0
    rows = load_file(out / "model.safetensors")["model.embed_tokens.weight"]
    n = len(found)
    assert len(rows) == 16
    assert n == 14
    for padding in rows[n:]:
        torch.testing.assert_close(padding, rows[:n].mean(0))


def test_a_few_rows_at_a_time(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = LINEAR + "tokenizer: {source: union, pad_to_multiple_of: 16}\n"
    whole = merged(folder, text, "whole")
    monkeypatch.setattr("worthit.merge.run.PIECE", 3 * HIDDEN)
    monkeypatch.setattr("worthit.merge.tokens.MEAN_ROWS", 5)
    pieces = merged(folder, text, "pieces")
    for name, value in load_file(whole / "model.safetensors").items():
        torch.testing.assert_close(load_file(pieces / "model.safetensors")[name], value)


def test_the_tokenizer_that_is_written_speaks_of_these_rows(folder: Path) -> None:
    transformers = pytest.importorskip("transformers")
    out = merged(folder, LINEAR + "tokenizer_source: union\n")
    loaded = transformers.AutoTokenizer.from_pretrained(out)
    assert set(loaded.get_vocab()) == set(WORDS["a"]) | set(WORDS["b"])
    ids = loaded("the cat on mat").input_ids
    assert loaded.convert_ids_to_tokens(ids) == ["the", "cat", "on", "mat"]
    model = transformers.AutoModelForCausalLM.from_pretrained(out)
    assert model.get_input_embeddings().weight.shape[0] == len(loaded)


def test_what_is_wrong_with_tokens(folder: Path) -> None:
    def refused(text: str) -> str:
        with pytest.raises(InputError) as caught:
            plan_text(LINEAR + text, folder=folder)
        return str(caught.value)

    assert "tokenizer_source: missing, and" in refused("")
    said = refused("tokenizer: {source: union, tokens: {x: {source: nobody}}}")
    assert "tokenizer.tokens.x.source: nobody is not merged" in said
    rule = "{kind: model_token, model: a, token: zebra}"
    said = refused(f"tokenizer: {{source: union, tokens: {{x: {{source: {rule}}}}}}}")
    assert "a has no token 'zebra'" in said
    rule = "{kind: model_token, model: a, token_id: 99}"
    said = refused(f"tokenizer: {{source: union, tokens: {{x: {{source: {rule}}}}}}}")
    assert "a has no row 99, its table has 12" in said
    assert "tokenizer_source: ./none: no such file or folder" in refused("tokenizer_source: ./none")
    (folder / "a" / "tokenizer.json").unlink()
    assert "a has no tokenizer.json to take the vocabulary from" in refused(
        "tokenizer_source: base"
    )


@pytest.mark.parametrize("source", ["union", "base", "./b"])
@pytest.mark.parametrize("method", ["linear", "ties"])
def test_live(folder: Path, source: str, method: str) -> None:
    """Its union numbers new tokens in no fixed order: rows are compared token by token."""
    pytest.importorskip("mergekit", reason="mergekit is not installed")
    base = "base_model: ./base\n" if method == "ties" else ""
    text = (
        f"merge_method: {method}\n{base}models: [{{model: ./a}}, {{model: ./b}}]\n"
        f"parameters: {{weight: 1, density: 0.6}}\ntokenizer_source: {source}\n"
    )
    if method == "linear" and source == "base":
        pytest.skip("without a base_model mergekit takes any of the models")
    run_reference(text, folder, folder / "reference")
    out = merged(
        folder, text.replace(", density: 0.6", "" if method == "linear" else ", density: 0.6")
    )
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        found, wanted = table(out, name), table(folder / "reference", name)
        assert found.keys() == wanted.keys()
        for token, value in wanted.items():
            torch.testing.assert_close(found[token], value, rtol=1e-5, atol=2e-6)


def test_unigrams_are_read_too(folder: Path) -> None:
    from worthit.merge.tokens import read_vocabulary

    data: dict[str, Any] = {"model": {"type": "Unigram", "vocab": [["<unk>", 0.0], ["a", -1.5]]}}
    (folder / "a" / "tokenizer.json").write_text(json.dumps(data))
    found = read_vocabulary(folder / "a")
    assert found is not None
    assert found.ids == {"<unk>": 0, "a": 1}
