"""A model with some of its layers alone: nothing is copied, so that it costs nothing to have."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace

from torch import nn

from worthit.errors import InputError
from worthit.nn.decoder import Decoder


def shallow(model: Decoder, layers: Sequence[int]) -> Decoder:
    """`model` with these of its layers alone: the same modules, nothing is copied.

    Raises:
        InputError: layers that it does not have, or none.
    """
    n = len(model.layers)
    if not layers or any(not 0 <= i < n for i in layers):
        raise InputError(f"layers: must be some of 0 to {n - 1}, got {list(layers)}")
    view = copy.copy(model)
    view._modules = dict(model._modules)
    view.layers = nn.ModuleList([model.layers[i] for i in layers])
    view.spec = replace(model.spec, layers=tuple(model.spec.layers[i] for i in layers))
    if view.native is not None:
        view.native = type(view.native)(view)
    if hasattr(view, "threshold"):
        view.threshold = 0.0  # exits are counted in the whole model's layers
    return view
