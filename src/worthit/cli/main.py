"""The `worthit` command: run a verb, and turn whatever happens into one line and an exit code."""

from __future__ import annotations

import contextlib
import gc
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

# Starting the threads of the BLAS that NumPy loads costs these verbs more than they compute; what
# measures the machine keeps them.
WITHOUT_THREADS = ("judge", "cost", "explain")
# Threads that spin while they wait stall one another on a machine that is also busy elsewhere: a
# token took 900 ms in place of 35 on two cores of which one was taken.
PATIENT_THREADS = ("generate", "serve", "quantize", "context")
FAILED = 1
INTERRUPTED = 130
# What a shell reports for a program whose reader went away: 128 + SIGPIPE.
NO_READER = 141

# Modules that tidy up when the interpreter ends: threads, temporary files.
NEED_A_PROPER_END = ("torch", "matplotlib", "multiprocessing", "concurrent.futures")


def main() -> NoReturn:
    """The console script."""
    # A verdict is short-lived and makes few cycles: look for them rarely.
    gc.set_threshold(100_000, 50, 50)
    if sys.argv[1:2] and sys.argv[1] in WITHOUT_THREADS:
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    if sys.argv[1:2] and sys.argv[1] in PATIENT_THREADS:
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    code = run(sys.argv[1:])
    if code == NO_READER:
        # Python flushes stdout once more on its way out: give it somewhere to write.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if not any(name in sys.modules for name in NEED_A_PROPER_END):
        # Taking NumPy down object by object costs as much as a tenth of a verdict.
        with contextlib.suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def run(arguments: Sequence[str]) -> int:
    """Run `worthit ARGUMENTS` and return the exit code; nothing but an interpreter error escapes.

    Exit codes: 0 done, 1 the run failed, 2 the input is wrong, 3 something is missing here,
    4 a measurement was inconclusive, 130 interrupted.
    """
    import click

    from worthit.cli._group import cli
    from worthit.errors import WorthitError

    try:
        code = cli.main(args=list(arguments), prog_name="worthit", standalone_mode=False)
        return code if isinstance(code, int) else 0
    except click.UsageError as error:
        where = error.ctx.command_path if error.ctx else "worthit"
        _say(f"{error.format_message()}\nSee: {where} --help")
        return error.exit_code
    except click.ClickException as error:
        _say(error.format_message())
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        _say("interrupted")
        return INTERRUPTED
    except WorthitError as error:
        _say(str(error))
        return error.exit_code
    except BrokenPipeError:
        return NO_READER
    except SystemExit as error:
        # click ends the interpreter itself in two places: with 1 where the reader of a pipe went
        # away, and after it has completed a word for a shell.
        return NO_READER if error.code == 1 else 0
    except MemoryError:
        _say("out of memory on this machine")
        return FAILED
    except Exception as error:
        if os.environ.get("WORTHIT_DEBUG"):
            raise
        _say(
            f"this is a bug in worthit, please report it: {type(error).__name__}: "
            f"{' '.join(str(error).split())} (WORTHIT_DEBUG=1 shows where)"
        )
        return FAILED


def _say(message: str) -> None:
    from worthit.cli._terminal import note

    note(f"worthit: {message}")
