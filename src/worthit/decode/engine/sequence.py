"""One sample on its way: its tokens, what of them is computed, and what it takes to choose more."""

from __future__ import annotations

from collections.abc import Sequence as Ids
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from worthit.decode.engine.request import FinishReason, Output, Request, TokenLogprob, Usage
from worthit.decode.speculative.drafter import NOTHING, Asked
from worthit.decode.speculative.tree import Tree

if TYPE_CHECKING:
    from worthit.decode.engine.chooser import Chance
    from worthit.decode.engine.memory import Holding
    from worthit.decode.generate import TextStream


@dataclass
class News:
    """What a sequence said in one step."""

    ids: list[int] = field(default_factory=list)
    text: str = ""
    logprobs: list[TokenLogprob] = field(default_factory=list)
    stopped_by: str | int | None = None
    stop_logprob: float | None = None


@dataclass(eq=False, kw_only=True)
class Sequence:
    """One sample of one request.

    Attributes:
        ids: the prompt and what was said.
        n_prompt: how many of them are the prompt.
        n_computed: tokens whose keys, values and states are in the cache.
        draft: tokens that a drafter guesses to follow, computed with the next step and kept only
            where the model agrees; `asked` is what the drafter is asked with, None without one.
        holding: its blocks and states; None while it waits.
        chance: its source of random numbers and its counts for penalties; kept over preemptions.
        followers: samples of the same prompt that begin when it is computed.
        order: who goes first: smaller does. See `Scheduler`.
        is_queued: whether the scheduler knows it.
        failure: why it cannot go on.
    """

    request: Request
    id: str
    index: int
    ids: list[int]
    n_prompt: int
    max_tokens: int
    stop_ids: frozenset[int]
    arrived_at: float
    order: tuple[float, int, int]
    chance: Chance
    stream: TextStream | None = None
    grammar: Any = None
    n_computed: int = 0
    draft: Tree = NOTHING
    asked: Asked | None = None
    holding: Holding | None = None
    followers: list[Sequence] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    is_queued: bool = False
    failure: str | None = None
    news: News | None = None
    prompt_logprobs: list[TokenLogprob] = field(default_factory=list)
    n_prompt_noted: int = 0
    # What happened to it.
    n_cached: int = 0
    n_preemptions: int = 0
    n_drafted: int = 0
    n_accepted: int = 0
    started_at: float | None = None
    first_token_at: float | None = None
    last_token_at: float | None = None

    @property
    def n_total(self) -> int:
        """Tokens known or guessed: what it wants computed."""
        return len(self.ids) + len(self.draft)

    @property
    def said(self) -> Ids[int]:
        """What was said so far."""
        return self.ids[self.n_prompt :]

    @property
    def n_said(self) -> int:
        """How many tokens that is."""
        return len(self.ids) - self.n_prompt

    @property
    def n_left(self) -> int:
        """Tokens that it may still say."""
        return self.max_tokens - self.n_said

    @property
    def is_finished(self) -> bool:
        """Whether there is nothing more to do."""
        return self.finish_reason is not None

    def tell(self, now: float) -> Output:
        """What is new since it was last asked; afterwards nothing is."""
        news, self.news = self.news, None
        assert news is not None, f"{self.id} has said nothing new"
        prompt_logprobs: tuple[TokenLogprob, ...] = ()
        if self.prompt_logprobs and (news.ids or self.is_finished):
            prompt_logprobs = tuple(self.prompt_logprobs)
            self.prompt_logprobs.clear()
        return Output(
            id=self.id,
            index=self.index,
            ids=tuple(news.ids),
            text=news.text,
            logprobs=tuple(news.logprobs),
            prompt_logprobs=prompt_logprobs,
            finish_reason=self.finish_reason,
            stopped_by=news.stopped_by,
            stop_logprob=news.stop_logprob,
            usage=self._usage(now) if self.is_finished else None,
            error=self.failure,
        )

    def _usage(self, now: float) -> Usage:
        began, first = self.started_at, self.first_token_at
        return Usage(
            n_prompt=self.n_prompt,
            n_cached=self.n_cached,
            n_completion=self.n_said,
            n_drafted=self.n_drafted,
            n_accepted=self.n_accepted,
            n_preemptions=self.n_preemptions,
            queue_s=(now if began is None else began) - self.arrived_at,
            ttft_s=None if first is None else first - self.arrived_at,
            total_s=now - self.arrived_at,
        )
