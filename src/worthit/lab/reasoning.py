"""Questions with exact checks, for `worthit.reason`: tasks of the lab, and sums for any model.

A `Kind` is all that a strategy has to know of a task: its questions, how an answer is read, which
tokens end a step or the thinking, and how another answer is asked for.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from worthit.errors import InputError
from worthit.lab.tasks import grammar_tutor, task, worked_sums
from worthit.reason.generator import Draft
from worthit.reason.question import Question, ReadAnswer
from worthit.reason.revise import Again
from worthit.reason.think import Thinking
from worthit.reason.verify import Score, is_value, stated_number, value_of

if TYPE_CHECKING:
    from worthit.decode.tokenizer import Tokenizer

INSTRUCTION = "Answer with the number alone."
CHECK_AGAIN = "Check that again. Answer with the number alone."
# Sums whose parts have one digit, and all there are of them.
LARGEST_DIGIT = 9
OPERATIONS = {"+": "plus", "-": "minus", "*": "times"}


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of question.

    Attributes:
        questions: with the same checks for every strategy.
        read_answer: from a text.
        max_tokens: of a whole answer.
        step_stops: tokens that end a step, for search; none where an answer has no steps.
        step_score: of texts that are not whole, from 0 to 1; None without an exact check of steps.
        thinking: for budget forcing; None where thinking and answer are not told apart.
        again: for revision; None where the model cannot be asked.
    """

    questions: tuple[Question, ...]
    read_answer: ReadAnswer
    max_tokens: int
    step_stops: tuple[int, ...] = ()
    step_score: Score | None = None
    thinking: Thinking | None = None
    again: Again | None = None

    @property
    def is_checked(self) -> bool:
        """Whether answers have an exact check."""
        return all(question.is_checked for question in self.questions)


def sums(n: int, *, n_terms: int, seed: int) -> Kind:
    """Worked sums, for a model trained on them."""
    asked = worked_sums.questions(n, n_terms=n_terms, seed=seed)
    by_text = {one.prompt: one for one in asked}

    def steps(question: Question, drafts: Sequence[Draft]) -> list[float]:
        """1 while every step is right, 0 after a wrong one."""
        one = by_text[question.text]
        return [float(worked_sums.n_right_steps(one, draft.text)[1]) for draft in drafts]

    def again(question: Question, drafts: Sequence[Draft]) -> list[int]:
        """Every try so far without its answer, each with the mark of a try behind it."""
        tries = [draft.text.partition("#")[0] + "~" for draft in drafts]
        return [*question.prompt, *worked_sums.encode("".join(tries))]

    return Kind(
        questions=tuple(
            Question(
                text=one.prompt,
                prompt=tuple(worked_sums.encode(one.prompt)),
                is_right=_checks(one),
            )
            for one in asked
        ),
        read_answer=worked_sums.read_answer,
        max_tokens=worked_sums.answer_length(n_terms),
        step_stops=(worked_sums.STEP,),
        step_score=steps,
        thinking=Thinking(
            ends=(worked_sums.ANSWER,), close=(worked_sums.ANSWER,), wait=(worked_sums.AGAIN,)
        ),
        again=again,
    )


def _checks(one: worked_sums.Sum) -> Callable[[str], bool]:
    return lambda answer: worked_sums.check(one, answer)


def tutor(n: int, *, seed: int) -> Kind:
    """Questions of the grammar tutor's test split: an answer has no steps."""
    data = task("grammar-tutor")
    assert isinstance(data, grammar_tutor.GrammarTutor)
    examples = random.Random(seed).sample(data.examples["test"], n)
    # The model's context ends where the longest question and its answer do.
    longest = max(len(grammar_tutor.encode(example.prompt)) for example in examples)
    return Kind(
        questions=tuple(
            Question(
                text=example.prompt,
                prompt=tuple(grammar_tutor.encode(example.prompt)),
                is_right=_checks_form(example.prompt),
            )
            for example in examples
        ),
        read_answer=str,
        max_tokens=grammar_tutor.SEQ_LEN - longest,
    )


def _checks_form(prompt: str) -> Callable[[str], bool]:
    return lambda answer: grammar_tutor.check(prompt, answer)


def arithmetic(n: int, tokenizer: Tokenizer, *, seed: int, signs: str = "+") -> Kind:
    """Sums of two digits for a language model, in its own chat where it has one.

    Args:
        n: questions, drawn without repeats; at most as many as there are.
        signs: of `+`, `-` and `*`; differences are not below zero.
    """
    asked = [
        f"{a} {sign} {b}"
        for sign in signs
        for a in range(1, LARGEST_DIGIT + 1)
        for b in range(1, LARGEST_DIGIT + 1)
        if sign != "-" or a >= b
    ]
    random.Random(seed).shuffle(asked)
    return Kind(
        questions=tuple(asked_in_words(tokenizer, f"What is {one}?") for one in asked[:n]),
        read_answer=stated_number,
        max_tokens=24,
        again=lambda question, drafts: _conversation(
            tokenizer, question.text, [draft.text for draft in drafts]
        ),
    )


def one(text: str, tokenizer: Tokenizer, *, is_checked: bool) -> Kind:
    """A single question as it is, checked by the arithmetic in it where there is any.

    Raises:
        InputError: it must be checked, and there is none.
    """
    value = value_of(text)
    if value is None and is_checked:
        asked_in_words(tokenizer, text)
    prompt = (
        tokenizer.encode(text)
        if tokenizer.chat_template is None
        else tokenizer.encode_chat([{"role": "user", "content": text}])
    )
    question = Question(
        text=text,
        prompt=tuple(prompt),
        is_right=(lambda answer: False) if value is None else is_value(value),
        is_checked=value is not None,
    )
    return Kind(
        questions=(question,),
        read_answer=str.strip if value is None else stated_number,
        max_tokens=256,
        again=lambda question, drafts: _conversation(
            tokenizer, question.text, [draft.text for draft in drafts]
        ),
    )


def limited(kind: Kind, max_tokens: int | None) -> Kind:
    """`kind` with answers of at most so many tokens."""
    return kind if max_tokens is None else replace(kind, max_tokens=max_tokens)


def asked_in_words(tokenizer: Tokenizer, text: str) -> Question:
    """The question `text` for a language model, checked by the arithmetic that stands in it.

    Raises:
        InputError: there is none, or more than one.
    """
    value = value_of(text)
    if value is None:
        raise InputError(
            f"--check arithmetic: needs one sum or product of whole numbers, such as 12 * 7, in "
            f"the prompt, got {text!r}"
        )
    return Question(
        text=text, prompt=tuple(_conversation(tokenizer, text, [])), is_right=is_value(value)
    )


def _conversation(tokenizer: Tokenizer, text: str, answers: Sequence[str]) -> list[int]:
    """A chat that has come to the next answer; lines of text for a model without a template."""
    if tokenizer.chat_template is None:
        lines = [f"Question: {text} {INSTRUCTION}\nAnswer:"]
        lines += [f" {a.strip()}\nQuestion: {CHECK_AGAIN}\nAnswer:" for a in answers]
        return tokenizer.encode("".join(lines))
    messages = [{"role": "user", "content": f"{text} {INSTRUCTION}"}]
    for answer in answers:
        messages.append({"role": "assistant", "content": answer.strip()})
        messages.append({"role": "user", "content": CHECK_AGAIN})
    return tokenizer.encode_chat(messages)
