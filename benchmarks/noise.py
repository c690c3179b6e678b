"""How much of the machine others took while a benchmark ran.

The load average of the last minutes would also hold what the benchmark before this one did; what
others computed in between, time stolen from a virtual machine included, is counted instead.
"""

from __future__ import annotations

import time

import psutil

# Share of all cores, taken by others, from which a run is called noisy.
NOISY = 0.03


class Others:
    """Counts from the moment it is made: `Others().share()` is what others took since."""

    def __init__(self) -> None:
        self._began = time.perf_counter()
        self._busy, self._ours = _busy_seconds(), _our_seconds()

    def share(self) -> float:
        """Share of all cores, between 0 and 1."""
        wall = time.perf_counter() - self._began
        others = (_busy_seconds() - self._busy) - (_our_seconds() - self._ours)
        return min(1.0, max(0.0, others / (wall * psutil.cpu_count())))

    def record(self) -> dict[str, float | bool]:
        """What a file of results says of it; read it once everything has been timed."""
        share = self.share()
        return {"share_of_others": round(share, 4), "is_noisy": share > NOISY}


def noted(record: dict[str, float | bool]) -> str:
    """A line for people; nothing after a quiet run."""
    if not record["is_noisy"]:
        return ""
    return f"noisy: others took {100 * record['share_of_others']:.0f}% of this machine meanwhile\n"


def _busy_seconds() -> float:
    spent = psutil.cpu_times()
    idle = spent.idle + getattr(spent, "iowait", 0.0)
    guest = getattr(spent, "guest", 0.0) + getattr(spent, "guest_nice", 0.0)  # in user already
    return sum(spent) - idle - guest


def _our_seconds() -> float:
    """Of this process, of those it started and waited for, and of those that still run."""
    here = psutil.Process()
    total = sum(here.cpu_times()[:4])
    for child in here.children(recursive=True):
        try:
            total += sum(child.cpu_times()[:4])
        except psutil.Error:
            continue  # it ended: what it took is ours once it is waited for
    return total
