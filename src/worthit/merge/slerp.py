"""SLERP: from one checkpoint to another along the sphere, not along the chord.

    theta = sin((1 - t) w) / sin(w) theta_a + sin(t w) / sin(w) theta_b,   cos(w) = <a, b>

`a`, `b` are the tensors at unit length, flattened: one angle a tensor. Shoemake interpolates unit
quaternions; that the two weights are applied to tensors of their own length is practice. Two
tensors on one line have no such arc, and are interpolated linearly.

Source:
    Shoemake 1985, "Animating rotation with quaternion curves", doi:10.1145/325334.325242, section
    3.3.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from torch import Tensor

from worthit.merge.stack import Stack, in_memory

# |cos| beyond which two tensors count as lying on one line: below 1.8 degrees.
ON_ONE_LINE = 0.9995
# A tensor shorter than this has no direction.
LEAST_NORM = 1e-8


def slerp(a: Tensor, b: Tensor, *, t: float) -> Tensor:
    """The tensor at share `t` of the way from `a` to `b`."""
    return in_memory(merge, (b,), a, t=t)


def merge(stack: Stack, *, t: float) -> Iterator[Tensor]:
    """The merged rows of `stack`, from its base to its one model; see `slerp`."""
    assert stack.base is not None
    of_a, of_b = shares(_cosine(stack), t)
    for start, stop in stack.spans():
        mixed = stack.base.read(start, stop) * of_a
        yield mixed.add_(stack.models[0].read(start, stop), alpha=of_b)


def shares(cosine: float, t: float) -> tuple[float, float]:
    """How much of either tensor there is at `t`.

    >>> shares(0.0, 0.5)  # a right angle: both at sin(45) / sin(90)
    (0.7071067811865475, 0.7071067811865475)
    >>> shares(1.0, 0.25)
    (0.75, 0.25)
    """
    if abs(cosine) > ON_ONE_LINE:
        return 1 - t, t
    angle = math.acos(cosine)
    return math.sin((1 - t) * angle) / math.sin(angle), math.sin(t * angle) / math.sin(angle)


def _cosine(stack: Stack) -> float:
    """The cosine of the whole tensors, summed in fp64."""
    assert stack.base is not None
    aa = bb = ab = 0.0
    for start, stop in stack.spans():
        a = stack.base.read(start, stop).double().flatten()
        b = stack.models[0].read(start, stop).double().flatten()
        aa += float(a.dot(a))
        bb += float(b.dot(b))
        ab += float(a.dot(b))
    lengths = [math.sqrt(x) if math.sqrt(x) > LEAST_NORM else 1.0 for x in (aa, bb)]
    return max(-1.0, min(1.0, ab / (lengths[0] * lengths[1])))
