"""What `--draft` means, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from decode.engine.test_engine import model_of
from decode.tiny import checkpoint

import worthit
from worthit.decode.speculative import draft_model
from worthit.decode.speculative.draft_model import DraftModel
from worthit.decode.speculative.lookahead import Lookahead
from worthit.decode.speculative.lookup import PromptLookup
from worthit.decode.speculative.options import (
    DraftChoice,
    make_drafter,
    n_draft_tokens,
    parse_draft,
)
from worthit.decode.speculative.shallow import SharedExit
from worthit.decode.tokenizer import load_tokenizer
from worthit.errors import InputError


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("none", DraftChoice("none")),
        ("lookup", DraftChoice("lookup")),
        ("lookahead", DraftChoice("lookahead")),
        ("layers:3", DraftChoice("layers", "3")),
        ("exit:12", DraftChoice("exit", "12")),
        ("heads:./my heads", DraftChoice("heads", "./my heads")),
        ("smollm2-135m-instruct", DraftChoice("model", "smollm2-135m-instruct")),
        ("C:/models/a", DraftChoice("model", "C:/models/a")),
    ],
)
def test_forms(text: str, want: DraftChoice) -> None:
    assert parse_draft(text) == want


@pytest.mark.parametrize("text", ["", "layers:0", "layers:x", "exit:-1", "heads:", "heads", "exit"])
def test_what_is_no_form_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="--draft"):
        parse_draft(text)


def test_each_form_makes_its_drafter(tmp_path: Path) -> None:
    checkpoint(tmp_path, num_hidden_layers=4)
    model, tokenizer = worthit.load_model(tmp_path), load_tokenizer(tmp_path)

    def made(text: str, *, is_alone: bool = False):
        choice = parse_draft(text)
        return make_drafter(choice, model, tokenizer=tokenizer, is_alone=is_alone)

    assert made("none") is None
    assert isinstance(made("lookup"), PromptLookup)
    assert isinstance(made("exit:2", is_alone=True), SharedExit)
    shared = made("exit:2")
    assert isinstance(shared, DraftModel)
    assert len(shared.model.layers) == 2
    assert len(made("layers:1").model.layers) == 3
    assert isinstance(made(str(tmp_path)), DraftModel)
    ahead = made("lookahead")
    assert isinstance(ahead, Lookahead)
    assert n_draft_tokens(ahead, None) == ahead.n_nodes
    assert n_draft_tokens(shared, None) == 7
    assert n_draft_tokens(shared, 3) == 3


def test_a_draft_of_another_vocabulary_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint(tmp_path)
    target = model_of("grouped")  # 40 tokens
    monkeypatch.setattr(draft_model, "MOST_PADDING", 64)
    with pytest.raises(InputError, match="must share the target's vocabulary, got 3"):
        make_drafter(DraftChoice("model", str(tmp_path)), target)
