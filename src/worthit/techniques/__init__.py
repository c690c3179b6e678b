"""The catalogue of techniques, found by walking this folder: `<family>/<id>.py`, one file each."""

from __future__ import annotations

from worthit.techniques._catalogue import FAMILIES, catalogue, technique
from worthit.techniques._record import (
    PAID_FOR,
    UNSEEN,
    Bottleneck,
    Evidence,
    Metric,
    Source,
    Technique,
)

__all__ = [
    "FAMILIES",
    "PAID_FOR",
    "UNSEEN",
    "Bottleneck",
    "Evidence",
    "Metric",
    "Source",
    "Technique",
    "catalogue",
    "technique",
]
