"""Block diagrams as SVG: one box a step, and what a technique adds, changes or removes.

A mark is never colour alone: the outline differs, and a word stands beside the box.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from html import escape

from worthit.report.records import change_of, text_of

BOX_WIDTH = 330
COLUMNS = 46
LINE_HEIGHT = 16
PADDING = 8
GAP = 16
WORD_X = BOX_WIDTH + 14
WIDTH = BOX_WIDTH + 110


def block_diagram(steps: Sequence[str], *, ident: str, title: str, words: dict[str, str]) -> str:
    """The data path of a technique from top to bottom."""
    parts: list[str] = []
    y = 2
    for i, step in enumerate(steps):
        change = change_of(step)
        lines = textwrap.wrap(text_of(step), COLUMNS) or [""]
        height = len(lines) * LINE_HEIGHT + 2 * PADDING
        if i:
            middle = BOX_WIDTH / 2
            parts.append(
                f'<path class="arrow" d="M{middle:g} {y - GAP}V{y - 3}M{middle - 4:g} {y - 8}'
                f'L{middle:g} {y - 3}L{middle + 4:g} {y - 8}"/>'
            )
        parts.append(_box(change, y, height))
        for j, line in enumerate(lines):
            baseline = y + PADDING + 12 + j * LINE_HEIGHT
            style = ' class="gone"' if change == "removed" else ""
            parts.append(f'<text x="12" y="{baseline}"{style}>{escape(line)}</text>')
        if change != "same":
            parts.append(
                f'<text class="{change}" x="{WORD_X}" y="{y + height / 2 + 4:g}">'
                f"{_SIGN[change]} {escape(words[change])}</text>"
            )
        y += height + GAP
    total = y - GAP + 2
    return (
        f'<svg class="blocks" viewBox="0 0 {WIDTH} {total}" style="max-width:{WIDTH}px" role="img" '
        f'aria-labelledby="{ident}-title"><title id="{ident}-title">{escape(title)}</title>'
        f"{''.join(parts)}</svg>"
    )


_SIGN = {"added": "+", "removed": "−", "changed": "~"}


def _box(change: str, y: int, height: int) -> str:
    """Plain: thin outline. Added: double. Changed: cut corners. Removed: dashed."""
    x, w = 2, BOX_WIDTH - 4
    if change == "changed":
        c = 8
        return (
            f'<path class="box changed" d="M{x + c} {y}H{x + w - c}L{x + w} {y + c}'
            f'V{y + height - c}L{x + w - c} {y + height}H{x + c}L{x} {y + height - c}V{y + c}Z"/>'
        )
    box = f'<rect class="box {change}" x="{x}" y="{y}" width="{w}" height="{height}" rx="4"/>'
    if change == "added":
        box += (
            f'<rect class="box added inner" x="{x + 3}" y="{y + 3}" width="{w - 6}" '
            f'height="{height - 6}" rx="2"/>'
        )
    return box
