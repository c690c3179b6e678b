"""The cases that one evaluation covers: the case itself first, then its neighbours on each axis.

Everything that may vary is an array with one entry a point; what does not vary stays in the case.
`RANGE` is how far from the case a change still counts as plausible.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np

from worthit._record import value
from worthit.cost.clock import Array
from worthit.spec.case import Case, Serving, Training

# A flip within a factor of eight of the case, either way, is plausible (docs/judge.md).
RANGE = 8.0
STEPS = np.array([1.25, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0])
SERVING_AXES = ("prompt", "output", "concurrency", "model size", "devices")
_FIELD = {
    "case": "factor",
    "prompt": "prompt",
    "output": "output",
    "concurrency": "concurrency",
    "seq": "seq",
    "batch tokens": "batch_tokens",
    "model size": "size",
    "devices": "devices",
}
TRAINING_AXES = ("seq", "batch tokens", "model size", "devices")


@value
class Points:
    """Arrays over the cases of one evaluation; entry 0 is the case itself.

    Serving reads `prompt`, `output`, `concurrency`; training `seq`, `batch_tokens`. A model of
    `size` times the parameters is `size ** (1/3)` times wider and as many times deeper.
    """

    axis: tuple[str, ...]
    factor: Array
    prompt: Array
    output: Array
    concurrency: Array
    seq: Array
    batch_tokens: Array
    devices: Array
    size: Array

    @property
    def n(self) -> int:
        """How many cases."""
        return len(self.axis)

    @cached_property
    def width(self) -> Array:
        """Multiplier on every width."""
        return np.cbrt(self.size)

    @cached_property
    def depth(self) -> Array:
        """Multiplier on the number of layers: parameters grow with width squared times depth."""
        return np.cbrt(self.size)

    @cached_property
    def nearest_first(self) -> tuple[int, ...]:
        """Every point that differs from the case on its axis, by how far away it was asked for.

        Rounding and floors leave some neighbours where the case is.
        """
        order = np.argsort(np.abs(np.log(self.factor)), kind="stable")
        return tuple(
            i for i in order.tolist() if i and self.value(i) != self.value_of_case(self.axis[i])
        )

    def value(self, i: int) -> float:
        """The value of point `i` on its axis."""
        return float(getattr(self, _FIELD[self.axis[i]])[i])

    def value_of_case(self, axis: str) -> float:
        """The case's own value on `axis`."""
        return float(getattr(self, _FIELD[axis])[0])


def one_point(case: Case) -> Points:
    """The case alone."""
    return _points(case, axes=())


def neighbourhood(case: Case) -> Points:
    """The case and its neighbours within `RANGE` on every axis."""
    axes = SERVING_AXES if isinstance(case.workload, Serving) else TRAINING_AXES
    return _points(case, axes=axes)


def _points(case: Case, axes: tuple[str, ...]) -> Points:
    up_and_down = np.concatenate([1 / STEPS[::-1], STEPS])
    names = ["case"]
    factors = [1.0]
    for axis in axes:
        names.extend([axis] * len(up_and_down))
        factors.extend(up_and_down.tolist())
    axis_of = np.array(names)
    factor = np.array(factors)

    def along(axis: str, value: float, *, is_whole: bool = True) -> Array:
        moved = np.where(axis_of == axis, factor * value, float(value))
        return np.maximum(np.round(moved), 1.0) if is_whole else moved

    work = case.workload
    serving = work if isinstance(work, Serving) else Serving(prompt=1, output=1)
    training = work if isinstance(work, Training) else Training(tokens=1, seq=1, batch_tokens=1)
    seq = along("seq", training.seq)
    return Points(
        axis=tuple(names),
        factor=factor,
        prompt=along("prompt", serving.prompt),
        output=along("output", serving.output),
        concurrency=along("concurrency", serving.concurrency),
        seq=seq,
        batch_tokens=np.maximum(along("batch tokens", training.batch_tokens), seq),
        devices=along("devices", case.hardware.n_devices),
        size=along("model size", 1.0, is_whole=False),
    )
