"""Labels from judges of known quality, constitutions, and text to ids."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from decode import tiny

from worthit.align import logps_of
from worthit.align.constitution import Message, criticise, parse_constitution, read_constitution
from worthit.align.rlaif import OPTIONS, both_orders, is_certain, label, reliability
from worthit.align.text import encode
from worthit.align.voice import Voice
from worthit.decode.tokenizer import load_tokenizer
from worthit.errors import InputError
from worthit.nn.load import load_model
from worthit.spec.preferences import from_rows

# --- labels --------------------------------------------------------------------------------------


class Planted:
    """A judge that knows: right with probability `q`, and with a liking for the first place."""

    def __init__(self, q: float, bias: float) -> None:
        self.q, self.bias, self.n_asked = q, bias, 0
        self.drawn = random.Random(0)

    def likelihoods(self, prompts: Sequence[str], options: Sequence[str]) -> list[list[float]]:
        assert tuple(options) == OPTIONS
        self.n_asked += len(prompts)
        found = []
        for prompt in prompts:
            first = prompt.index("<right>") < prompt.index("<wrong>")
            opinion = first if self.drawn.random() < self.q else not first
            logit = (2.0 if opinion else -2.0) + self.bias
            p = 1 / (1 + math.exp(-logit))
            # Mass that other words have is no part of the label.
            found.append([math.log(0.3 * p), math.log(0.3 * (1 - p))])
        return found


def test_the_average_of_both_orders_has_no_place_in_it() -> None:
    n = 400
    answers = (["<right>"] * n, ["<wrong>"] * n)
    biased = label(Planted(1.0, bias=1.5), ["?"] * n, *answers)
    assert all(x.a_is_better > 0.5 for x in biased)
    assert all(x.bias > 0.1 for x in biased)
    # Asked in one order with the good one last, this judge would be wrong every time.
    strong = label(Planted(1.0, bias=4.0), ["?"] * n, *answers)
    assert not any(x.orders_agree for x in strong)
    assert all(x.a_is_better > 0.5 for x in strong)
    plain = label(Planted(1.0, bias=0.0), ["?"] * n, *answers)
    assert all(abs(x.bias) < 1e-9 for x in plain)


@pytest.mark.parametrize("q", [0.6, 0.9])
def test_labels_are_as_right_as_their_judge(q: float) -> None:
    n = 2000
    judge = Planted(q, bias=1.0)
    labels = label(judge, ["?"] * n, ["<right>"] * n, ["<wrong>"] * n)
    assert judge.n_asked == 2 * n
    agreeing = [x for x in labels if abs(x.a_is_better - 0.5) > 0.05]
    share = sum(x.a_is_better > 0.5 for x in agreeing) / len(agreeing)
    # Where both opinions agree: q^2 against (1 - q)^2.
    expected = q**2 / (q**2 + (1 - q) ** 2)
    assert share == pytest.approx(expected, abs=0.03)


def test_labels_by_hand() -> None:
    found = both_orders([math.log(0.6), math.log(0.2)], [math.log(0.25), math.log(0.25)])
    assert found.a_is_better == pytest.approx((0.75 + 0.5) / 2)
    assert found.bias == pytest.approx(0.125)
    assert not found.orders_agree
    tie = both_orders([0.0, 0.0], [0.0, 0.0])
    assert not is_certain(tie, 0.5)
    assert reliability([found, tie], certainty=0.6).n_certain == 1


def test_a_template_without_a_place_is_refused() -> None:
    with pytest.raises(InputError, match=r"must have \{second\}"):
        label(Planted(1, 0), [], [], [], template="{prompt} {first}")


# --- constitutions -------------------------------------------------------------------------------

TEXT = """\
# What our answers keep to.
An answer must be true.

Critique: Say what is rude
  in the last answer.
