"""Preferences in text to token ids: what is asked, what is said to it, and where that ends.

A prompt is encoded by itself, as it is when the model answers it, and the completion after it, so
that no token straddles the two; what ends a turn is the completion's last token. Messages go
through the model's chat template, plain text is taken as it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from worthit.align.sequences import Demonstration, Ids, Pair, Rated
from worthit.decode.tokenizer import Tokenizer
from worthit.errors import InputError
from worthit.spec.preferences import Example, Message, Preferences, Turns

# As many lines are named in a message.
N_NAMED = 5


@dataclass(frozen=True)
class Encoded:
    """A data set in ids; of the lists, those of its shape are filled.

    Attributes:
        prompts: of examples that say nothing about answers.
        too_long: lines left out because they do not fit.
    """

    pairs: list[Pair] = field(default_factory=list)
    rated: list[Rated] = field(default_factory=list)
    shown: list[Demonstration] = field(default_factory=list)
    prompts: list[Ids] = field(default_factory=list)
    too_long: list[int] = field(default_factory=list)

    @property
    def warnings(self) -> list[str]:
        """What was left out, in words."""
        if not self.too_long:
            return []
        lines = ", ".join(map(str, self.too_long[:N_NAMED]))
        more = f" and {len(self.too_long) - N_NAMED} others" if len(self.too_long) > N_NAMED else ""
        return [
            f"{len(self.too_long)} examples are longer than --max-length and left out: lines "
            f"{lines}{more}"
        ]


def encode(data: Preferences, tokenizer: Tokenizer, *, max_length: int) -> Encoded:
    """`data` in the ids of `tokenizer`.

    Args:
        max_length: tokens of a prompt with its longest completion; longer ones are left out.

    Raises:
        InputError: a tokenizer that knows no end, messages without a template to lay them out,
            answers of several turns that it cannot lay out, or nothing that is short enough.
    """
    if not tokenizer.stop_ids:
        raise InputError(
            "the model's tokenizer names no token that ends an answer (eos_token); without one a "
            "model learns no end: add it to tokenizer_config.json or generation_config.json"
        )
    found = Encoded()
    for example in data:
        prompt = prompt_ids(example.prompt, tokenizer)
        answers = [answer_ids(a, tokenizer, example) for a in example.answers]
        if len(prompt) + max((len(a) for a in answers), default=1) > max_length:
            found.too_long.append(example.line)
        elif data.shape == "pair":
            found.pairs.append(Pair(prompt=prompt, chosen=answers[0], rejected=answers[1]))
        elif data.shape == "binary":
            is_good = bool(example.label)
            found.rated.append(Rated(prompt=prompt, completion=answers[0], is_good=is_good))
        elif data.shape == "demonstration":
            found.shown.append(Demonstration(prompt=prompt, completion=answers[0]))
        else:
            found.prompts.append(prompt)
    if len(found.too_long) == len(data):
        raise InputError(
            f"every example is longer than --max-length {max_length}; raise it, up to the model's "
            "context"
        )
    return found


def prompt_ids(prompt: Turns, tokenizer: Tokenizer) -> Ids:
    """A prompt up to where the answer begins; never empty, for something must come before it."""
    if isinstance(prompt, str):
        ids = tokenizer.encode(prompt)
    elif tokenizer.chat_template is None:
        raise InputError(
            "the data are messages and the model has no chat template; give prompts as text, or "
            "use a model that is for chat"
        )
    else:
        ids = tokenizer.encode_chat(_plain(prompt))
    return tuple(ids) or (tokenizer.stop_ids[0],)


def answer_ids(answer: Turns, tokenizer: Tokenizer, example: Example) -> Ids:
    """An answer with the token that ends it."""
    if isinstance(answer, str):
        text = answer
    elif len(answer) == 1:
        text = answer[0].content
    else:
        return _turns_ids(answer, tokenizer, example)
    return (*tokenizer.encode(text, has_special=False), tokenizer.stop_ids[0])


def _turns_ids(answer: tuple[Message, ...], tokenizer: Tokenizer, example: Example) -> Ids:
    """What follows a prompt where the conversation goes on, up to the end of the last turn.

    Every token of it counts, those of the user between two answers too, as in TRL.
    """
    assert not isinstance(example.prompt, str)
    if answer[0].role != "assistant":
        raise InputError(
            f"line {example.line}: answers part at a turn of the {answer[0].role}, and a model "
            "learns what the assistant says; let them part where it speaks"
        )
    before = tokenizer.render_chat(_plain(example.prompt))
    after = tokenizer.render_chat(_plain((*example.prompt, *answer)), is_answered=True)
    if not after.startswith(before):
        raise InputError(
            f"line {example.line}: the chat template lays out what was asked otherwise once more "
            "follows, so that an answer of several turns has no beginning; put all turns but the "
            "last into the prompt"
        )
    ids = tokenizer.encode(after[len(before) :], has_special=False)
    # Templates may write a line end after the token that ends a turn; no model is to say that.
    ends = [i for i, token in enumerate(ids) if token in tokenizer.stop_ids]
    return (*ids[: ends[-1] + 1],) if ends else (*ids, tokenizer.stop_ids[0])


def _plain(turns: Sequence[Message]) -> list[dict[str, str]]:
    return [{"role": m.role, "content": m.content} for m in turns]


def texts(prompts: Iterable[Turns]) -> list[str]:
    """Prompts as a judge reads them: roles before what was said, where there are several turns."""
    found = []
    for prompt in prompts:
        if isinstance(prompt, str):
            found.append(prompt)
        elif len(prompt) == 1:
            found.append(prompt[0].content)
        else:
            found.append("\n\n".join(f"{m.role}: {m.content}" for m in prompt))
    return found


def decoded(completions: Sequence[Ids], tokenizer: Tokenizer) -> list[str]:
    """Completions as text, without what ends them."""
    return [tokenizer.decode(ids).strip() for ids in completions]
