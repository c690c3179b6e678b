"""What a run says of itself on stderr: its cost before it starts, and how far it is.

A bar with the time left on a terminal; elsewhere a line every half minute.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from worthit.lab.jobs import Job

LINE_EVERY_S = 30.0


def forecast(jobs: Sequence[Job], n_cells: int, n_threads: int) -> str:
    """What a run is going to cost, in a sentence.

    >>> forecast([Job("a", 100.0, 2, lambda tick: None)], 6, 2)
    'about 2 min on 2 threads, 2 of 6 cells to do, 0 downloads'
    """
    n_todo = sum(job.n_cells for job in jobs)
    cells = f"{n_cells} cells" if n_todo == n_cells else f"{n_todo} of {n_cells} cells to do"
    threads = f"{n_threads} thread{'s' if n_threads > 1 else ''}"
    seconds = sum(job.seconds for job in jobs)
    return f"about {about(seconds)} on {threads}, {cells}, 0 downloads"


def about(seconds: float) -> str:
    """A length of time, roughly.

    >>> about(3.2), about(47), about(200), about(9000)
    ('5 s', '45 s', '3 min', '2.5 h')
    """
    if seconds < 55:
        return f"{max(5 * round(seconds / 5), 5)} s"
    if seconds < 55 * 60:
        return f"{max(round(seconds / 60), 1)} min"
    return f"{seconds / 3600:.2g} h"


class Watch:
    """How far a run is, in forecast seconds: the share of them that is done tells what is left."""

    def __init__(self, jobs: Sequence[Job], show: Any = None) -> None:
        self.total = sum(job.seconds for job in jobs) or 1.0
        self.done = 0.0
        self.job: Job | None = None
        self.started = time.monotonic()
        self.show = show

    def start(self, i: int, job: Job) -> None:
        """A job begins."""
        self.job = job
        self.tick(0.0, "")

    def tick(self, share: float, note: str) -> None:
        """A job is `share` done."""
        if self.show is not None and self.job is not None:
            done = (self.done + share * self.job.seconds) / self.total
            text = f"{self.job.label}{', ' if note else ''}{note}"
            self.show(min(done, 1.0), self.left(done), text)

    def end(self, i: int, job: Job) -> None:
        """A job is done."""
        self.done += job.seconds
        self.tick(0.0, "")

    def left(self, done: float) -> float | None:
        """Seconds that are left, once something is done."""
        elapsed = time.monotonic() - self.started
        return elapsed / done * (1 - done) if done > 0.02 else None


@contextmanager
def watching(jobs: Sequence[Job]) -> Iterator[Watch]:
    """A watch that shows itself on stderr."""
    if sys.stderr.isatty():
        with _bar(jobs) as watch:
            yield watch
        return
    last = time.monotonic()

    def line(done: float, left: float | None, text: str) -> None:
        nonlocal last
        if time.monotonic() - last < LINE_EVERY_S:
            return
        last = time.monotonic()
        more = "" if left is None else f", about {about(left)} left"
        say(f"{100 * done:.0f} %{more}: {text}")

    yield Watch(jobs, line)


@contextmanager
def _bar(jobs: Sequence[Job]) -> Iterator[Watch]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    columns = (
        BarColumn(bar_width=24),
        TextColumn("{task.percentage:3.0f} %"),
        TextColumn("{task.fields[left]}"),
        TextColumn("{task.description}"),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as shown:
        task = shown.add_task("", total=1.0, left="")

        def update(done: float, left: float | None, text: str) -> None:
            more = "" if left is None else f"{about(left)} left"
            shown.update(task, completed=done, description=text, left=more)

        yield Watch(jobs, update)


def say(text: str) -> None:
    """A line on stderr."""
    print(f"worthit: {text}", file=sys.stderr, flush=True)  # noqa: T201  # progress, not output
