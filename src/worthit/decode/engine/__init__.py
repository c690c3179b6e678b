"""Many requests on one model at once: a scheduler, paged caches, and a choice for each its own."""

from __future__ import annotations

from worthit.decode.engine.config import EngineConfig
from worthit.decode.engine.engine import Engine
from worthit.decode.engine.grammar import Grammar
from worthit.decode.engine.request import (
    Completion,
    FinishReason,
    Output,
    QueueFull,
    Request,
    Sample,
    TokenLogprob,
    Usage,
)
from worthit.decode.engine.stats import Histogram, Stats

__all__ = [
    "Completion",
    "Engine",
    "EngineConfig",
    "FinishReason",
    "Grammar",
    "Histogram",
    "Output",
    "QueueFull",
    "Request",
    "Sample",
    "Stats",
    "TokenLogprob",
    "Usage",
]
