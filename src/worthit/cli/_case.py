"""MODEL|CASE and the flags that describe a case: shared by every verb that takes one."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar, get_args

import click

from worthit.errors import InputError, unknown_name

if TYPE_CHECKING:
    from worthit.spec.case import Case

    SizeType = click.ParamType[int]
    NameType = click.ParamType[str]
else:
    # Generic in click's stubs, and at run time only in its newest versions.
    SizeType = NameType = click.ParamType

F = TypeVar("F", bound=Callable[..., Any])

_SUFFIXES = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "B": 10**9, "T": 10**12}
_SIZE = re.compile(r"([+-]?[\d_,]*\.?\d+(?:[eE][+-]?\d+)?)\s*([kKMGBT]?)")


class Size(SizeType):
    """A whole number: `4000`, `4_000`, `4k`, `1e11`, `15T`; suffixes are powers of ten."""

    name = "N"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Read the number; whether it makes sense is the case's to say."""
        if isinstance(value, int):
            return value
        match = _SIZE.fullmatch(value.strip())
        if match:
            suffix = "k" if match[2] == "K" else match[2]
            number = float(match[1].replace("_", "").replace(",", "")) * _SUFFIXES[suffix]
            if number.is_integer():
                return int(number)
        message = f"{value!r} is not a whole number; write 4000, 4k, 1e11 or 15T"
        raise click.BadParameter(message, ctx=ctx, param=param)


class Name(NameType):
    """A name of something that ships, completed by the shell from what there is."""

    def __init__(self, kind: str, metavar: str, *, is_path: bool = False) -> None:
        self.name = metavar
        self.kind = kind
        self.is_path = is_path

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[click.shell_completion.CompletionItem]:
        """Names that begin like `incomplete`; files as well where a path is welcome."""
        from click.shell_completion import CompletionItem

        before, comma, last = incomplete.rpartition(",")
        found = [
            CompletionItem(before + comma + name)
            for name in known_names(self.kind)
            if name.startswith(last)
        ]
        if self.is_path and not found:
            found.append(CompletionItem(incomplete, type="file"))
        return found


def known_names(kind: str) -> tuple[str, ...]:
    """Everything that ships of a kind."""
    if kind in ("technique", "technique or family"):
        from worthit.techniques import catalogue

        known = catalogue()
        families = dict.fromkeys(t.family for t in known.values())
        return (*known, *families) if "family" in kind else tuple(known)
    if kind == "format":
        from worthit.spec.formats import FORMATS

        return tuple(FORMATS)
    if kind == "experiment":
        from worthit.scorecard.experiments import experiments
        from worthit.techniques import catalogue

        measured = [t.id for t in catalogue().values() if t.experiment is not None]
        return tuple(dict.fromkeys([*experiments(), *measured]))
    from worthit.spec import load

    names: dict[str, Callable[[], tuple[str, ...]]] = {
        "model": load.preset_names,
        "device": load.device_names,
        "workload": load.workload_names,
    }
    return names[kind]()


def case_options(required: bool = True, *, is_target_optional: bool = False) -> Callable[[F], F]:
    """Add the case flags to a verb, and MODEL|CASE in front where it is `required`.

    `is_target_optional` leaves it to the verb to ask for it, in that verb's own case without one.
    """
    from worthit.spec.case import ADOPTIONS, Goal, Stage

    options = [
        click.option("--on", type=Name("device", "DEVICE[:N]"), help="Hardware, such as h100:8."),
        click.option("--workload", type=Name("workload", "NAME"), help="A shipped workload."),
        click.option("--prompt", type=Size(), help="Tokens of a request."),
        click.option("--output", type=Size(), help="Tokens of an answer."),
        click.option("--concurrency", type=Size(), help="Requests in flight at once."),
        click.option("--train-tokens", type=Size(), help="Train, on so many tokens in all."),
        click.option("--seq", type=Size(), help="Tokens of one training sequence."),
        click.option("--batch-tokens", type=Size(), help="Tokens of one training step."),
        click.option(
            "--stage",
            type=click.Choice(get_args(Stage)),
            help="Not trained yet, or weights exist (default when serving).",
        ),
        click.option(
            "--goal", type=click.Choice(get_args(Goal)), help="What to improve; else implied."
        ),
        click.option(
            "--max-adoption", type=click.Choice(ADOPTIONS), help="The furthest acceptable step."
        ),
        click.option("--weights", type=Name("format", "FORMAT"), help="Number format, e.g. fp8."),
        click.option("--cache", type=Name("format", "FORMAT"), help="Number format of the cache."),
    ]

    def add(function: F) -> F:
        for option in reversed(options):
            function = option(function)
        if required:
            function = click.argument(
                "target",
                metavar="MODEL|CASE.toml",
                required=not is_target_optional,
                type=Name("model", "MODEL", is_path=True),
            )(function)
        return function

    return add


CASE_FLAGS = (
    "on",
    "workload",
    "prompt",
    "output",
    "concurrency",
    "train_tokens",
    "seq",
    "batch_tokens",
    "stage",
    "goal",
    "max_adoption",
    "weights",
    "cache",
)


def read_case(target: str, flags: dict[str, Any], **more: Any) -> Case:
    """The case that MODEL|CASE and the flags describe.

    Raises:
        InputError: everything that is wrong, at once.
    """
    from worthit.spec.load import find_case

    stated = {name: flags[name] for name in CASE_FLAGS}
    return find_case(target, **stated, **more)


def split_names(values: tuple[str, ...]) -> tuple[str, ...]:
    """Names given one a flag or several with commas."""
    names = [name.strip() for value in values for name in value.split(",")]
    if not all(names):
        raise InputError(f"an empty name in {', '.join(values)!r}; write a,b without blanks")
    return tuple(dict.fromkeys(names))


def as_flags(target: str, flags: dict[str, Any], **more: str | None) -> str:
    """MODEL|CASE and the flags that were given, `more` of them too, as a shell reads them."""
    import shlex

    words = [target]
    for name, value in more.items():
        words += [f"--{name}", value] if value is not None else []
    for name in CASE_FLAGS:
        if flags[name] is not None:
            words += [f"--{name.replace('_', '-')}", str(flags[name])]
    return shlex.join(words)


def check_only(names: tuple[str, ...]) -> tuple[str, ...]:
    """`names`, each an id or a family.

    Raises:
        UnknownName: one is neither; the nearest of both are suggested.
    """
    known = known_names("technique or family") if names else ()
    for name in names:
        if name not in known:
            see = "worthit list techniques"
            raise unknown_name("technique or family", name, known, see=see)
    return names
