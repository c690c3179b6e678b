"""What an engine has done: counts, and times in buckets, under the names that dashboards know."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass, field

# Upper ends of buckets, in seconds.
TTFT_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
ITL_S = (0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.0, 5.0)
E2E_S = (0.1, 0.3, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0)


@dataclass
class Histogram:
    """How many values were at most each of `bounds`; the last count is of all above."""

    bounds: tuple[float, ...]
    total: float = 0.0
    counts: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.counts = self.counts or [0] * (len(self.bounds) + 1)

    def add(self, value: float, n: int = 1) -> None:
        """Count `value` `n` times."""
        self.counts[bisect_left(self.bounds, value)] += n
        self.total += value * n

    @property
    def n(self) -> int:
        """How many values."""
        return sum(self.counts)


@dataclass
class Stats:
    """Counts since the engine was made, and its state after the last step.

    Attributes:
        n_running, n_waiting: sequences.
        n_blocks, n_blocks_held: of the cache.
        n_steps: passes through the model; `n_step_tokens` tokens went through it in them.
        n_preemptions: sequences put back to be computed again.
        n_prompt_tokens, n_generation_tokens: of requests, when their first token came, and said.
        n_prefix_asked, n_prefix_found: tokens of prompts looked up and found in the prefix cache.
        n_drafts, n_draft_tokens, n_accepted_tokens: of drafters; `accepted_at` counts the accepted
            by their place in the draft.
        finished: finished samples by reason.
        n_errors: steps that failed.
        ttft_s: from arrival to the first token; `itl_s` between tokens; `e2e_s` to the end.
        step_s: time of the last step.
    """

    n_running: int = 0
    n_waiting: int = 0
    n_blocks: int = 0
    n_blocks_held: int = 0
    n_steps: int = 0
    n_step_tokens: int = 0
    n_preemptions: int = 0
    n_prompt_tokens: int = 0
    n_generation_tokens: int = 0
    n_prefix_asked: int = 0
    n_prefix_found: int = 0
    n_drafts: int = 0
    n_draft_tokens: int = 0
    n_accepted_tokens: int = 0
    accepted_at: Counter[int] = field(default_factory=Counter)
    finished: Counter[str] = field(default_factory=Counter)
    n_errors: int = 0
    step_s: float = 0.0
    ttft_s: Histogram = field(default_factory=lambda: Histogram(TTFT_S))
    itl_s: Histogram = field(default_factory=lambda: Histogram(ITL_S))
    e2e_s: Histogram = field(default_factory=lambda: Histogram(E2E_S))

    @property
    def share_held(self) -> float:
        """Share of the cache's blocks that sequences hold."""
        return self.n_blocks_held / self.n_blocks if self.n_blocks else 0.0

    def note_draft(self, n_drafted: int, n_accepted: int) -> None:
        """Count one draft."""
        self.n_drafts += 1
        self.n_draft_tokens += n_drafted
        self.n_accepted_tokens += n_accepted
        self.accepted_at.update(range(n_accepted))