Revise: Say it politely.
Prefer: the politer one
"""


def test_a_constitution_is_read() -> None:
    first, second = parse_constitution(TEXT)
    assert first.critique.endswith("An answer must be true.")
    assert second.critique == "Say what is rude in the last answer."
    assert (second.revise, second.prefer) == ("Say it politely.", "the politer one")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("# nothing\n\n", "holds no principle"),
        ("a: b.\n\nCritique: x\nRevise: y\n", "line 3: says critique, revise and not prefer"),
    ],
)
def test_half_a_principle_is_named_with_its_line(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_constitution(text)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        read_constitution(tmp_path / "none.txt")


class Script:
    """A writer that says which conversation it was given."""

    def __init__(self) -> None:
        self.asked: list[list[Message]] = []

    def reply(
        self, conversations: Sequence[Sequence[Message]], *, max_tokens: int, seed: int
    ) -> list[str]:
        self.asked += [list(c) for c in conversations]
        return [
            f"said {len(self.asked) - len(conversations) + i}" for i in range(len(conversations))
        ]


def test_the_conversations_of_critique_and_revision() -> None:
    principles = parse_constitution("Critique: C?\nRevise: R?\nPrefer: P")
    writer = Script()
    (found,) = criticise(writer, ["hello"], principles, n_revisions=2)
    turns = [[(m["role"][0], m["content"]) for m in c] for c in writer.asked]
    ask = ("u", "hello")
    assert turns == [
        [ask],
        [ask, ("a", "said 0"), ("u", "C?")],
        [ask, ("a", "said 0"), ("u", "C?"), ("a", "said 1"), ("u", "R?")],
        [ask, ("a", "said 2"), ("u", "C?")],
        [ask, ("a", "said 2"), ("u", "C?"), ("a", "said 3"), ("u", "R?")],
    ]
    assert found.answer == "said 0"
    assert found.revisions == ("said 2", "said 4")
    assert found.is_changed
    (kept,) = criticise(writer, ["hello"], principles, answers=["mine"])
    assert kept.answer == "mine"


# --- text ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint")
    tiny.checkpoint(path)
    return path


def test_text_ends_and_messages_go_through_the_template(folder: Path) -> None:
    tokenizer = load_tokenizer(folder)
    end = tokenizer.stop_ids[0]
    plain = encode(
        from_rows([{"prompt": "the cat", "chosen": " sat", "rejected": " log"}]),
        tokenizer,
        max_length=32,
    ).pairs[0]
    assert tokenizer.decode([*plain.prompt, *plain.chosen[:-1]]) == "the cat sat"
    assert plain.chosen[-1] == plain.rejected[-1] == end
    chat = encode(
        from_rows(
            [
                {
                    "prompt": [{"role": "user", "content": "the cat"}],
                    "completion": [{"role": "assistant", "content": "sat"}],
                    "label": True,
                }
            ]
        ),
        tokenizer,
        max_length=64,
    ).rated[0]
    text = tokenizer.decode(chat.prompt, has_special=True)
    assert text == "<|im_start|>user\nthe cat<|im_end|>\n<|im_start|>assistant\n"
    assert chat.is_good


def test_what_is_too_long_is_left_out_and_said(folder: Path) -> None:
    tokenizer = load_tokenizer(folder)
    rows = [{"prompt": "the cat", "completion": " sat"}, {"prompt": "x" * 90, "completion": "y"}]
    found = encode(from_rows(rows), tokenizer, max_length=32)
    assert (len(found.shown), found.too_long) == (1, [2])
    assert "lines 2" in found.warnings[0]
    with pytest.raises(InputError, match="every example is longer"):
        encode(from_rows(rows[1:]), tokenizer, max_length=32)


def test_a_voice_judges_and_writes(folder: Path) -> None:
    tokenizer = load_tokenizer(folder)
    model: Any = load_model(folder)
    voice = Voice(model, tokenizer)
    ((one, two),) = voice.likelihoods(["the cat\n\nBetter: "], OPTIONS)
    ids = tokenizer.encode_chat([{"role": "user", "content": "the cat"}])
    head = (*ids, *tokenizer.encode("Better: ", has_special=False))
    expected = logps_of(
        model, [(head, tuple(tokenizer.encode(o, has_special=False))) for o in OPTIONS]
    )
    assert [one, two] == pytest.approx(expected.tolist())
    said = voice.reply([[{"role": "user", "content": "the"}]], max_tokens=5, seed=0)
    assert len(said) == 1
    with pytest.raises(InputError, match="do not fit the context"):
        voice.reply([[{"role": "user", "content": "the"}]], max_tokens=500, seed=0)
