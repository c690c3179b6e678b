"""Files of preference data to rows: each with its line, and with what is wrong instead of it.

A row is (number, what the number counts, data, problem); where there is a problem there is no data.
A file that cannot be read at all raises at once. Files are opened for reading only.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from worthit.errors import MissingCapability, nearest
from worthit.spec.preferences import PreferenceError, Row

SUFFIXES = (".jsonl", ".ndjson", ".json", ".parquet")
EXTRA = "pip install 'worthit[align]'"
# A list of rows inside an object of JSON, by what people call it.
LIST_KEYS = ("data", "rows", "examples", "train")
N_ROWS_AT_ONCE = 1024


def rows_of(path: Path) -> Iterator[Row]:
    """The rows of a file or folder.

    Raises:
        PreferenceError: it is not there, cannot be read, or is of no known kind.
        MissingCapability: what reads it is not installed.
    """
    if path.is_dir():
        return _saved(path)
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        kinds = ", ".join(SUFFIXES)
        raise PreferenceError(f"{path.name}: preferences are read from {kinds} or a saved dataset")
    if not path.exists():
        here = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        near = nearest(path.name, here)
        advice = f"; did you mean {near[0]}?" if near else ""
        raise PreferenceError(f"{path}: no such file{advice}")
    if suffix == ".parquet":
        return _parquet(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        why = (error.strerror or str(error)).lower()
        raise PreferenceError(f"{path}: cannot be read: {why}") from None
    return _json(content, path) if suffix == ".json" else _lines(content)


# --- JSON ----------------------------------------------------------------------------------------


def _lines(content: bytes) -> Iterator[Row]:
    lines = content.split(b"\n")
    for number, line in enumerate(lines, start=1):
        line = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
        line = line.removesuffix(b"\r")
        if not line.strip():
            continue
        try:
            text = line.decode("utf-8")
        except UnicodeDecodeError as error:
            wrong = f"is not UTF-8 text (byte {error.start + 1} of the line); save it as UTF-8"
            yield number, "line", None, wrong
            continue
        try:
            yield number, "line", json.loads(text, object_pairs_hook=_once), ""
        except json.JSONDecodeError as error:
            # What follows the last line feed should be nothing.
            is_cut = number == len(lines)
            cut = "; the file ends inside this line, so it may be cut off: copy it again"
            message = f"broken JSON: {_plain_message(error)} (column {error.colno})"
            yield number, "line", None, message + (cut if is_cut else "")
        except _Twice as twice:
            yield number, "line", None, f"says {twice} twice"
        except RecursionError:
            yield number, "line", None, "is nested too deeply"


def _json(content: bytes, path: Path) -> Iterator[Row]:
    """A list of rows, an object that holds one, or JSONL under another name."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise PreferenceError(
            f"{path.name}, line {line}: is not UTF-8 text; save it as UTF-8"
        ) from None
    start = _skip(text, 0)
    if text[start : start + 1] == "[":
        return _items(text, start)
    first = text[start:].split("\n", 1)[0]
    if _is_row(first):
        return _lines(content)
    try:
        whole = json.loads(text)
    except json.JSONDecodeError as error:
        message = _plain_message(error)
        raise PreferenceError(
            f"{path.name}, line {error.lineno}: broken JSON: {message} (column {error.colno})"
        ) from None
    key = next((k for k in LIST_KEYS if isinstance(whole, dict) and k in whole), None)
    if key is None or not isinstance(whole[key], list):
        raise PreferenceError(
            f"{path.name}: must be a list of rows, or an object with one under "
            f"{', '.join(LIST_KEYS)}"
        )
    return ((i, f"{key} entry", row, "") for i, row in enumerate(whole[key], start=1))


