"""How the past is kept: in blocks that sequences share, in few bits, in part; and found again."""

from __future__ import annotations
