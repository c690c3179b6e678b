"""Every error that worthit raises on purpose, in one tree.

    WorthitError                    exit 1  the run failed
    ├── InputError (ValueError)     exit 2  what the user gave is wrong; may hold several problems
    │   ├── SpecError                       a model, device, workload or data description
    │   ├── CaseError                       a case: parts that do not go together
    │   └── UnknownName                     a name nobody knows; carries the nearest known ones
    ├── MissingCapability           exit 3  no such extra, GPU or file here; carries the command
    ├── NotApplicable               (none)  a technique cannot act on a case; the judge catches it
    └── MeasurementInconclusive     exit 4  measured, but the data decide nothing

Messages say what was wrong, what was got, and what to do:
`n_kv_heads must divide n_heads, got n_heads=6 and n_kv_heads=4; pick one of 1, 2, 3, 6`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import ClassVar, Self

__all__ = [
    "CaseError",
    "InputError",
    "MeasurementInconclusive",
    "MissingCapability",
    "NotApplicable",
    "SpecError",
    "UnknownName",
    "WorthitError",
    "nearest",
    "problem",
    "unknown_name",
]

# Below this similarity a suggestion reads as noise: half of the letters must be shared in order.
SUGGESTION_CUTOFF = 0.5
N_SUGGESTIONS = 3
# A list longer than this hides the message; the listing command shows the rest.
N_KNOWN_SHOWN = 12
LISTED_KINDS = ("model", "device", "technique", "experiment")


class WorthitError(Exception):
    """Base of every error raised on purpose; anything else that escapes is a bug."""

    exit_code: ClassVar[int] = 1


class InputError(WorthitError, ValueError):
    """The input is wrong, in one or several places.

    Args:
        problems: one `"path: message"` each; a message without a path is fine.
        context: where all of them stand, such as a file name; see `within`.

    >>> print(InputError("n_layers: must be positive, got 0; give at least 1"))
    n_layers: must be positive, got 0; give at least 1
    >>> print(InputError("n_layers: must be positive, got 0", "d_ff: missing", context="a.toml"))
    a.toml: 2 problems
      n_layers: must be positive, got 0
      d_ff: missing
    """

    exit_code = 2

    def __init__(self, *problems: str, context: str = "") -> None:
        assert problems, "an InputError needs at least one problem"
        super().__init__(*problems)
        self.problems: tuple[str, ...] = problems
        self.context = context

    def __str__(self) -> str:
        prefix = f"{self.context}: " if self.context else ""
        if len(self.problems) == 1:
            return prefix + self.problems[0]
        return "\n  ".join([f"{prefix}{len(self.problems)} problems", *self.problems])

    def within(self, context: str) -> Self:
        """This error with `context` in front: added once, where the file or section is known.

        >>> print(SpecError("d_ff: missing").within("model").within("case.toml"))
        case.toml: model: d_ff: missing
        """
        self.context = f"{context}: {self.context}" if self.context else context
        return self


class SpecError(InputError):
    """A description of a model, a device, a workload or data is wrong."""


class CaseError(InputError):
    """The parts of a case are each fine and do not go together, or one is missing."""


class UnknownName(InputError):
    """A name that is not in the catalogue; build it with `unknown_name`."""

    def __init__(
        self, *problems: str, context: str = "", name: str = "", suggestions: tuple[str, ...] = ()
    ) -> None:
        super().__init__(*problems, context=context)
        self.name = name
        self.suggestions = suggestions


class MissingCapability(WorthitError):
    """Something this machine lacks; `command` is what gets it.

    >>> print(MissingCapability("reading a .gguf needs the extra 'gguf'",
    ...                         "pip install 'worthit[gguf]'"))
    reading a .gguf needs the extra 'gguf'; get it with: pip install 'worthit[gguf]'
    """

    exit_code = 3

    def __init__(self, what: str, command: str) -> None:
        super().__init__(what, command)
        self.what = what
        self.command = command

    def __str__(self) -> str:
        return f"{self.what}; get it with: {self.command}"


class NotApplicable(WorthitError):
    """A technique has nothing to act on in a case; the judge turns this into a verdict."""


class MeasurementInconclusive(WorthitError):
    """The measurement finished and cannot tell the variants apart; say what would."""

    exit_code = 4


def problem(path: Iterable[str | int], message: str) -> str:
    """One entry of `InputError.problems`.

    >>> problem(["model", "layers", 0, "d_ff"], "must be positive, got -1; give the width")
    'model.layers[0].d_ff: must be positive, got -1; give the width'
    >>> problem([], "not a table")
    'not a table'
    """
    where = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    where = where.removeprefix(".")
    return f"{where}: {message}" if where else message


def nearest(name: str, known: Iterable[str]) -> tuple[str, ...]:
    """The few known names closest to `name`, best first; case and separators do not count.

    >>> nearest("H100_SXM", ["h100-sxm", "a100", "h200", "rtx-4090"])
    ('h100-sxm',)
    >>> nearest("moe", ["topk-moe", "mqa", "soft-gating"])
    ('topk-moe',)
    """
    wanted = _plain(name)
    scored = []
    for candidate in dict.fromkeys(known):
        plain = _plain(candidate)
        score = difflib.SequenceMatcher(None, wanted, plain).ratio()
        # A word of the name ranks above a chance likeness of letters.
        if wanted and (wanted in plain or plain in wanted):
            score += 1.0
        if score >= SUGGESTION_CUTOFF:
            scored.append((-score, candidate))
    if scored and min(scored)[0] <= -2.0:  # the same name but for case and separators
        return (min(scored)[1],)
    return tuple(candidate for _, candidate in sorted(scored)[:N_SUGGESTIONS])


def unknown_name(kind: str, name: str, known: Iterable[str], *, see: str = "") -> UnknownName:
    """The error for a `kind` (`"device"`, `"model"`) that is not among `known`: raise it.

    Args:
        kind: what the name should have been, in the singular.
        name: what was got.
        known: every acceptable name.
        see: the command or page that lists them; found for the kinds of `worthit list`.

    >>> print(unknown_name("device", "h1000", ["a100", "h100", "h200"]))
    unknown device 'h1000'; did you mean h100, a100 or h200? All of them: worthit list devices
    >>> print(unknown_name("goal", "speed", ["latency", "memory"]))
    unknown goal 'speed'; pick one of latency, memory
    """
    known = tuple(known)
    suggestions = nearest(name, known)
    if not see and kind in LISTED_KINDS:
        see = f"worthit list {kind}s"
    if suggestions:
        advice = f"did you mean {_either(suggestions)}?"
    elif known and (len(known) <= N_KNOWN_SHOWN or not see):
        advice = f"pick one of {', '.join(sorted(known))}"
    else:
        advice = "nothing known is near it"
    if see:
        advice += f" All of them: {see}" if advice.endswith("?") else f"; all of them: {see}"
    return UnknownName(f"unknown {kind} {name!r}; {advice}", name=name, suggestions=suggestions)


def _plain(name: str) -> str:
    return "".join(character for character in name.casefold() if character.isalnum())


def _either(names: tuple[str, ...]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} or {names[-1]}"