def _items(text: str, start: int) -> Iterator[Row]:
    """The members of a list, each with the line on which it begins."""
    decoder = json.JSONDecoder(object_pairs_hook=_once)
    at = _skip(text, start + 1)
    line, counted = 1, 0
    if text[at : at + 1] == "]":
        return
    while True:
        line += text.count("\n", counted, at)
        counted = at
        try:
            row, end = decoder.raw_decode(text, at)
        except json.JSONDecodeError as error:
            # Where one member ends cannot be told once it is broken: nothing after it is read.
            is_cut = not text[error.pos :].strip()
            cut = "; the file ends here, so it may be cut off: copy it again"
            message = f"broken JSON: {_plain_message(error)} (column {error.colno})"
            yield error.lineno, "line", None, message + (cut if is_cut else "")
            return
        except _Twice as twice:
            yield line, "line", None, f"says {twice} twice; nothing after it was read"
            return
        except RecursionError:
            yield line, "line", None, "is nested too deeply"
            return
        yield line, "line", row, ""
        at = _skip(text, end)
        if text[at : at + 1] == "]":
            return
        if text[at : at + 1] != ",":
            what = "a comma or the closing bracket is missing"
            cut = "; the file ends here, so it may be cut off: copy it again"
            line += text.count("\n", counted, at)
            yield line, "line", None, f"broken JSON: {what}" + ("" if text[at:].strip() else cut)
            return
        at = _skip(text, at + 1)


def _skip(text: str, at: int) -> int:
    while at < len(text) and text[at] in " \t\r\n":
        at += 1
    return at


def _is_row(line: str) -> bool:
    try:
        found = json.loads(line)
    except (json.JSONDecodeError, RecursionError):
        return False
    return isinstance(found, dict) and not any(isinstance(found.get(k), list) for k in LIST_KEYS)


class _Twice(ValueError):
    """A key that stands twice in one object: which of the two was meant?"""


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise _Twice(key)
            seen.add(key)
    return made


def _plain_message(error: json.JSONDecodeError) -> str:
    message = error.msg.replace("Expecting", "expected")
    return message[:1].lower() + message[1:].removesuffix(" starting at").removesuffix(".")


# --- what pyarrow and datasets read --------------------------------------------------------------


def _parquet(path: Path) -> Iterator[Row]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise MissingCapability("reading Parquet needs the extra 'align'", EXTRA) from None
    try:
        file = pyarrow.parquet.ParquetFile(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise PreferenceError(
            f"{path.name}: is no Parquet file, or is cut off: {_first_line(error)}"
        ) from None
    return _batches(file, path.name)


def _batches(file: Any, name: str) -> Iterator[Row]:
    import pyarrow

    number = 0
    with file:
        try:
            for batch in file.iter_batches(batch_size=N_ROWS_AT_ONCE):
                for row in batch.to_pylist():
                    number += 1
                    yield number, "row", row, ""
        except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
            raise PreferenceError(
                f"{name}: cannot be read after row {number}: {_first_line(error)}"
            ) from None


def _saved(path: Path) -> Iterator[Row]:
    """A folder that `Dataset.save_to_disk` wrote; of several splits, one is named by its path."""
    splits = path / "dataset_dict.json"
    if splits.is_file():
        names = [p.name for p in sorted(path.iterdir()) if (p / "state.json").is_file()]
        raise PreferenceError(
            f"{path}: holds several splits; name one: "
            + ", ".join(str(path / name) for name in names)
        )
    if not (path / "state.json").is_file():
        raise PreferenceError(
            f"{path}: is a folder and no saved dataset (it has no state.json); name a file in it"
        )
    try:
        import datasets
    except ImportError:
        raise MissingCapability("reading a saved dataset needs the extra 'align'", EXTRA) from None
    try:
        rows = datasets.load_from_disk(str(path))
    except Exception as error:  # whatever is broken in it, it is one sentence here
        raise PreferenceError(f"{path}: cannot be read: {_first_line(error)}") from None
    return ((i, "row", row, "") for i, row in enumerate(rows, start=1))


def _first_line(error: BaseException) -> str:
    return str(error).split("\n", 1)[0]
