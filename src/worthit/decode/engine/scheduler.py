"""Who computes what in the next step: no phases, one budget of tokens, one order.

Yu et al. 2022, "Orca", OSDI 2022, section 3.1 (a decision at every step); Agrawal et al. 2024,
"Sarathi-Serve", arXiv:2403.02310, section 4 (chunks of prompts beside running answers); Kwon et al.
2023, arXiv:2309.06180, section 4.5 (preemption by recomputing, all or nothing).

Every sequence wants `n_total` tokens computed and has `n_computed`: a new prompt lacks all of it, a
running answer one token, one with a draft a few. A step gives running sequences what they lack,
then waiting ones, until the budget is spent. A long prompt gets what is left, and goes on in the
next step.

The order is one number, fixed when a request arrives: its time, less `patience_s` for each unit of
priority. Later requests of higher priority go first until that much time has passed, so that nobody
waits for ever. Who goes first may take the blocks of who goes last: the latter is computed again
when there is room, and says nothing twice. The first in order can always take all, and `fits` has
made sure that this is enough: some sequence always moves.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field
from typing import Protocol

from worthit.decode.engine.sequence import Sequence
from worthit.decode.speculative.drafter import NOTHING


class Room(Protocol):
    """What the scheduler asks of memory; see `worthit.decode.engine.memory.Memory`."""

    def start(self, sequence: Sequence) -> bool:
        """Give a sequence its place, with what is known of its prompt; False where full."""

    def reserve(self, sequence: Sequence, n: int) -> bool:
        """Have room for `n` more computed tokens; False, and nothing changed, where none is."""

    def free(self, sequence: Sequence) -> None:
        """Take everything from a sequence."""

    def cut(self, sequence: Sequence, n: int) -> int:
        """How many of the next `n` tokens to compute at once, for a good place to stop."""


@dataclass(frozen=True)
class Part:
    """`n` tokens of `sequence` in a step, from `n_computed` on."""

    sequence: Sequence
    n: int

    @property
    def n_choices(self) -> int:
        """After how many of its last tokens a choice is made: none before the prompt is done."""
        sequence = self.sequence
        end = sequence.n_computed + self.n
        return 0 if end < sequence.n_total else 1 + len(sequence.draft)

    @property
    def n_rows(self) -> int:
        """Of how many of its last tokens logits are wanted."""
        sequence = self.sequence
        asks_for_prompt = (
            sequence.request.prompt_logprobs is not None
            and sequence.n_prompt_noted < sequence.n_prompt - 1
        )
        return self.n if asks_for_prompt else self.n_choices


@dataclass
class Plan:
    """A step: who takes part, and who had to go for them."""

    parts: list[Part] = field(default_factory=list)
    preempted: list[Sequence] = field(default_factory=list)

    @property
    def n_tokens(self) -> int:
        """Tokens of the step."""
        return sum(part.n for part in self.parts)


class Scheduler:
    """Waiting and running sequences, and the decision at every step."""

    def __init__(self, room: Room, *, max_batch_tokens: int, max_sequences: int) -> None:
        self.room = room
        self.max_batch_tokens, self.max_sequences = max_batch_tokens, max_sequences
        self.running: list[Sequence] = []
        self._waiting: list[tuple[tuple[float, int, int], Sequence]] = []
        self.n_waiting = 0

    def add(self, sequence: Sequence) -> None:
        """Let a sequence wait for its turn."""
        heapq.heappush(self._waiting, (sequence.order, sequence))
        self.n_waiting += 1
        sequence.is_queued = True

    def join(self, sequence: Sequence) -> None:
        """Let a sequence run that has its place already, or wait where too many do."""
        if len(self.running) < self.max_sequences:
            self._run(sequence)
        else:
            self._put_back(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Forget a finished or aborted sequence and take what it holds."""
        if sequence in self.running:
            self.running.remove(sequence)
            self.room.free(sequence)
        else:
            # It stays in the heap until its turn comes; see `_first_waiting`.
            self.n_waiting -= 1

    @property
    def waiting(self) -> list[Sequence]:
        """Who waits, in order."""
        return [s for _, s in sorted(self._waiting, key=lambda e: e[0]) if not s.is_finished]

    def plan(self) -> Plan:
        """The next step."""
        plan = Plan()
        budget = self.max_batch_tokens
        # Answers before prompts: a prompt takes what is left, and the gap between two tokens of an
        # answer is that of one step.
        for sequence in sorted(self.running, key=lambda s: not _is_answering(s)):
            if budget == 0:
                break
            if sequence.holding is None:
                continue  # it had to go for one before it
            n = self._wanted(sequence, budget)
            if self._make_room(sequence, n, plan):
                plan.parts.append(Part(sequence, n))
                budget -= n
        # Whoever had to go would be the first to come back.
        while budget and not plan.preempted:
            first = self._first_waiting()
            if first is None or not self._admit(first, plan):
                break
            n = self._wanted(first, budget)
            if self._make_room(first, n, plan):
                plan.parts.append(Part(first, n))
                budget -= n
        gone = set(map(id, plan.preempted))
        plan.parts = [part for part in plan.parts if id(part.sequence) not in gone]
        # Single tokens side by side: layers that take rows find them together.
        plan.parts.sort(key=lambda part: part.n > 1)
        return plan

    def _wanted(self, sequence: Sequence, budget: int) -> int:
        n = sequence.n_total - sequence.n_computed
        if n > budget and sequence.draft:
            # A guess is worth less than others' tokens.
            sequence.draft = NOTHING
            n = sequence.n_total - sequence.n_computed
        return self.room.cut(sequence, min(n, budget))

    def _make_room(self, sequence: Sequence, n: int, plan: Plan) -> bool:
        """Reserve for `n` tokens, at the cost of whoever goes last; False if that is itself."""
        while not self.room.reserve(sequence, n):
            last = self.running[-1]
            self._preempt(last, plan)
            if last is sequence:
                return False
        return True

    def _admit(self, sequence: Sequence, plan: Plan) -> bool:
        """Let the first of the waiting run, if need be in place of one of lower priority."""
        while len(self.running) >= self.max_sequences or not self.room.start(sequence):
            last = self.running[-1] if self.running else None
            if last is None or last.order < sequence.order:
                return False
            if last.request.priority >= sequence.request.priority:
                # It was put back by one that is gone: it waits for room, and takes none.
                return False
            self._preempt(last, plan)
        heapq.heappop(self._waiting)
        self.n_waiting -= 1
        self._run(sequence)
        return True

    def _run(self, sequence: Sequence) -> None:
        sequence.is_queued = True
        self.running.append(sequence)
        self.running.sort(key=lambda s: s.order)

    def _preempt(self, sequence: Sequence, plan: Plan) -> None:
        self.running.remove(sequence)
        plan.preempted.append(sequence)
        self._put_back(sequence)

    def _put_back(self, sequence: Sequence) -> None:
        self.room.free(sequence)
        sequence.n_computed = 0
        sequence.draft = NOTHING
        sequence.n_preemptions += 1
        self.add(sequence)

    def _first_waiting(self) -> Sequence | None:
        while self._waiting and self._waiting[0][1].is_finished:
            heapq.heappop(self._waiting)
        return self._waiting[0][1] if self._waiting else None


def _is_answering(sequence: Sequence) -> bool:
    return sequence.n_total - sequence.n_computed <= 1 + len(sequence.draft)
