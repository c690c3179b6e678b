"""The engine: requests in, tokens out, many at once.

    engine = Engine(model, tokenizer)
    engine.add(Request(prompt="Hello"))
    while engine.has_work:
        for output in engine.step():
            ...

`Admission` turns a request into sequences. A step is: plan (`Scheduler`), one pass (`ModelRunner`),
a choice for each sequence whose tokens are all computed (`chooser`), and what follows from it
(stop, text, blocks). `add`, `abort` and `step` belong to one thread; `check` may be called from
any.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from collections.abc import Sequence as Ids
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from worthit.decode.engine.admission import Admission
from worthit.decode.engine.chooser import Choice, choose, law_of, logprob_of
from worthit.decode.engine.config import EngineConfig
from worthit.decode.engine.drafts import Drafts
from worthit.decode.engine.request import (
    Completion,
    FinishReason,
    Output,
    QueueFull,
    Request,
    Sample,
)
from worthit.decode.engine.runner import ModelRunner, Runner
from worthit.decode.engine.scheduler import Part, Scheduler
from worthit.decode.engine.sequence import News, Sequence
from worthit.decode.engine.stats import Stats
from worthit.decode.speculative.accept import child_of, pick
from worthit.decode.speculative.drafter import NOTHING, Drafter
from worthit.decode.speculative.tree import ROOT
from worthit.errors import InputError

if TYPE_CHECKING:
    from worthit.decode.tokenizer import Tokenizer
    from worthit.nn.decoder import Decoder


class Engine:
    """Runs requests side by side on one model.

    Args:
        model: a decoder; `worthit.nn.inference.optimize` makes it faster.
        tokenizer: for prompts that are text, for text in outputs, stop strings and grammars.
        config: limits; see `EngineConfig`.
        runner: in place of one of `model`.
        drafter: guesses tokens that may follow; the text is the same with and without.
        clock: seconds, of any origin.
    """

    def __init__(
        self,
        model: Decoder | None = None,
        tokenizer: Tokenizer | None = None,
        config: EngineConfig | None = None,
        *,
        runner: Runner | None = None,
        drafter: Drafter | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.config = EngineConfig() if config is None else config
        if runner is None:
            if model is None:
                raise InputError("model: an engine needs one, or a runner")
            runner = ModelRunner(model, self.config)
        self.runner, self.tokenizer = runner, tokenizer
        self.clock = clock
        self.memory = runner.memory
        self.scheduler = Scheduler(
            self.memory,
            max_batch_tokens=self.config.max_batch_tokens,
            max_sequences=self.config.max_sequences,
        )
        self.stats = Stats(n_blocks=self.memory.n_blocks)
        self.drafts = None if drafter is None else Drafts(drafter, runner, self.config, clock)
        self.admission = Admission(runner, tokenizer, self.config, self.drafts)
        # Unfinished samples of each request.
        self._live: dict[str, list[Sequence]] = {}
        # Who has said or ended something since the last outputs, and outputs for somebody else.
        self._spoke: list[Sequence] = []
        self._unread: list[Output] = []
        self._counter = itertools.count()

    @property
    def has_work(self) -> bool:
        """Whether a step would do or say something."""
        return bool(self._live) or bool(self._spoke) or bool(self._unread)

    @property
    def _n_places(self) -> int:
        """How many more requests may come."""
        n_free = self.config.max_sequences - len(self.scheduler.running)
        return self.config.max_waiting + n_free - self.scheduler.n_waiting

    # Requests in.

    def check(self, request: Request) -> list[int]:
        """The ids of the prompt, if the request can be served at all.

        Raises:
            InputError: everything that is wrong with it.
        """
        return self.admission.check(request)

    def add(self, request: Request) -> str:
        """Queue a request and return its id.

        Raises:
            InputError: it can never be served; see `check`.
            QueueFull: too many wait.
        """
        ids = self.check(request)
        if self._n_places <= 0:
            raise QueueFull(self.scheduler.n_waiting, self._wait_s())
        name = request.id
        if name is None:
            name = f"r{next(self._counter)}"
        if name in self._live:
            raise InputError(f"id: {name!r} is the id of a request that is not finished")
        samples = self.admission.samples(request, name, ids, self.clock(), self._counter)
        self._live[name] = samples
        self._note_state()
        self.scheduler.add(samples[0])
        return name

    def abort(self, id: str) -> bool:
        """End a request; its last outputs come with the next step. False where there is none."""
        live = self._live.get(id)
        if live is None:
            return False
        for sequence in list(live):
            self._finish(sequence, "abort")
        return True

    def _wait_s(self) -> float:
        """A guess at when a place is free: what a sample took, over how many run at once."""
        done = self.stats.e2e_s
        each = done.total / done.n if done.n else 1.0
        return max(1.0, each / self.config.max_sequences)

    # A step.

    def step(self) -> list[Output]:
        """Compute one step and return what is new; an empty list where there is nothing to do."""
        started = self.clock()
        if self.drafts is not None:
            self.drafts.propose(self.scheduler.running)
        plan = self.scheduler.plan()
        self.stats.n_preemptions += len(plan.preempted)
        if plan.parts:
            for part in plan.parts:
                if part.sequence.started_at is None:
                    part.sequence.started_at = started
            try:
                logits = self.runner.run(plan.parts)
                self._advance(plan.parts, logits)
            except Exception as error:  # whatever a pass raises concerns those who took part in it
                self.stats.n_errors += 1
                for part in plan.parts:
                    self._fail(part.sequence, error)
            self.stats.n_steps += 1
            self.stats.n_step_tokens += plan.n_tokens
        outputs, self._unread = [*self._unread, *self._outputs()], []
        self.stats.step_s = self.clock() - started
        self._note_state()
        return outputs

    def generate(self, requests: Ids[Request | str | Ids[int]]) -> list[Completion]:
        """Serve these to their end and return them in order; others that wait are served beside.

        Raises:
            InputError: one of them can never be served; none is then begun.
        """
        wanted = [r if isinstance(r, Request) else Request(prompt=r) for r in requests]
        for request in wanted:
            self.check(request)
        found: dict[str, Completion] = {}
        waiting = list(reversed(wanted))
        order: list[str] = []
        others: list[Output] = []
        while waiting or any(
            sample.finish_reason is None for one in found.values() for sample in one.samples
        ):
            while waiting and self._n_places > 0:
                request = waiting.pop()
                order.append(self.add(request))
                samples = [Sample() for _ in range(request.n)]
                found[order[-1]] = Completion(id=order[-1], samples=samples)
            for output in self.step():
                if output.id not in found:
                    others.append(output)
                    continue
                found[output.id].samples[output.index].add(output)
                found[output.id].prompt_logprobs += output.prompt_logprobs
        self._unread = others
        return [found[name] for name in order]

    @torch.inference_mode()
    def _advance(self, parts: Ids[Part], logits: Tensor) -> None:
        """Move everybody on by what was computed; choose where all of it was."""
        now = self.clock()
        at = 0
        n_seen = 0
        choosing: list[tuple[Sequence, int]] = []
        plain: list[tuple[Part, int, int]] = []
        for part in parts:
            sequence, n_rows, n_choices = part.sequence, part.n_rows, part.n_choices
            rows = logits[at : at + n_rows]
            at += n_rows
            if n_rows > n_choices:
                _note_prompt(part, rows)
            rows = rows[n_rows - n_choices :]
            first_token, n_seen = n_seen, n_seen + part.n
            if sequence.draft:
                self._verify(part, rows, now, first_token)
                continue
            plain.append((part, sequence.n_computed, first_token))
            sequence.n_computed += part.n
            # Before a choice, which may end the sequence: what it computed can be found again.
            self.memory.settle(sequence)
            if n_choices:
                # Samples of a prompt that is computed now begin here, from the same logits.
                choosing += [(s, at - 1) for s in self._begin_followers(sequence)]
        if choosing:
            self._choose(choosing, logits, now)
        if self.drafts is not None:
            for part, start, first_token in plain:
                self.drafts.computed(part, start, first_token)

    def _choose(self, choosing: list[tuple[Sequence, int]], logits: Tensor, now: float) -> None:
        rows = [row for _, row in choosing]
        # A row a sequence, all of them: as it mostly is, and nothing to copy.
        together = logits if rows == list(range(len(logits))) else logits[rows]
        choices = choose(together, [sequence for sequence, _ in choosing])
        for (sequence, _), choice in zip(choosing, choices, strict=True):
            self._say(sequence, choice, now)

    def _begin_followers(self, sequence: Sequence) -> list[Sequence]:
        """The sequence and those that have waited for its prompt, each with a place of its own."""
        followers, sequence.followers = sequence.followers, []
        for follower in followers:
            self.memory.fork(sequence, follower)
            follower.n_cached = follower.n_prompt
            follower.started_at = sequence.started_at
            self.scheduler.join(follower)
        return [sequence, *followers]

    def _verify(self, part: Part, rows: Tensor, now: float, at: int) -> None:
        """Go down the draft for as long as what is said is in it.

        A token of a draft that was picked is kept where the choice, drawn from the model's own
        distribution, is that token: the text is that of no drafts at all, with the same seed. Of
        one that was drawn as well, acceptance and what is drawn instead go by both distributions
        (`worthit.decode.speculative.accept`): the text has the model's distribution.
        """
        sequence, tree = part.sequence, part.sequence.draft
        sequence.draft = NOTHING
        start = sequence.n_computed
        sequence.n_computed += part.n
        path: list[int] = []
        node, before, n_before = ROOT, sequence.last_token_at, len(sequence.ids)
        while True:
            row = rows[node + 1 : node + 2]
            if tree.q is None or sequence.request.sampling.is_greedy:
                choice = choose(row, [sequence])[0]
                node = child_of(tree, node, choice.token)
            else:
                law = law_of(row[0], sequence)
                token, node = pick(law, tree, node, sequence.chance.next)
                n_top = sequence.request.logprobs
                choice = Choice(token, None if n_top is None else logprob_of(row[0], token, n_top))
            if node != ROOT:
                path.append(node)
            self._say(sequence, choice, now, is_timed=False)
            if sequence.is_finished or node == ROOT:
                break
        n_said = len(sequence.ids) - n_before
        if before is not None and n_said:
            self.stats.itl_s.add((now - before) / n_said, n_said)
        sequence.n_drafted += len(tree)
        sequence.n_accepted += len(path)
        self.stats.note_draft(len(tree), len(path))
        if self.drafts is not None:
            self.drafts.judged(part, start, tree, path, rows, at)
        if sequence.holding is None:
            return
        if not tree.is_chain:
            self.runner.keep_path(sequence, path)
        # The last chosen token is not computed; what stands before it is.
        if sequence.n_computed > len(sequence.ids) - 1:
            self.memory.take_back(sequence, len(sequence.ids) - 1)
        self.memory.settle(sequence)

    def _say(
        self, sequence: Sequence, choice: Choice, now: float, *, is_timed: bool = True
    ) -> None:
        """Add a chosen token to its sequence, and end it where that ends it."""
        if sequence.failure is not None:
            self._finish(sequence, "error")
            return
        self._note_token(sequence, now, is_timed=is_timed)
        token, news = choice.token, self._news_of(sequence)
        sequence.ids.append(token)
        sequence.chance.remember(token)
        if sequence.grammar is not None:
            sequence.grammar.accept(token)
        if token in sequence.stop_ids:
            if choice.logprob is not None:
                news.stop_logprob = choice.logprob.logprob
            self._finish(sequence, "stop", token)
            return
        news.ids.append(token)
        if choice.logprob is not None:
            news.logprobs.append(choice.logprob)
        if sequence.stream is not None:
            news.text += sequence.stream.feed(token)
            if sequence.stream.is_stopped:
                self._finish(sequence, "stop", sequence.stream.stopped_by)
                return
        if sequence.grammar is not None and sequence.grammar.is_done:
            self._finish(sequence, "stop")
        elif sequence.n_left <= 0:
            self._finish(sequence, "length")

    def _finish(
        self, sequence: Sequence, reason: FinishReason, stopped_by: str | int | None = None
    ) -> None:
        """End a sample: its blocks are given back, and its last output is due."""
        if sequence.is_finished:
            return
        sequence.finish_reason = reason
        news = self._news_of(sequence)
        if sequence.stream is not None:
            news.text += sequence.stream.finish()
        news.stopped_by = stopped_by
        now = self.clock()
        self.stats.finished[reason] += 1
        self.stats.e2e_s.add(now - sequence.arrived_at)
        if sequence.is_queued:
            self.scheduler.remove(sequence)
        else:
            self.memory.free(sequence)
        live = self._live[sequence.id]
        live.remove(sequence)
        if not live:
            del self._live[sequence.id]
        # Nobody is left to compute the prompt for them.
        for follower in sequence.followers:
            follower.failure = sequence.failure
            self._finish(follower, reason)

    def _fail(self, sequence: Sequence, error: Exception) -> None:
        if not sequence.is_finished:
            sequence.failure = f"{type(error).__name__}: {error}"
            self._finish(sequence, "error")

    # What was said and noted.

    def _news_of(self, sequence: Sequence) -> News:
        if sequence.news is None:
            sequence.news = News()
            self._spoke.append(sequence)
        return sequence.news

    def _outputs(self) -> list[Output]:
        """What is new in every sequence that said or ended something."""
        now = self.clock()
        outputs = [sequence.tell(now) for sequence in self._spoke]
        self._spoke.clear()
        return outputs

    def _note_token(self, sequence: Sequence, now: float, *, is_timed: bool) -> None:
        self.stats.n_generation_tokens += 1
        if sequence.first_token_at is None:
            sequence.first_token_at = now
            self.stats.n_prompt_tokens += sequence.n_prompt
            self.stats.ttft_s.add(now - sequence.arrived_at)
        elif sequence.last_token_at is not None and is_timed:
            self.stats.itl_s.add(now - sequence.last_token_at)
        sequence.last_token_at = now

    def _note_state(self) -> None:
        self.stats.n_running = len(self.scheduler.running)
        self.stats.n_waiting = self.scheduler.n_waiting
        self.stats.n_blocks_held = self.memory.n_held
        self.stats.n_prefix_asked = self.memory.hits.n_asked
        self.stats.n_prefix_found = self.memory.hits.n_found


def _note_prompt(part: Part, rows: Tensor) -> None:
    """What the model thought of the prompt's tokens, of those it has not said it before."""
    sequence, start = part.sequence, part.sequence.n_computed
    n_top = sequence.request.prompt_logprobs
    assert n_top is not None
    for i, row in enumerate(rows):
        at = start + i + 1
        if at < sequence.n_prompt and at == sequence.n_prompt_noted + 1:
            sequence.prompt_logprobs.append(logprob_of(row, sequence.ids[at], n_top))
            sequence.n_prompt_noted = at
