"""How far long work is, on stderr; sizes and times in words."""

from __future__ import annotations

import sys
import time

from worthit.cli import _terminal

# Where stderr is no terminal, a line so often and no more.
SECONDS_BETWEEN_LINES = 30.0


class Progress:
    """How far a piece of work is and how long the rest of it takes, on stderr."""

    def __init__(self) -> None:
        self.what = ""
        self.started = self.said = 0.0

    def __call__(self, what: str, done: int, of: int, left_s: float | None = None) -> None:
        """Say it: on a terminal each time, elsewhere seldom.

        Args:
            left_s: seconds that the rest takes, where its pieces are not alike.
        """
        now = time.monotonic()
        if what != self.what:
            self.what, self.started, self.said = what, now, now
        is_tty = sys.stderr.isatty()
        rest = (now - self.started) / done * (of - done) if done > 1 else None
        rest = rest if left_s is None else left_s
        left = "" if rest is None else f", {time_text(rest)} left"
        text = f"{what}: {done} of {of}{left}"
        if is_tty:
            sys.stderr.write(f"\r\x1b[K{text}" if done < of else "\r\x1b[K")
            sys.stderr.flush()
        elif now - self.said >= SECONDS_BETWEEN_LINES:
            self.said = now
            _terminal.note(text)


def size_text(n_bytes: float) -> str:
    """Bytes in powers of ten: `96.6 MB`."""
    for unit, size in (("GB", 1e9), ("MB", 1e6)):
        if n_bytes >= size:
            return f"{n_bytes / size:.3g} {unit}"
    return f"{n_bytes / 1e3:.3g} kB"


def time_text(seconds: float) -> str:
    """Seconds, minutes or hours: `42 s`, `3 min`, `1.5 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
