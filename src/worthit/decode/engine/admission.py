"""Requests at the door: everything that is wrong with one, or the sequences that it becomes."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from collections.abc import Sequence as Ids
from typing import TYPE_CHECKING

from worthit.decode.engine.chooser import Chance
from worthit.decode.engine.config import EngineConfig
from worthit.decode.engine.drafts import Drafts
from worthit.decode.engine.grammar import Grammars
from worthit.decode.engine.request import Request
from worthit.decode.engine.runner import Runner
from worthit.decode.engine.sequence import Sequence
from worthit.decode.generate import TextStream
from worthit.errors import InputError

if TYPE_CHECKING:
    from worthit.decode.tokenizer import Tokenizer

# A request that asks for more is a mistake, or an attack.
MAX_SAMPLES = 128
MAX_STOPS = 64
MAX_LOGPROBS = 50


class Admission:
    """What an engine says to requests, by its model and its limits."""

    def __init__(
        self,
        runner: Runner,
        tokenizer: Tokenizer | None,
        config: EngineConfig,
        drafts: Drafts | None,
    ) -> None:
        self.runner, self.tokenizer = runner, tokenizer
        self.config, self.drafts = config, drafts
        self._grammars = None if tokenizer is None else Grammars(tokenizer, runner.vocab_size)

    def check(self, request: Request) -> list[int]:
        """The ids of the prompt, if the request can be served at all; from any thread.

        Raises:
            InputError: everything that is wrong with it.
        """
        problems = self._problems(request)
        prompt = request.prompt
        ids: list[int] = []
        if isinstance(prompt, str):
            ids = [] if self.tokenizer is None else self.tokenizer.encode(prompt)
        else:
            ids = list(prompt)
        if not ids and not problems:
            problems.append("prompt: must have at least one token")
        vocab, context = self.runner.vocab_size, self.runner.context_len
        if not all(0 <= t < vocab for t in ids):
            problems.append(f"prompt: ids must be whole numbers from 0 to {vocab - 1}")
        if problems:
            raise InputError(*problems)
        if len(ids) >= context:
            raise InputError(
                f"prompt: this model's maximum context length is {context} tokens, and the prompt "
                f"has {len(ids)}; shorten it"
            )
        n_total = len(ids) + self._max_tokens(request, len(ids))
        if n_total > context:
            raise InputError(
                f"max_tokens: this model's maximum context length is {context} tokens, got "
                f"{len(ids)} of the prompt and {request.max_tokens} to come; ask for at most "
                f"{context - len(ids)}"
            )
        room = self.runner.memory.n_tokens()
        if room is not None and n_total > room:
            raise InputError(
                f"max_tokens: the cache of this engine holds {room} tokens, got {len(ids)} of the "
                f"prompt and {n_total - len(ids)} to come; ask for less, or raise cache_bytes"
            )
        self.runner.check(n_total)
        if request.grammar is not None:
            assert self._grammars is not None
            self._grammars.start(request.grammar)
        return ids

    def samples(
        self, request: Request, name: str, ids: list[int], now: float, numbers: Iterator[int]
    ) -> list[Sequence]:
        """The sequences of a request that was checked; all but the first wait for the first.

        Args:
            name: the request's id.
            ids: of its prompt.
            now: when it came.
            numbers: who came first among those that came at one time.
        """
        seed = secrets.randbits(63) if request.seed is None else request.seed
        first = now - self.config.patience_s * request.priority
        samples = [
            self._sample(request, name, index, ids, seed, now, (first, next(numbers), index))
            for index in range(request.n)
        ]
        samples[0].followers = samples[1:]
        return samples

    def _sample(
        self,
        request: Request,
        name: str,
        index: int,
        ids: list[int],
        seed: int,
        now: float,
        order: tuple[float, int, int],
    ) -> Sequence:
        stop_ids = request.stop_ids
        if stop_ids is None:
            stop_ids = () if self.tokenizer is None else self.tokenizer.stop_ids
        elif request.grammar is not None and self.tokenizer is not None:
            # Where a grammar ends, nothing but these may follow.
            stop_ids = (*stop_ids, *self.tokenizer.stop_ids)
        grammar = None
        if request.grammar is not None and self._grammars is not None:
            grammar = self._grammars.start(request.grammar)
        own = list(ids)
        return Sequence(
            request=request,
            id=name,
            index=index,
            ids=own,
            asked=None if self.drafts is None else self.drafts.asked(request, own, index, seed),
            n_prompt=len(ids),
            max_tokens=self._max_tokens(request, len(ids)),
            stop_ids=frozenset(stop_ids),
            arrived_at=now,
            order=order,
            chance=Chance(seed, index, request.sampling, ids, self.runner.vocab_size),
            stream=None if self.tokenizer is None else TextStream(self.tokenizer, request.stop),
            grammar=grammar,
        )

    def _max_tokens(self, request: Request, n_prompt: int) -> int:
        if request.max_tokens is not None:
            return request.max_tokens
        left = self.runner.context_len - n_prompt
        room = self.runner.memory.n_tokens()
        return left if room is None else max(1, min(left, room - n_prompt))

    def _problems(self, request: Request) -> list[str]:
        """What is wrong with a request by itself."""

        def outside(name: str, least: int, most: int) -> list[str]:
            value = getattr(request, name)
            if value is None or least <= value <= most:
                return []
            return [f"{name}: must be from {least} to {most}, got {value}"]

        problems = [
            *outside("max_tokens", 1, 2**31),
            *outside("n", 1, MAX_SAMPLES),
            *outside("min_tokens", 0, 2**31),
            *outside("logprobs", 0, MAX_LOGPROBS),
            *outside("prompt_logprobs", 0, MAX_LOGPROBS),
            *outside("seed", 0, 2**63 - 1),
        ]
        if len(request.stop) > MAX_STOPS:
            problems.append(f"stop: must be at most {MAX_STOPS} strings, got {len(request.stop)}")
        if any(not text for text in request.stop):
            problems.append("stop: a stop string must not be empty")
        for name in ("stop", "grammar"):
            if getattr(request, name) and self.tokenizer is None:
                problems.append(f"{name}: needs the model's tokenizer")
        if isinstance(request.prompt, str) and self.tokenizer is None:
            problems.append("prompt: text needs the model's tokenizer; give its ids")
        bias = [token for token, _ in request.sampling.logit_bias]
        for name, ids in (("logit_bias", bias), ("stop_ids", request.stop_ids or ())):
            problems += self._beyond(name, ids)
        return problems

    def _beyond(self, name: str, ids: Ids[int]) -> list[str]:
        """Tokens that there are not would fail the step, and with it everybody in it."""
        vocab = self.runner.vocab_size
        beyond = [token for token in ids if not 0 <= token < vocab]
        return [f"{name}: ids must be from 0 to {vocab - 1}, got {beyond[0]}"] if beyond else []
