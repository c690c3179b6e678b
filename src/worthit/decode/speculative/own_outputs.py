"""What a model says by itself, with the streams that it said it from: the text heads learn from.

A model made for chat is given the beginning of a conversation and writes both sides of it (Xu et
al. 2024, "Magpie: Alignment Data Synthesis from Scratch by Prompting Aligned LLMs with Nothing",
arXiv:2406.08464): whatever it was trained to be asked is what it asks. Other models go on from the
beginnings of documents. Nothing else is needed, and heads see the distribution that they will
draft; a file of prompts makes it that of one's own traffic.

All rows of a block go on together, a token a step: a turn's frame is forced, questions are drawn,
answers are drawn or greedy by turns. The features are those of that very pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field

import torch
from torch import Tensor

from worthit.decode.corpus import documents
from worthit.decode.sampling import Sampling
from worthit.decode.speculative.taps import Taps
from worthit.decode.tokenizer import Tokenizer
from worthit.errors import InputError
from worthit.nn.decoder import Decoder

# Of a question and of an answer: what goes on for longer has mostly begun to repeat itself.
LONGEST_QUESTION, LONGEST_ANSWER = 64, 160
QUESTIONS = Sampling(temperature=1.0, top_k=100)
ANSWERS = Sampling(temperature=0.7, top_k=50)
# Tokens of a document that a model without a chat format goes on from.
BEGINNING = 24
SYSTEM = (
    "",
    "You are a helpful assistant who answers questions about programming, and writes code.",
    "You are a teacher of mathematics and science who explains step by step.",
    "You rewrite, summarise and correct the texts that you are given.",
)


@dataclass(frozen=True)
class Frame:
    """The tokens around the turns of a conversation.

    Attributes:
        openings: up to the first question, several to choose from.
        to_answer: between a question and its answer, without the token that ended the question.
        to_question: between an answer and the next question, likewise.
        end: the token that ends a turn.
    """

    openings: tuple[tuple[int, ...], ...]
    to_answer: tuple[int, ...]
    to_question: tuple[int, ...]
    stop_ids: frozenset[int]
    end: int = -1


def frame_of(tokenizer: Tokenizer) -> Frame:
    """What the chat template puts around turns.

    Raises:
        InputError: no template, or one that changes what it is given.
    """
    asked, answered, again = "QQ1", "AA1", "QQ2"
    first = {"role": "user", "content": asked}
    whole = tokenizer.render_chat(
        [first, {"role": "assistant", "content": answered}, {"role": "user", "content": again}]
    )
    openings = []
    for system in SYSTEM:
        told = [{"role": "system", "content": system}] if system else []
        openings.append(tokenizer.render_chat([*told, first]).partition(asked)[0])
    for text in (asked, answered, again):
        if text not in whole:
            raise InputError("the model's chat template does not show what was said as it was said")
    between = whole.partition(asked)[2].partition(answered)[0]
    after = whole.partition(answered)[2].partition(again)[0]
    stops = frozenset(tokenizer.stop_ids)
    ends, to_question = (tokenizer.encode(text, has_special=False) for text in (between, after))
    if not ends or ends[0] not in stops:
        raise InputError("the model's chat template does not end a turn with a token of its own")
    return Frame(
        openings=tuple(tuple(tokenizer.encode(o, has_special=False)) for o in openings),
        to_answer=tuple(ends[1:]),
        to_question=tuple(to_question[1:] if to_question[0] in stops else to_question),
        stop_ids=stops,
        end=ends[0],
    )


@dataclass
class Row:
    """One conversation on its way."""

    frame: Frame
    questions: Iterator[list[int]] | None
    is_greedy: bool
    forced: list[int] = field(default_factory=list)
    is_answering: bool = False
    n_said: int = 0

    def next(self, drawn: int, answer: int) -> tuple[int, bool]:
        """The row's next token, and whether it is the model's own answer."""
        if self.forced:
            return self.forced.pop(0), False
        token = answer if self.is_answering else drawn
        self.n_said += 1
        was_answering = self.is_answering
        longest = LONGEST_ANSWER if was_answering else LONGEST_QUESTION
        if token in self.frame.stop_ids or self.n_said >= longest:
            token = self.frame.end
            self.turn()
        return token, was_answering

    def turn(self) -> None:
        """Let the other side speak."""
        self.n_said = 0
        self.is_answering = not self.is_answering
        self.forced = list(self.frame.to_answer if self.is_answering else self.frame.to_question)
        if not self.is_answering:
            self.ask()

    def ask(self) -> None:
        """Put the next given question, where there are any, in the place of one of its own."""
        if self.questions is not None:
            self.forced += [*next(self.questions), self.frame.end, *self.frame.to_answer]
            self.is_answering = True


@dataclass(frozen=True)
class Outputs:
    """A block of rows.

    Attributes:
        ids: `(rows, length)`.
        is_said: `(rows, length)`, what the model chose as its answer.
        features: `(rows, length, n_taps * d_model)`.
    """

    ids: Tensor
    is_said: Tensor
    features: Tensor


def block(
    model: Decoder,
    tokenizer: Tokenizer,
    taps: Sequence[int],
    *,
    rows: int,
    length: int,
    seed: int,
    prompts: Sequence[str] = (),
    on_step: Callable[[], None] = lambda: None,
) -> Outputs:
    """`rows` texts of `length` tokens, from the model alone; the same `seed` gives the same."""
    generator = torch.Generator(model.device).manual_seed(seed)
    speakers = _speakers(tokenizer, rows, prompts, seed, model.spec.vocab_size)
    ids = torch.empty(rows, length, dtype=torch.long)
    is_said = torch.zeros(rows, length, dtype=torch.bool)
    features: Tensor | None = None
    cache = model.new_cache()
    now = [speaker.next(0, 0) for speaker in speakers]
    with torch.inference_mode(), closing(Taps(model, taps)) as tapped:
        for at in range(length):
            ids[:, at] = torch.tensor([token for token, _ in now])
            is_said[:, at] = torch.tensor([said for _, said in now])
            logits = model(ids[:, at : at + 1].to(model.device), cache=cache)[:, 0].float()
            seen = tapped.features()
            assert seen is not None
            # Compiled layers give out fp32, whatever the model is stored in.
            streams = seen[:, 0].to(model.dtype).cpu()
            if features is None:
                features = streams.new_empty(rows, length, streams.shape[-1])
            features[:, at] = streams
            now = _choices(logits, speakers, generator)
            on_step()
    assert features is not None
    # Inference tensors take no part in training.
    return Outputs(ids, is_said, features.clone())


def _choices(
    logits: Tensor, speakers: Sequence[Row], generator: torch.Generator
) -> list[tuple[int, bool]]:
    likeliest = logits.argmax(dim=-1).tolist()
    if all(speaker.forced for speaker in speakers):
        return [speaker.next(0, 0) for speaker in speakers]
    drawn, answers = (_drawn(logits, s, generator) for s in (QUESTIONS, ANSWERS))
    return [
        speaker.next(drawn[i], likeliest[i] if speaker.is_greedy else answers[i])
        for i, speaker in enumerate(speakers)
    ]


def _drawn(logits: Tensor, sampling: Sampling, generator: torch.Generator) -> list[int]:
    """A draw a row, among its likeliest alone."""
    best = logits.topk(min(sampling.top_k, logits.shape[-1]), dim=-1)
    odds = (best.values / sampling.temperature).softmax(dim=-1)
    column = torch.multinomial(odds, 1, generator=generator)
    drawn: list[int] = best.indices.gather(1, column)[:, 0].tolist()
    return drawn


def _speakers(
    tokenizer: Tokenizer, rows: int, prompts: Sequence[str], seed: int, vocab_size: int
) -> list[Row]:
    asked = [tokenizer.encode(text, has_special=False)[:512] for text in prompts]
    if tokenizer.chat_template is None:
        texts = asked or list(_beginnings(tokenizer, rows, seed))
        # Without turns there is nothing to stop for.
        frame = Frame(openings=((),), to_answer=(), to_question=(), stop_ids=frozenset())
        return [
            Row(
                frame,
                None,
                i % 2 == 0,
                forced=list(texts[i % len(texts)][:BEGINNING]),
                is_answering=True,
                n_said=-(2**62),
            )
            for i in range(rows)
        ]
    frame = frame_of(tokenizer)
    found = []
    for i in range(rows):
        opening = frame.openings[(i // 2) % len(frame.openings)]
        questions = _in_turn(asked, seed * rows + i) if asked else None
        row = Row(frame, questions, i % 2 == 0, forced=list(opening))
        row.ask()
        found.append(row)
    return found


def _in_turn(texts: Sequence[list[int]], start: int) -> Iterator[list[int]]:
    while True:
        yield texts[start % len(texts)]
        start += 7


def _beginnings(tokenizer: Tokenizer, rows: int, seed: int) -> Iterator[list[int]]:
    """Beginnings of documents of the standard library's text, others for each block."""
    ids: list[int] = []
    for text in documents("calibration"):
        ids += tokenizer.encode(text, has_special=False)
        if len(ids) >= (seed % 64 + 1) * rows * BEGINNING:
            break
    pieces = [ids[i : i + BEGINNING] for i in range(0, len(ids) - BEGINNING, BEGINNING)]
    for i in range(rows):
        yield pieces[(seed * rows + i) % len(pieces)]
