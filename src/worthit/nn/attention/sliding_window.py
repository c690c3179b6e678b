"""Sliding-window attention: a query sees the last `window` tokens and no others.

Beltagy et al. 2020, "Longformer: The Long-Document Transformer", arXiv:2004.05150, section 3.1;
causal as in Jiang et al. 2023, "Mistral 7B", arXiv:2310.06825, section 2:

    query i sees key j  when  i - window < j <= i

| paper | here |
|---|---|
| W | `window`, the query's own token included |
| rolling buffer | `KVCache(window)`: what the next query cannot see is forgotten |

Information still travels up to `window - 1` tokens a layer. Chunked attention (Llama 4) sees the
query's own chunk of positions instead. Layers of either kind alternate with full ones in most
models (Gemma 2 and 3, gpt-oss), by `spec.Attention.window` and `chunk` of each layer.
"""

from __future__ import annotations

import torch
from torch import Tensor

from worthit.nn.attention.gqa import GroupedQueryAttention
from worthit.spec import model as spec


def window_mask(n: int, window: int) -> Tensor:
    """Which of `n` keys each of `n` queries sees, `(n, n)`."""
    distance = torch.arange(n)[:, None] - torch.arange(n)[None, :]
    return (distance >= 0) & (distance < window)


def chunk_mask(n: int, chunk: int) -> Tensor:
    """The same where a query sees its own chunk, up to itself."""
    places = torch.arange(n)
    is_same = places[:, None] // chunk == places[None, :] // chunk
    return is_same & (places[:, None] >= places[None, :])


def receptive_field(layers: tuple[spec.Layer, ...]) -> int | None:
    """How many tokens the last output can depend on, itself included; None without a limit."""
    reach = 0
    for layer in layers:
        for mixer in layer.mixers:
            window = getattr(mixer, "window", None)
            if window is None:
                return None
            reach += window - 1
    return reach + 1


class SlidingWindowAttention(GroupedQueryAttention):
    """Grouped-query attention that is local."""

    def __init__(self, attention: spec.Attention, model: spec.ModelSpec) -> None:
        assert attention.reach is not None, "a window or a chunk"
        super().__init__(attention, model)
