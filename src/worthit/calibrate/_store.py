"""Where calibrations live: the finished one, and beside it what an interrupted run measured.

Every file is written beside its place and moved there, so that a stop at any moment leaves either
the old content or the new, whole.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

from worthit.errors import WorthitError
from worthit.spec.load import calibration_path

# What is older was measured on a machine in another mood.
LONGEST_BREAK_S = 6 * 3600.0
FORMAT = 1


def partial_path() -> Path:
    """Where an unfinished run keeps its samples."""
    return calibration_path().with_suffix(".partial.json")


def check_writable() -> None:
    """Raise, before anything is measured, unless the result can be kept."""
    folder = calibration_path().parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise WorthitError(
            f"the cache folder {folder} cannot be written ({error.strerror}), so that a "
            "calibration could not be kept; set XDG_CACHE_HOME to a folder that can"
        ) from None


def write(path: Path, data: Any) -> None:
    """Write JSON in one step: the old file or the new one, never half of either."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(data, file, indent=2)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            Path(name).unlink()
        raise


def save_partial(fingerprint: dict[str, Any], samples: dict[str, list[float]]) -> None:
    """Keep the samples of an unfinished run."""
    record = {
        "format": FORMAT,
        "fingerprint": fingerprint,
        "saved": time.time(),
        "samples": samples,
    }
    write(partial_path(), record)


def load_partial(fingerprint: dict[str, Any]) -> dict[str, list[float]]:
    """The samples of an earlier run on this very machine, or none."""
    try:
        record = json.loads(partial_path().read_text(encoding="utf-8"))
        fresh = 0 <= time.time() - float(record["saved"]) <= LONGEST_BREAK_S
        known = record["format"] == FORMAT and record["fingerprint"] == fingerprint
        samples = {
            str(name): [float(value) for value in values]
            for name, values in record["samples"].items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}  # none, or damaged: measuring again repairs it
    return samples if fresh and known else {}


def drop_partial() -> None:
    """Forget the unfinished run."""
    partial_path().unlink(missing_ok=True)
