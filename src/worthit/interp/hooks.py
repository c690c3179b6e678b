"""Look at what a model computes, and change it on the way.

    with capture(model, ["layers.7.resid_post", "layers.*.mixer_out"]) as seen:
        model(ids)
    seen["layers.7.resid_post"]  # (batch, n, d_model)

    with intervene(model, {"layers.7.resid_post": lambda x: x + 4 * direction}):
        model.generate("...")

`worthit.interp.points` lists the names. Contexts nest, in any order of leaving: at one point the
function of the context entered first comes first, so that a capture inside of an intervention sees
what it did, and one around it sees what was there before. Gradients flow through all of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor

from worthit.errors import InputError
from worthit.interp.points import Function, Seen, as_seen, expand, points, taps_of
from worthit.nn.decoder import Decoder
from worthit.nn.tokens import Tokens


class Captured(Mapping[str, Tensor]):
    """What was seen, by the name of the point; `every` has what several passes computed."""

    def __init__(self, names: list[str]) -> None:
        self._values: dict[str, list[Tensor]] = {name: [] for name in names}

    def __getitem__(self, name: str) -> Tensor:
        values = self.every(name)
        if len(values) != 1:
            what = "nothing: run the model inside of the context" if not values else "several"
            raise InputError(
                f"{name}: one value was expected, got {what if not values else len(values)}"
                + ("; take every(name), one a pass and application" if values else "")
            )
        return values[0]

    def every(self, name: str) -> list[Tensor]:
        """One tensor for each time that the point was computed."""
        if name not in self._values:
            raise InputError(f"{name}: is not captured; captured are {', '.join(self._values)}")
        return self._values[name]

    def clear(self) -> None:
        """Forget what was seen so far."""
        for values in self._values.values():
            values.clear()

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)


@contextmanager
def intervene(model: Decoder, functions: Mapping[str, Function]) -> Iterator[None]:
    """Within it, each point is what its function makes of it.

    Args:
        functions: by name or pattern (`layers.*.resid_post`). A function of one argument is given
            the value; one of two also the `Tokens` of the pass, whose `positions` `(batch, n)` say
            where its tokens stand. It returns a tensor of the same shape.

    Raises:
        InputError: a point that the model does not have, or another shape.
    """
    taps, added = taps_of(model), _by_point(model, functions)
    for one in added:
        taps.add(model, one)
    try:
        yield
    finally:
        for one in added:
            taps.remove(model, one)


@contextmanager
def capture(
    model: Decoder,
    names: str | Iterable[str],
    *,
    is_detached: bool = False,
    has_grad: bool = False,
) -> Iterator[Captured]:
    """Within it, what the points hold is kept.

    Args:
        names: points or patterns.
        is_detached: without the graph that computed them.
        has_grad: gradients towards them are kept in their `.grad`, even where no weight of the
            model asks for any.
    """
    wanted = expand(model, names)
    captured = Captured(wanted)

    def keeper(name: str) -> Seen:
        def keep(value: Tensor, _: Tokens | None) -> Tensor:
            if has_grad:
                value = value if value.requires_grad else value.detach().requires_grad_()
                value.retain_grad()
            captured.every(name).append(value.detach() if is_detached else value)
            return value

        return keep

    functions = {name: keeper(name) for name in wanted}
    taps = taps_of(model)
    taps.add(model, functions)
    try:
        yield captured
    finally:
        taps.remove(model, functions)


class _FarEnough(BaseException):
    """The last wanted point was computed; no error, and nobody else's to catch."""


def activations(
    model: Decoder,
    input_ids: Tensor,
    names: str | Iterable[str],
    *,
    attention_mask: Tensor | None = None,
) -> Captured:
    """What the points hold in one pass over `input_ids` `(batch, n)`, which ends at the last."""
    wanted = expand(model, names)
    end = _end_of(model, wanted[-1])

    def stop(value: Tensor, _: Tokens | None) -> Tensor:
        raise _FarEnough

    with capture(model, wanted) as seen:
        taps = taps_of(model)
        taps.add(model, {end: stop})
        try:
            model(input_ids, attention_mask=attention_mask)
        except _FarEnough:
            pass
        finally:
            taps.remove(model, {end: stop})
    return seen


def _end_of(model: Decoder, last: str) -> str:
    """Where a pass may end: a point inside of a block may be computed again by the same block."""
    if not last.startswith("layers.") or last.endswith(("resid_pre", "resid_post")):
        return last
    end = last.rpartition(".")[0] + ".resid_post"
    assert end in points(model)
    return end


def _by_point(model: Decoder, functions: Mapping[str, Function]) -> list[dict[str, Seen]]:
    # A wrapper for each point: the same function may stand at one point twice.
    return [
        {point: _wrapped(as_seen(function)) for point in expand(model, name)}
        for name, function in functions.items()
    ]


def _wrapped(function: Seen) -> Seen:
    return lambda value, tokens: function(value, tokens)
