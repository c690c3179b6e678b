"""A job's folder beside its output: what an interrupted run goes on from, and the output at last.

Everything stands in `.NAME.align` beside OUT until it is done; then OUT appears by a rename, whole,
and the folder goes. What a job was is written first: another job is not continued by accident.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from worthit.errors import InputError, WorthitError
from worthit.train.history import disk_error

JOB, RECORD = "job.json", "align.json"
T = TypeVar("T")
# Asked for anew each time: they do not change what is made.
FREE = ("out", "checkpoint_every_s")


class Work:
    """The folder of a job.

    Args:
        out: the folder to write.
        about: what must be equal for the job to be the same one.

    Raises:
        InputError: `out` is there already, or another job is under way for it.
    """

    def __init__(self, out: Path, about: dict[str, Any]) -> None:
        self.out = out.absolute()
        if self.out.is_dir() and any(self.out.iterdir()):
            raise InputError(f"{out}: is there and not empty; remove it or choose another name")
        if (self.out.exists() or self.out.is_symlink()) and not self.out.is_dir():
            raise InputError(f"{out}: is there and no folder; choose another name")
        if not self.out.parent.is_dir():
            raise InputError(f"{out}: its parent folder does not exist; make it first")
        self.folder = self.out.parent / f".{self.out.name}.align"
        kept = {k: v for k, v in about.items() if k not in FREE}
        wanted = json.loads(json.dumps(kept))
        path = self.folder / JOB
        self.is_resumed = path.is_file()
        if self.is_resumed:
            found = json.loads(path.read_text(encoding="utf-8"))
            different = sorted(k for k in {*found, *wanted} if found.get(k) != wanted.get(k))
            if different:
                raise InputError(
                    *(
                        f"{k}: {found.get(k)!r} there, {wanted.get(k)!r} here"
                        for k in different[:8]
                    ),
                    f"give the same options to go on with it, or remove {self.folder}",
                    context=f"{self.folder} holds another job's work",
                )
            return
        write_json(path, wanted)

    def kept(self, name: str, make: Callable[[], T]) -> T:
        """What `make` gives, as JSON; from the folder where it is there already."""
        path = self.folder / f"{name}.json"
        if not path.is_file():
            write_json(path, make())
        found: T = json.loads(path.read_text(encoding="utf-8"))
        return found

    def finish(self, save: Callable[[Path], None], record: dict[str, Any]) -> None:
        """Let `save` fill a folder, put the record beside, and give it its name."""
        made = self.folder / "output"
        shutil.rmtree(made, ignore_errors=True)
        try:
            made.mkdir(parents=True)
            save(made)
            write_json(made / RECORD, record)
            if self.out.is_dir():
                self.out.rmdir()
            made.rename(self.out)
        except OSError as error:
            shutil.rmtree(made, ignore_errors=True)
            reason = error.strerror or str(error)
            raise WorthitError(
                f"{self.out}: cannot be written ({reason}); what was learned is kept: make room "
                "and run the same command again"
            ) from None
        shutil.rmtree(self.folder, ignore_errors=True)


def write_json(path: Path, data: object) -> None:
    """Write JSON whole or not at all."""
    beside = path.with_suffix(".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside.write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        beside.replace(path)
    except OSError as error:
        raise disk_error(path, error) from error
