"""Texts from an engine, and what they cost: the one thing that every strategy draws from.

The n samples of a prompt share its cache, and a text that is gone on with shares the blocks of what
stands already: the engine sees to both. What is counted is what is computed: tokens of prompts that
no cache held, and tokens said, the one that stopped a text included.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from worthit.decode.engine.chooser import mixed
from worthit.decode.engine.request import Completion, Request, Sample
from worthit.decode.sampling import Sampling
from worthit.errors import WorthitError

GREEDY = Sampling()


class Serves(Protocol):
    """What a generator asks of an engine."""

    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        """Every request, served to its end."""


@dataclass(frozen=True, kw_only=True)
class Draft:
    """A text that a model said, whole or up to here.

    Attributes:
        ids: its tokens, without the one that stopped the last piece unless it is part of the text.
        text: what they say.
        logprob: of all of them by the model's own distribution, in nats, what stopped it included.
        n_said: tokens that it took to say, what stopped it included.
        is_ended: whether the model ended it, not a limit.
        stopped_by: what ended its last piece.
    """

    ids: tuple[int, ...]
    text: str
    logprob: float
    n_said: int
    is_ended: bool
    stopped_by: str | int | None = None


@dataclass(frozen=True, kw_only=True)
class Spent:
    """Tokens that went through a model.

    Attributes:
        n_prompt: of prompts, computed; `n_cached` more were found in a cache.
        n_said: said.
        n_read: read by a verifier that is a model.
    """

    n_prompt: int = 0
    n_cached: int = 0
    n_said: int = 0
    n_read: int = 0

    def __add__(self, other: Spent) -> Spent:
        return Spent(
            n_prompt=self.n_prompt + other.n_prompt,
            n_cached=self.n_cached + other.n_cached,
            n_said=self.n_said + other.n_said,
            n_read=self.n_read + other.n_read,
        )

    @property
    def n_computed(self) -> int:
        """Tokens of every kind that a model computed."""
        return self.n_prompt + self.n_said + self.n_read


class Generator:
    """Draws texts.

    Args:
        engine: serves requests.
        read: ids to text.
        ends: tokens that end a text; they are not part of it.
        sampling: of every draw that does not say otherwise.

    Attributes:
        spent: by all draws so far.
    """

    def __init__(
        self,
        engine: Serves,
        read: Callable[[Sequence[int]], str],
        ends: Sequence[int],
        *,
        sampling: Sampling | None = None,
    ) -> None:
        self.engine = engine
        self.read = read
        self.ends = tuple(ends)
        self.sampling = Sampling(temperature=1.0) if sampling is None else sampling
        self.spent = Spent()

    def draw(
        self,
        prompts: Sequence[Sequence[int]],
        n: int = 1,
        *,
        max_tokens: int | Sequence[int],
        seed: int,
        sampling: Sampling | None = None,
        stops: Sequence[int] = (),
        after: Sequence[Draft] | None = None,
    ) -> list[list[Draft]]:
        """`n` texts for each prompt.

        Args:
            max_tokens: of each text, or of each prompt's.
            seed: of chance; the same one draws the same texts.
            stops: tokens that stop a text besides its ends, and are part of it.
            after: a text for each prompt that is gone on with; what is returned holds both.

        Raises:
            WorthitError: the engine could not serve one of them.
        """
        limits = [max_tokens] * len(prompts) if isinstance(max_tokens, int) else [*max_tokens]
        before = list(after) if after is not None else [EMPTY] * len(prompts)
        requests = [
            Request(
                prompt=[*prompt, *so_far.ids],
                n=n,
                max_tokens=limit,
                seed=mixed(seed, i),
                sampling=self.sampling if sampling is None else sampling,
                stop_ids=(*self.ends, *stops),
                logprobs=0,
            )
            for i, (prompt, limit, so_far) in enumerate(zip(prompts, limits, before, strict=True))
        ]
        found = []
        for one, so_far in zip(self.engine.generate(requests), before, strict=True):
            found.append([self._draft(sample, so_far, stops) for sample in one.samples])
            for sample in one.samples:
                self._count(sample)
        return found

    def _draft(self, sample: Sample, before: Draft, stops: Sequence[int]) -> Draft:
        if sample.error is not None:
            raise WorthitError(f"a text could not be drawn: {sample.error}")
        stop = sample.stopped_by
        ids = (*before.ids, *sample.ids, *([stop] if stop in stops else []))
        logprob = sum(token.logprob for token in sample.logprobs) + (sample.stop_logprob or 0.0)
        n_said = len(sample.ids) + (sample.finish_reason == "stop")
        return Draft(
            ids=ids,  # type: ignore[arg-type]  # a stop that is among `stops` is an id
            text=self.read(ids),  # type: ignore[arg-type]
            logprob=before.logprob + logprob,
            n_said=before.n_said + n_said,
            is_ended=stop in self.ends,
            stopped_by=stop,
        )

    def _count(self, sample: Sample) -> None:
        usage = sample.usage
        if usage is not None:
            self.spent += Spent(
                n_prompt=usage.n_prompt - usage.n_cached,
                n_cached=usage.n_cached,
                n_said=usage.n_completion,
            )

    def joined(self, draft: Draft, ids: Sequence[int]) -> Draft:
        """`draft` with tokens that nobody said put behind it; it is open again."""
        together = (*draft.ids, *ids)
        return replace(
            draft, ids=together, text=self.read(together), is_ended=False, stopped_by=None
        )


EMPTY = Draft(ids=(), text="", logprob=0.0, n_said=0, is_ended=False)
