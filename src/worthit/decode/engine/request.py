"""What goes into the engine and what comes out: a request, and an output a step and sample."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from worthit.decode.engine.grammar import Grammar
from worthit.decode.sampling import Sampling
from worthit.errors import WorthitError

FinishReason = Literal["stop", "length", "abort", "error"]


class QueueFull(WorthitError):
    """As many requests wait as may; come back after `retry_after_s`."""

    def __init__(self, n_waiting: int, retry_after_s: float) -> None:
        super().__init__(
            f"{n_waiting} requests are waiting already; try again in {retry_after_s:.0f} s"
        )
        self.retry_after_s = retry_after_s


@dataclass(frozen=True, kw_only=True)
class Request:
    """One prompt and what is wanted of it.

    Attributes:
        prompt: text, or ids.
        max_tokens: None for as many as the context holds.
        sampling: how tokens are chosen; greedily if nothing is said.
        seed: of chance; the same seed and settings give the same tokens, whatever else the engine
            is doing. None draws one.
        n: samples of the same prompt, which is computed once.
        stop: strings that end the text and are not part of it; they need a tokenizer.
        stop_ids: tokens that end it and are not part of it; None for the tokenizer's own.
        min_tokens: before that many, no stop token is chosen.
        logprobs: how many of the likeliest tokens to report with each chosen one, by the model's
            own distribution before any setting; None reports nothing.
        prompt_logprobs: the same for every token of the prompt but the first.
        grammar: what the text must obey.
        priority: larger goes first; see `EngineConfig.patience_s`.
        salt: prefixes are shared only between requests of the same salt.
        id: any name that no other request of the engine has; None makes one.
    """

    prompt: str | Sequence[int]
    max_tokens: int | None = None
    sampling: Sampling = field(default_factory=Sampling)
    seed: int | None = None
    n: int = 1
    stop: Sequence[str] = ()
    stop_ids: Sequence[int] | None = None
    min_tokens: int = 0
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    grammar: Grammar | None = None
    priority: int = 0
    salt: str = ""
    id: str | None = None


@dataclass(frozen=True, kw_only=True)
class TokenLogprob:
    """The natural logarithm of a token's probability, and the likeliest tokens in its place."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, kw_only=True)
class Usage:
    """What a finished sample took.

    Attributes:
        n_prompt: tokens of the prompt; `n_cached` of them were found in the prefix cache.
        n_completion: new tokens, the one that stopped it included.
        n_drafted, n_accepted: tokens that a drafter guessed, and those that were right.
        n_preemptions: how often it was put back and computed again.
        queue_s: from `add` to its first step; `ttft_s`: to its first token; `total_s`: to its last.
    """

    n_prompt: int
    n_cached: int
    n_completion: int
    n_drafted: int
    n_accepted: int
    n_preemptions: int
    queue_s: float
    ttft_s: float | None
    total_s: float

    @property
    def acceptance(self) -> float | None:
        """The share of drafted tokens that were right; None where none was drafted."""
        return self.n_accepted / self.n_drafted if self.n_drafted else None


@dataclass(frozen=True, kw_only=True)
class Output:
    """What is new in one sample of one request.

    Attributes:
        id: of the request; `index` counts its samples.
        ids: new tokens, without the one that stopped it.
        text: new text that is certain: whole characters, and nothing that may begin a stop string.
            Empty without a tokenizer.
        logprobs: of `ids`, where the request asks for them.
        prompt_logprobs: once, with the first output, where the request asks for them.
        finish_reason: None while it goes on.
        stopped_by: the stop string or token.
        stop_logprob: of the stop token, where the request asks for log-probabilities.
        usage: with the last output.
        error: why, where the reason is `error`.
    """

    id: str
    index: int
    ids: tuple[int, ...] = ()
    text: str = ""
    logprobs: tuple[TokenLogprob, ...] = ()
    prompt_logprobs: tuple[TokenLogprob, ...] = ()
    finish_reason: FinishReason | None = None
    stopped_by: str | int | None = None
    stop_logprob: float | None = None
    usage: Usage | None = None
    error: str | None = None


@dataclass(kw_only=True)
class Sample:
    """A whole sample, put together from its outputs."""

    ids: list[int] = field(default_factory=list)
    text: str = ""
    logprobs: list[TokenLogprob] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    stopped_by: str | int | None = None
    stop_logprob: float | None = None
    usage: Usage | None = None
    error: str | None = None

    def add(self, output: Output) -> None:
        """Append what is new."""
        self.ids += output.ids
        self.text += output.text
        self.logprobs += output.logprobs
        if output.finish_reason is not None:
            self.finish_reason, self.stopped_by = output.finish_reason, output.stopped_by
            self.usage, self.error = output.usage, output.error
            self.stop_logprob = output.stop_logprob


@dataclass(kw_only=True)
class Completion:
    """All samples of a request."""

    id: str
    samples: list[Sample]
    prompt_logprobs: list[TokenLogprob] = field(default_factory=list)

    @property
    def ids(self) -> list[int]:
        """The tokens of the first sample."""
        return self.samples[0].ids

    @property
    def text(self) -> str:
        """The text of the first sample."""
        return self.samples[0].text
