"""The streams after some layers of a model, as its last pass left them: what trained heads read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from worthit.errors import InputError
from worthit.nn.decoder import Decoder


class Taps:
    """Keeps what layers of `model` give out, `(batch, n, d_model)` each, until it is closed."""

    def __init__(self, model: Decoder, layers: Sequence[int]) -> None:
        n = len(model.layers)
        bad = [layer for layer in layers if not 0 <= layer < n]
        if bad:
            raise InputError(f"taps: layers are from 0 to {n - 1}, got {bad[0]}")
        self._streams: list[Tensor | None] = [None] * len(layers)
        self._handles = [
            model.layers[layer].register_forward_hook(self._keep(i))
            for i, layer in enumerate(layers)
        ]

    def _keep(self, i: int) -> Callable[..., None]:
        def keep(module: nn.Module, inputs: Any, output: Tensor) -> None:
            self._streams[i] = output

        # Compiled layers tell it of their output, too.
        keep.only_reads = True  # type: ignore[attr-defined]
        return keep

    def features(self) -> Tensor | None:
        """Of the last pass, `(batch, n, n_taps * d_model)`; None where there was none."""
        streams = [stream for stream in self._streams if stream is not None]
        if not streams:
            return None
        assert len(streams) == len(self._streams), "no pass through all of these layers yet"
        return torch.cat(streams, dim=-1) if len(streams) > 1 else streams[0]

    def close(self) -> None:
        """Let the model alone again."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
