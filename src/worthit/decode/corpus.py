"""Text that every installation has: the standard library's own source and reference pages.

Half of it is code, half the prose of the language reference (`pydoc_data.topics`), document by
document in turn. A document belongs to calibration or to evaluation by a hash of its name, so that
what is measured was not calibrated on. The text is that of the Python that runs: record its version
beside every number.
"""

from __future__ import annotations

import sysconfig
import zlib
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from worthit.decode.tokenizer import Tokenizer
from worthit.errors import InputError

Part = Literal["calibration", "held-out"]
# One document in so many is held out.
HELD_OUT = 4
# Files and pages that say too little, and tables that are no text.
SHORTEST, LONGEST = 2_000, 200_000
# Characters of a document: no single one should fill a sample.
EXCERPT = 12_000


def documents(part: Part) -> Iterator[str]:
    """Code and prose in turn, in an order that is no alphabet's."""
    code = chain(sorted(_of_part(_sources(), part), key=lambda d: zlib.crc32(d[0].encode())))
    prose = chain(sorted(_of_part(_topics(), part), key=lambda d: zlib.crc32(d[0].encode())))
    while True:
        pair = [next(code, None), next(prose, None)]
        if pair == [None, None]:
            return
        yield from (text[:EXCERPT] for _, text in (d for d in pair if d is not None))


def _of_part(found: Iterator[tuple[str, str]], part: Part) -> Iterator[tuple[str, str]]:
    for name, text in found:
        is_held_out = zlib.crc32(name.encode()) % HELD_OUT == 0
        if is_held_out == (part == "held-out") and SHORTEST <= len(text) <= LONGEST:
            yield name, text


def _sources() -> Iterator[tuple[str, str]]:
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        try:
            yield path.name, path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            continue


def _topics() -> Iterator[tuple[str, str]]:
    try:
        from pydoc_data.topics import topics
    except ImportError:  # some distributions leave the pages out
        return
    yield from sorted(topics.items())


def read_text(path: Path) -> str:
    """The text of a file.

    Raises:
        InputError: no such file, or one that is not UTF-8 text.
    """
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: must be UTF-8 text, byte {error.start} is not") from None


def sequences(
    tokenizer: Tokenizer,
    n: int,
    length: int,
    *,
    part: Part = "calibration",
    file: Path | None = None,
) -> Tensor:
    """Ids of running text, `(n, length)`; fewer rows where the text ends before.

    Args:
        part: of the standard library's text.
        file: take this text instead.

    Raises:
        InputError: a text that does not fill one row.
    """
    texts = documents(part) if file is None else iter([read_text(file)])
    ids: list[int] = []
    for text in texts:
        ids += tokenizer.encode(text, has_special=False)
        if len(ids) >= n * length:
            break
    rows = min(n, len(ids) // length)
    if rows == 0:
        where = "the standard library" if file is None else str(file)
        raise InputError(
            f"{where}: gives {len(ids)} tokens, and one sequence takes {length}; give a longer text"
        )
    return torch.tensor(ids[: rows * length]).view(rows, length)
