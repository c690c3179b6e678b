"""One row of preference data to an example, with everything that is wrong with it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from worthit.spec.codec import shown
from worthit.spec.preferences import Example, Message, Shape, Turns, plain

READ = {
    "pair": ("prompt", "chosen", "rejected"),
    "binary": ("prompt", "completion", "label"),
    "demonstration": ("prompt", "completion", "messages"),
    "prompt": ("prompt",),
}
ROLES = ("system", "user", "assistant", "tool")
# Where the last answer of a dialogue in plain text begins: Anthropic's HH-RLHF and its heirs.
SPEAKER = "\n\nAssistant:"
_WORD = re.compile(r"\S*$")
KNOWN_SHAPES = (
    "chosen and rejected; prompt, completion and label; prompt and completion; messages; or prompt"
)


def shape_of(data: Any) -> tuple[Shape | None, str]:
    """The shape that the keys of a row say, or what is wrong with them."""
    if not isinstance(data, Mapping):
        return None, f"must be an object with keys, got {shown(data)}"
    # Columns of Parquet are there for every row; what is null is not said.
    keys = {str(key) for key, value in data.items() if value is not None}
    if "chosen" in keys or "rejected" in keys:
        for there, missing in (("chosen", "rejected"), ("rejected", "chosen")):
            if missing not in keys:
                return None, f"has {there} and no {missing}; a pair needs both"
        if "completion" in keys or "label" in keys:
            extra = "completion" if "completion" in keys else "label"
            return None, f"has chosen and rejected beside {extra}: is it a pair or binary?"
        return "pair", ""
    if "label" in keys and "completion" not in keys:
        return None, "has a label and no completion that it is about"
    if "completion" in keys:
        if "prompt" not in keys:
            return None, 'has a completion and no prompt; write "prompt": "" if there was none'
        return ("binary" if "label" in keys else "demonstration"), ""
    if "messages" in keys:
        return "demonstration", ""
    if "prompt" in keys:
        return "prompt", ""
    there = ", ".join(sorted(map(str, data))) or "no keys"
    return None, f"has {there}; known are {KNOWN_SHAPES}"


def read_row(
    data: Mapping[str, Any], shape: Shape, line: int
) -> tuple[Example | None, list[str], list[str]]:
    """The example of a row of this shape, what is wrong with it, and the keys not read."""
    problems: list[str] = []
    unread = [str(key) for key in data if key not in READ[shape]]
    given = {
        key: _turns(data[key], key, problems)
        for key in READ[shape]
        if key != "label" and data.get(key) is not None
    }
    label = _label(data["label"], problems) if shape == "binary" else None
    if problems:
        return None, problems, unread
    example = _example(given, shape, label, line, problems)
    return (None if problems else example), problems, unread


def _example(
    given: dict[str, Turns], shape: Shape, label: bool | None, line: int, problems: list[str]
) -> Example | None:
    prompt = given.get("prompt", "")
    if shape == "prompt":
        if not plain(prompt).strip():
            problems.append("prompt: is empty, and there is nothing else")
        return Example(prompt=prompt, line=line)
    if shape == "pair":
        return _pair(given, prompt, "prompt" in given, line, problems)
    if "messages" in given:
        turns = given["messages"]
        if isinstance(turns, str) or turns[-1].role != "assistant":
            problems.append("messages: must be a conversation that ends with the assistant's turn")
            return None
        answer: Turns = turns[-1:]
        prompt = turns[:-1]
    else:
        prompt, (answer,) = _one_kind(prompt, (given["completion"],))
        _end_with_assistant("completion", answer, problems)
    _not_empty("messages" if "messages" in given else "completion", answer, problems)
    return Example(prompt=prompt, chosen=answer, label=label, line=line)


def _pair(
    given: dict[str, Turns], prompt: Turns, has_prompt: bool, line: int, problems: list[str]
) -> Example | None:
    chosen, rejected = given["chosen"], given["rejected"]
    if isinstance(chosen, str) != isinstance(rejected, str):
        kinds = ("messages", "text")
        problems.append(
            f"chosen is {kinds[isinstance(chosen, str)]} and rejected "
            f"{kinds[isinstance(rejected, str)]}; both must be of one kind"
        )
        return None
    for key, answer in (("chosen", chosen), ("rejected", rejected)):
        _not_empty(key, answer, problems)
        _end_with_assistant(key, answer, problems)
    if problems:
        return None
    if plain(chosen).strip() == plain(rejected).strip():
        problems.append(
            "chosen and rejected are the same answer: there is nothing to prefer; take the pair out"
        )
        return None
    if isinstance(chosen, str) and isinstance(rejected, str):
        if not has_prompt:
            prompt, chosen, rejected = split_texts(chosen, rejected)
        prompt, (better, worse) = _one_kind(prompt, (chosen, rejected))
    else:
        assert not isinstance(chosen, str)
        assert not isinstance(rejected, str)
        prompt, better, worse = _split_messages(prompt, chosen, rejected)
    return Example(prompt=prompt, chosen=better, rejected=worse, line=line)


def split_texts(chosen: str, rejected: str) -> tuple[str, str, str]:
    """Prompt and answers of two texts that begin alike: what they share is the prompt.

    Dialogues are cut before what the assistant says last, other texts at the start of the word
    where they part, so that no token is torn, and never so late that an answer is left empty.

    >>> split_texts("She goes home", "She going home")
    ('She', ' goes home', ' going home')
    """
    n = 0
    for n, (a, b) in enumerate(zip(chosen, rejected, strict=False)):  # noqa: B007
        if a != b:
            break
    else:
        n = min(len(chosen), len(rejected))
    shared = chosen[:n]
    spoken = shared.rfind(SPEAKER)
    if spoken >= 0:
        n = spoken + len(SPEAKER)
    else:
        n -= len(_WORD.findall(shared)[0])
        # The blank goes with the word after it, as tokenizers have it.
        n = len(chosen[:n].rstrip())
        if not chosen[n:].strip() or not rejected[n:].strip():
            n = 0
    return chosen[:n], chosen[n:], rejected[n:]


def _split_messages(
    prompt: Turns, chosen: tuple[Message, ...], rejected: tuple[Message, ...]
) -> tuple[Turns, Turns, Turns]:
    """Leading turns that both share belong to the prompt; a prompt that they repeat stands once."""
    n = 0
    limit = min(len(chosen), len(rejected)) - 1
    while n < limit and chosen[n] == rejected[n]:
        n += 1
    shared = chosen[:n]
    asked = (Message(role="user", content=prompt),) if isinstance(prompt, str) else prompt
    if not plain(asked).strip() or shared[-len(asked) :] == asked:
        asked = ()
    return (*asked, *shared), chosen[n:], rejected[n:]


def _one_kind(prompt: Turns, answers: tuple[Turns, ...]) -> tuple[Turns, tuple[Turns, ...]]:
    """Prompt and answers as messages if one of them is, as text otherwise."""
    if isinstance(prompt, str) and all(isinstance(a, str) for a in answers):
        return prompt, answers
    if isinstance(prompt, str):
        prompt = (Message(role="user", content=prompt),) if prompt else ()
    made = tuple(
        (Message(role="assistant", content=a),) if isinstance(a, str) else a for a in answers
    )
    return prompt, made


def _turns(data: Any, key: str, problems: list[str]) -> Turns:
    """Text or messages; what is wrong is added to `problems`."""
    if isinstance(data, str):
        _encodable(data, key, problems)
        return data
    if not isinstance(data, Sequence) or isinstance(data, (bytes, bytearray)):
        problems.append(f"{key}: must be text or a list of messages, got {shown(data)}")
        return ""
    messages = []
    for i, item in enumerate(data):
        where = f"{key}[{i}]"
        if not isinstance(item, Mapping):
            problems.append(
                f'{where}: must be a message, {{"role": ..., "content": ...}}, got {shown(item)}'
            )
            continue
        role, content = item.get("role"), item.get("content")
        if role not in ROLES:
            problems.append(f"{where}.role: must be one of {', '.join(ROLES)}, got {shown(role)}")
        if not isinstance(content, str):
            problems.append(f"{where}.content: must be text, got {shown(content)}")
            continue
        _encodable(content, f"{where}.content", problems)
        messages.append(Message(role=str(role), content=content))
    if not data:
        problems.append(f"{key}: is empty")
    return tuple(messages)


def _encodable(text: str, key: str, problems: list[str]) -> None:
    # JSON may escape half of a character ("\ud83d"): no tokenizer takes it.
    if text.isascii():
        return
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        problems.append(
            f"{key}: holds half of a character, {text[error.start]!a}, which is no text"
        )


def _label(data: Any, problems: list[str]) -> bool:
    if isinstance(data, bool):
        return data
    if data in (0, 1) and isinstance(data, int):
        return bool(data)
    problems.append(f"label: must be true or false, got {shown(data)}")
    return False


def _not_empty(key: str, answer: Turns, problems: list[str]) -> None:
    last = answer if isinstance(answer, str) else answer[-1].content
    if not last.strip():
        problems.append(f"{key}: is empty; an answer has at least one character")


def _end_with_assistant(key: str, answer: Turns, problems: list[str]) -> None:
    if not isinstance(answer, str) and answer[-1].role != "assistant":
        problems.append(f"{key}: must end with the assistant's turn, got {answer[-1].role}'s")
