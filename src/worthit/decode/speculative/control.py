"""How much to guess: what verifying costs here, and how the guesses of a request fared so far.

Leviathan et al. 2022, arXiv:2211.17192, equation 1 and theorem 3.8, with the price of verification
put in, which that paper takes to be that of one token:

    E(k) = (1 - a^(k+1)) / (1 - a)                        tokens a pass
    gain(k) = (b - 1 + E(k)) / b * t(n) / (t(n + k) + k d)

| paper | here |
|---|---|
| alpha | `Pace.acceptance`: of guesses that were reached, the share kept; old ones fade |
| gamma | k |
| c, the draft's cost over the target's | d over t(1), measured as it drafts |
| 1, the cost of verifying gamma + 1 tokens | t(n + k) / t(n), measured at start (`costs`) |
| (none) | b sequences that run at the same time, n tokens of theirs in the pass without guesses |

k is the one of the largest gain. Where even that is below `LEAST_GAIN` the request goes on without
guesses, and tries a short one again after a while, twice as long each time that it was in vain.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

# Below, what is won is less than what the law gets wrong.
LEAST_GAIN = 1.02
# Guesses are good until known otherwise: as if so many had been seen, of which so many were kept.
PRIOR_SEEN, PRIOR_KEPT = 3.0, 2.1
# What a draft earlier than the last one counts for beside it.
FADING = 0.92
# Passes until the first new attempt, and between attempts at most; tokens of an attempt.
FIRST_WAIT, LONGEST_WAIT = 8, 256
ATTEMPT = 3


@dataclass(frozen=True)
class Costs:
    """Seconds of a pass by the number of its tokens.

    Attributes:
        rows: how many, ascending from 1.
        seconds: of the model's pass over as many.
    """

    rows: tuple[int, ...]
    seconds: tuple[float, ...]

    def at(self, n: float) -> float:
        """Seconds of a pass over `n` tokens: between what was measured, beyond in proportion."""
        if n >= self.rows[-1] and len(self.rows) > 1:
            slope = (self.seconds[-1] - self.seconds[-2]) / (self.rows[-1] - self.rows[-2])
            return self.seconds[-1] + max(0.0, slope) * (n - self.rows[-1])
        return float(np.interp(n, self.rows, self.seconds))

    def of(self, n: float) -> float:
        """c(n): what a pass over `n` tokens costs, in passes over one."""
        return self.at(n) / self.at(1)


@dataclass
class Pace:
    """How the guesses of one request fared.

    Attributes:
        kept, seen: guessed tokens that were kept, and that the target got to judge; they fade.
        wait: passes until the next attempt, while it is off; `patience` how long it was last told
            to wait.
        mean: tokens kept a draft, fading; for drafts whose length is their own.
    """

    kept: float = 0.0
    seen: float = 0.0
    wait: int = 0
    patience: int = 0
    mean: float | None = None

    @property
    def acceptance(self) -> float:
        """The chance that the next guessed token is kept."""
        return (self.kept + PRIOR_KEPT) / (self.seen + PRIOR_SEEN)


@dataclass
class Control:
    """Decides how many tokens to guess.

    Attributes:
        costs: of passes.
        draft_s: seconds that a drafted token takes; follows what `note_draft_time` is told.
        fixed: tokens of a guess whose size is the drafter's own, a tree for example: it is made
            whole or not at all. None for chains.
    """

    costs: Costs
    draft_s: float = 0.0
    fixed: int | None = None
    n_off: int = field(default=0, init=False)
    _is_timed: bool = field(default=False, init=False)

    def gain(
        self, acceptance: float, k: int, n_rows: int = 1, n_tokens: int | None = None
    ) -> float:
        """Tokens a second with guesses of `k` over those without.

        Args:
            n_rows: sequences that run at the same time, this one included.
            n_tokens: of theirs in the pass, without guesses; None for one each.
        """
        return self._gain(expected(acceptance, k), k, n_rows, n_tokens or n_rows)

    def _gain(self, n_said: float, k: int, n_rows: int, n_tokens: int) -> float:
        before = self.costs.at(n_tokens)
        after = self.costs.at(n_tokens + k) + k * self.draft_s
        return (n_rows - 1 + n_said) / n_rows * before / after

    def n_wanted(self, pace: Pace, most: int, n_rows: int = 1, n_tokens: int | None = None) -> int:
        """How many tokens to guess now, up to `most`; 0 where it does not pay."""
        if most <= 0:
            return 0
        if pace.wait > 0:
            pace.wait -= 1
            return 0 if pace.wait else min(most, self.fixed or ATTEMPT)
        if self.fixed is not None:
            mean = pace.mean
            n_said = 1 + (expected(pace.acceptance, most) - 1 if mean is None else mean)
            best = min(most, self.fixed)
            gain = self._gain(n_said, best, n_rows, n_tokens or n_rows)
        else:
            gains = [self.gain(pace.acceptance, k, n_rows, n_tokens) for k in range(1, most + 1)]
            best = 1 + int(np.argmax(gains))
            gain = gains[best - 1]
        if gain >= LEAST_GAIN:
            return best
        pace.patience = min(LONGEST_WAIT, max(FIRST_WAIT, 2 * pace.patience))
        pace.wait = pace.patience
        self.n_off += 1
        return 0

    def note(self, pace: Pace, n_drafted: int, n_kept: int) -> None:
        """Learn from one draft."""
        n_seen = n_kept + (n_kept < n_drafted)
        pace.kept = pace.kept * FADING + n_kept
        pace.seen = pace.seen * FADING + n_seen
        pace.mean = n_kept if pace.mean is None else pace.mean * FADING + n_kept * (1 - FADING)
        if n_kept == n_drafted:
            pace.patience //= 2

    def note_draft_time(self, seconds: float, n_drafted: int) -> None:
        """Learn what drafting takes."""
        if n_drafted:
            new = seconds / n_drafted
            # The first draft of a model pays for the prompt: it is left out.
            if self._is_timed:
                self.draft_s = new if self.draft_s == 0.0 else 0.8 * self.draft_s + 0.2 * new
            self._is_timed = True


def expected(acceptance: float, k: int) -> float:
    """Tokens that a pass says with `k` guesses: Leviathan's equation 1."""
    if acceptance >= 1:
        return k + 1.0
    return (1 - acceptance ** (k + 1)) / (1 - acceptance)
