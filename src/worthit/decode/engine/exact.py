"""Exactly the same numbers whatever else is in the step: batch invariance on a CPU.

A product adds up in an order that the library chooses by the number of rows, and fused attention in
one that depends on the number of queries: a token's last bits then depend on its neighbours, on
chunks, on drafts and on what the prefix cache knew. In fp32 the words stay the same but for ties;
in 16 bits and below they often do not.

What it takes was measured, not proved: MKL's and oneDNN's products give every row the same bits
from `LEAST_ROWS` rows on, so that fewer are padded; attention is one call a token, always of one
query (`worthit.nn.ragged.token_by_token`). Products are tried on the machine at hand, with its
threads, and the promise is refused where they do not keep it. Prompts pay most: docs/engine.md.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from worthit.decode.cache.quantized import cache_format
from worthit.decode.engine.config import EngineConfig
from worthit.errors import InputError, MissingCapability
from worthit.nn.decoder import Block, Decoder
from worthit.nn.ffn import FeedForward

LEAST_ROWS = 8
# Rows that are compared with those of the fewest: around the edges of the libraries' tiles.
TRIED_ROWS = (9, 12, 16, 17, 31, 33, 64, 100, 128, 255)
# What maps rows to rows.
PRODUCTS = ("Linear", "PackedLinear", "Int8Linear", "Int4Linear", "StoredLinear")


def make_exact(model: Decoder, config: EngineConfig) -> None:
    """Let every product of `model` have at least `LEAST_ROWS` rows, in place.

    Raises:
        InputError: layers whose numbers depend on the pass by their nature.
        MissingCapability: products of this machine that do.
    """
    _require(model, config)
    if getattr(model, "is_row_padded", False):
        return
    for name, module in model.named_modules():
        if type(module).__name__ in PRODUCTS:
            _check(name, module, model)
            module.forward = _padded(module.forward)
    model.is_row_padded = True


def _require(model: Decoder, config: EngineConfig) -> None:
    strange = {
        type(part).__name__
        for block in model.layers
        for part in (
            [block]
            if type(block) is not Block
            else [m for m in block.mixers if not getattr(m, "takes_parts", False)]
            + [f for f in (block.ffn,) if f is not None and type(f) is not FeedForward]
        )
    }
    if strange:
        raise InputError(
            "is_exact: states are computed in chunks and experts get other tokens' company, so "
            f"that numbers depend on the step; got {', '.join(sorted(strange))}"
        )
    cache = config.cache
    form = cache_format(cache.format) if isinstance(cache.format, str) else cache.format
    if cache.policy is not None or (form is not None and not form.is_by_token):
        raise InputError(
            "is_exact: which tokens are dropped, or still whole, depends on the step; take a cache "
            "that keeps all, as they are or each in its own scales (int8, int4)"
        )


@torch.inference_mode()
def _check(name: str, module: nn.Module, model: Decoder) -> None:
    """Raise where a row's product depends on the others."""
    width = _n_inputs(module)
    if width is None:
        return
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, max(TRIED_ROWS), width, generator=generator).to(model.dtype)
    want = module(x[:, :LEAST_ROWS])
    for n in TRIED_ROWS:
        if not torch.equal(module(x[:, :n])[:, :LEAST_ROWS], want):
            raise MissingCapability(
                f"is_exact: on this machine the product {name} gives a row other bits among {n} "
                f"rows than among {LEAST_ROWS}, with {torch.get_num_threads()} threads",
                "EngineConfig(is_exact=False), or another number of threads",
            )


def _n_inputs(module: nn.Module) -> int | None:
    """Channels that a product reads, where it says so."""
    for holder, name in ((module, "in_features"), (getattr(module, "packed", None), "shape")):
        found = getattr(holder, name, None)
        if isinstance(found, int):
            return found
        if found is not None and len(found) == 2:
            return int(found[1])
    return None


def _padded(product: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """`product` of at least `LEAST_ROWS` rows."""

    def forward(x: Tensor) -> Tensor:
        n = x.shape[-2]
        if n >= LEAST_ROWS:
            return product(x)
        return product(functional.pad(x, (0, 0, 0, LEAST_ROWS - n)))[..., :n, :]

    return forward
