"""A longer context for a model that has been trained: `yarn:4` and its like.

A rotary model is stretched by a method and a factor, from the context that it was trained for:

| text | method | source |
|---|---|---|
| `linear:4` | position interpolation | Chen et al. 2023, arXiv:2306.15595, equation 4 |
| `ntk:4` | a larger base, once and for all | Peng et al. 2023, arXiv:2309.00071, section 3.1 |
| `dynamic:4` | a base that grows with the length | the same, section 3.3 |
| `yarn:4` | by parts, with a temperature | the same, definition 2 and equation 22 |

`yarn:4@2048` says that training knew 2048 tokens, where the model's own files say another number.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from typing import Literal, cast

from worthit.errors import InputError, SpecError, nearest
from worthit.spec.model import Attention, LatentAttention, ModelSpec, PositionScaling

Kind = Literal["linear", "ntk", "dynamic", "yarn"]
KINDS: tuple[Kind, ...] = ("yarn", "linear", "ntk", "dynamic")
# What needs more than a factor, and where it comes from.
ELSEWHERE = {
    "longrope": "a factor for every pair, found by a search",
    "llama3": "bounds that its training was done with",
}
# Beyond this nobody has shown anything, and a slip of the finger is likelier.
MAX_FACTOR = 1024
_TEXT = re.compile(r"(?P<kind>[a-z0-9]+):(?P<factor>[^@]+)(?:@(?P<known>.+))?")


@dataclass(frozen=True)
class Extension:
    """A method and its factor; `known` is the trained context where the model's own is not it."""

    kind: Kind
    factor: float
    known: int | None = None

    def __str__(self) -> str:
        known = "" if self.known is None else f"@{self.known}"
        return f"{self.kind}:{self.factor:g}{known}"


def parse_extension(text: str) -> Extension:
    """Read `yarn:4`, `linear:2`, `ntk:4`, `dynamic:4`, each with `@TOKENS` if wanted.

    Raises:
        InputError: anything else, with what it should be.

    >>> parse_extension("yarn:4")
    Extension(kind='yarn', factor=4.0, known=None)
    """
    match = _TEXT.fullmatch(text.strip().lower())
    kind = text.strip().lower().partition(":")[0] if match is None else match["kind"]
    if kind in ELSEWHERE:
        raise InputError(
            f"rope: {kind} needs {ELSEWHERE[kind]}; such a model says so in its config.json"
        )
    if kind not in KINDS:
        found = nearest(kind, KINDS)
        hint = f"did you mean {found[0]}?" if found else f"pick one of {', '.join(KINDS)}"
        raise InputError(f"rope: unknown method {kind!r}; {hint}")
    if match is None:
        raise InputError(f"rope: must be METHOD:FACTOR, such as {kind}:4, got {text!r}")
    factor, known = _number(match["factor"]), match["known"]
    if factor is None or not 1 <= factor <= MAX_FACTOR:
        raise InputError(
            f"rope: the factor must be a number from 1 to {MAX_FACTOR}, got {match['factor']!r}"
        )
    if known is not None and not (known.isascii() and known.isdigit() and int(known) > 1):
        raise InputError(f"rope: after @ must stand how many tokens training knew, got {known!r}")
    return Extension(cast("Kind", kind), factor, None if known is None else int(known))


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def extended(model: ModelSpec, extension: Extension | str) -> ModelSpec:
    """`model` with rotary positions stretched, and the context that follows.

    Raises:
        SpecError: a model without rotary positions, with latent attention, or stretched already.
        InputError: see `parse_extension`.
    """
    if isinstance(extension, str):
        extension = parse_extension(extension)
    scaling = model.position.scaling
    if model.position.kind != "rope" or not _turns(model):
        raise SpecError(
            f"rope: {extension} stretches rotary positions, and this model has none to stretch "
            f"(its positions: {model.position.kind})"
        )
    if any(isinstance(mixer, LatentAttention) for mixer in model.mixers):
        raise SpecError(
            "rope: latent attention takes a scale of its own with each method; say it in the "
            "model's config.json (rope_scaling)"
        )
    if scaling is not None:
        raise SpecError(
            f"rope: positions are stretched already, by {scaling.kind} from "
            f"{scaling.original_context_len} to {model.context_len} tokens; change the model's "
            "config.json (rope_scaling) instead"
        )
    known = extension.known or model.context_len
    context = round(known * extension.factor)
    stretched = PositionScaling(
        kind=extension.kind, factor=extension.factor, original_context_len=known
    )
    return replace(model, position=replace(model.position, scaling=stretched), context_len=context)


def _turns(model: ModelSpec) -> bool:
    """Whether some attention turns its queries by the model's own positions."""
    return any(
        isinstance(mixer, LatentAttention)
        or (
            isinstance(mixer, Attention)
            and bool(mixer.rotary_dim)
            and not mixer.is_position_free
            and mixer.position is None
        )
        for mixer in model.mixers
    )
