"""Layers that are applied several times: tie them, and untie them again."""

from __future__ import annotations

from dataclasses import replace

from worthit.spec.case import Case
from worthit.spec.model import Layer
from worthit.techniques._change import with_model


def spread(layers: tuple[Layer, ...], n: int) -> tuple[Layer, ...]:
    """`n` of `layers`, first and last included, at even distances: every kind keeps its share."""
    if n == 1:
        return layers[:1]
    return tuple(layers[round(i * (len(layers) - 1) / (n - 1))] for i in range(n))


def looped(
    layers: tuple[Layer, ...], n_loops: int, *, token_fraction: float = 1.0, shares: bool = False
) -> tuple[Layer, ...]:
    """The same depth from fewer layers: each `n_loops` times, what does not divide left single.

    Layers that are looped already are not passed in; a routing of their own is replaced.
    """
    n_tied, n_single = divmod(len(layers), n_loops)
    tied = tuple(
        replace(x, n_loops=n_loops, token_fraction=token_fraction, shares_loop_cache=shares)
        for x in spread(layers, n_tied)
    )
    shared: dict[Layer, Layer] = {}
    return tuple(shared.setdefault(x, x) for x in tied) + layers[len(layers) - n_single :]


def unrolled(case: Case) -> Case:
    """`case` with every application of a looped layer as a layer of its own, all tokens in it."""
    layers: list[Layer] = []
    for layer in case.model.layers:
        if layer.n_loops == 1:
            layers.append(layer)
            continue
        single = replace(layer, n_loops=1, token_fraction=1.0, shares_loop_cache=False)
        layers.extend([single] * layer.n_loops)
    return with_model(case, replace(case.model, layers=tuple(layers)))


def depth(case: Case) -> int:
    """How many layers a token passes at most, each application of a loop counted."""
    return sum(layer.n_loops for layer in case.model.layers)


def passed(case: Case) -> float:
    """The share of that depth which a token passes on average."""
    return sum(x.n_loops * x.token_fraction for x in case.model.layers) / depth(case)
