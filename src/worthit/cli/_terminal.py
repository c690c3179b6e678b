"""What the terminal can show: width, colour, glyphs; and text laid out for it.

Plain strings with ANSI codes around them: a table needs no library, and starting stays fast.
"""

from __future__ import annotations

import os
import sys
import textwrap
from collections.abc import Iterable
from typing import Any

from worthit._record import value
from worthit.errors import WorthitError

# Columns where stdout is a file or a pipe and nothing says otherwise.
PIPED_COLUMNS = 100
WIDEST = 160
NARROWEST = 40

_CODES = {"bold": "1", "dim": "2", "green": "32", "yellow": "33", "red": "31", "cyan": "36"}
# What stands for a glyph where the encoding has none.
_ASCII = {
    "▲": "^",
    "△": "^",
    "◆": "~",
    "■": "x",
    "█": "#",
    "▌": "#",
    "░": ".",
    "·": "|",
    "…": "...",
    "→": "->",
    "│": "|",
    "▼": "v",
    "×": "x",
    "≥": ">=",
    "≤": "<=",
    "–": "-",
    "—": "-",
}
_PLAIN = str.maketrans(_ASCII)
# A model's name comes from a file: what would steer the terminal is shown as a question mark.
_CONTROL = {code: "?" for code in [*range(32), *range(127, 160)] if code not in (9, 10)}


@value
class Terminal:
    """Where text goes, and what it can carry."""

    width: int = PIPED_COLUMNS
    has_color: bool = False
    has_glyphs: bool = True

    def paint(self, text: str, *styles: str) -> str:
        """`text` in colour, where there is colour."""
        if not self.has_color or not styles or not text:
            return text
        return f"\x1b[{';'.join(_CODES[s] for s in styles)}m{text}\x1b[0m"

    def plain(self, text: str) -> str:
        """`text` with glyphs that the terminal has, and nothing that would steer it."""
        text = printable(text)
        return text if self.has_glyphs else text.translate(_PLAIN)

    def wrap(self, text: str, *, indent: int = 0, width: int | None = None) -> list[str]:
        """Lines of `text` within the width, each indented; long words are left whole."""
        room = max((self.width if width is None else width) - indent, 20)
        lines = textwrap.wrap(
            self.plain(text), room, break_long_words=False, break_on_hyphens=False
        )
        return [" " * indent + line for line in lines]

    def bar(self, share: float, cells: int) -> str:
        """A bar of `cells` for a share between 0 and 1; half cells where there are glyphs."""
        halves = round(2 * cells * min(max(share, 0.0), 1.0))
        halves = max(halves, 1) if share > 0 else 0
        full, half = divmod(halves, 2)
        text = "█" * full + ("▌" if half else "")
        return self.plain(text.ljust(cells, "░"))


def printable(text: str) -> str:
    """`text` without control characters, but for tabs and line ends.

    >>> printable("a\\x1b[31mb")
    'a?[31mb'
    """
    return text.translate(_CONTROL)


def of_stdout() -> Terminal:
    """The terminal that stdout is, honouring COLUMNS, NO_COLOR and TERM."""
    is_tty = sys.stdout.isatty()
    columns = _columns()
    return Terminal(
        width=max(min(columns, WIDEST), NARROWEST),
        has_color=is_tty
        and not os.environ.get("NO_COLOR")
        and os.environ.get("TERM", "") not in ("dumb", ""),
        has_glyphs=_encodes("".join(_ASCII), sys.stdout.encoding),
    )


def _columns() -> int:
    # What shutil.get_terminal_size does, without the archive formats that importing it loads.
    stated = os.environ.get("COLUMNS", "")
    if stated.isascii() and stated.isdigit() and int(stated) > 0:
        return int(stated)
    try:
        return os.get_terminal_size(sys.stdout.fileno()).columns or PIPED_COLUMNS
    except (OSError, ValueError):
        return PIPED_COLUMNS


def _encodes(text: str, encoding: str | None) -> bool:
    try:
        text.encode(encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def show(lines: Iterable[str]) -> None:
    """Print result lines; a character that the encoding lacks becomes a question mark."""
    text = "\n".join(line.rstrip() for line in lines)
    encoding = sys.stdout.encoding or "ascii"
    if not _encodes(text, encoding):
        text = text.encode(encoding, "replace").decode(encoding)
    _write(text)


def show_json(record: Any) -> None:
    """Print a record as JSON and nothing else; what is infinite has no number and becomes null."""
    import json

    # Escapes where the encoding lacks a letter: JSON stays JSON.
    is_ascii = not _encodes("é△", sys.stdout.encoding)
    _write(json.dumps(finite(record), indent=2, ensure_ascii=is_ascii, allow_nan=False))


def _write(text: str) -> None:
    try:
        print(text, flush=True)
    except BrokenPipeError:
        raise
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise WorthitError(f"the result could not be written: {reason}") from None


def finite(record: Any) -> Any:
    """`record` with infinities and NaN as null: JSON has neither."""
    if isinstance(record, dict):
        return {key: finite(value) for key, value in record.items()}
    if isinstance(record, (list, tuple)):
        return [finite(value) for value in record]
    if isinstance(record, float) and (record != record or record in (float("inf"), -float("inf"))):
        return None
    return record


def note(text: str) -> None:
    """A warning or hint, on stderr."""
    print(printable(text), file=sys.stderr)


def warn(warnings: Iterable[str]) -> None:
    """What was assumed, and what is odd though possible, on stderr."""
    for warning in warnings:
        note(f"note: {warning}")


def labelled(label: str, text: str, terminal: Terminal, *, width: int = 10) -> list[str]:
    """`label` in front of a paragraph that hangs beside it; nothing where there is no text."""
    if not text:
        return []
    lines = terminal.wrap(text, indent=width)
    return [terminal.paint(label.ljust(width), "bold") + lines[0][width:], *lines[1:]]
