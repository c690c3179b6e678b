"""Write the page: checked before the work starts, and whole or not at all when it is done."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from worthit.errors import InputError

if TYPE_CHECKING:
    from worthit.judge.judge import Judgement


def check_target(path: str | os.PathLike[str]) -> Path:
    """The file to write, or one sentence on why it cannot be.

    Raises:
        InputError: a folder, a folder that does not exist, or one that may not be written.
    """
    target = Path(path)
    if target.is_dir():
        raise InputError(f"--html: {path} is a folder; name a file, such as {target / 'r.html'}")
    folder = target.parent
    if not folder.is_dir():
        raise InputError(f"--html: there is no folder {folder}; make it, or name another file")
    # What replaces the file is made beside it, so the folder has to be writable.
    if not os.access(folder, os.W_OK) or (target.exists() and not os.access(target, os.W_OK)):
        raise InputError(f"--html: {path} cannot be written: permission denied")
    return target


def write_page(
    judgement: Judgement, path: str | os.PathLike[str], *, command: str, lang: str = "en"
) -> int:
    """Write the report on `judgement` to `path` and return its size in bytes.

    The page appears whole: it is written beside `path` and then moved there.

    Raises:
        InputError: `path` cannot be written.
    """
    from worthit.report.page import page

    return write_text(page(judgement, command=command, lang=lang), path)


def write_text(text: str, path: str | os.PathLike[str]) -> int:
    """Write a page whole, and return its size in bytes; see `write_page`."""
    target = check_target(path)
    content = text.encode("utf-8")
    temporary = None
    try:
        handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=".worthit-", suffix=".html")
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        # mkstemp keeps its file private; a report is as readable as any file its owner makes.
        Path(temporary).chmod(0o666 & ~_umask())
        Path(temporary).replace(target)
        temporary = None
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise InputError(f"--html: {path} cannot be written: {reason}") from None
    finally:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
    return len(content)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
