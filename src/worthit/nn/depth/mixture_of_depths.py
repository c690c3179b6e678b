"""Mixture of depths: a router lets a share of the tokens through a layer; the others pass it by.

Raposo et al. 2024, "Mixture-of-Depths: Dynamically allocating compute in transformer-based language
models", arXiv:2404.02258, equation 1:

    x_i' = r_i f_i(X~) + x_i  where r_i is among the C largest,  x_i  elsewhere

| paper | here |
|---|---|
| r_i = w^T x_i | `router(x)` |
| C, the capacity | `token_fraction` of a row's real tokens |
| X~, the tokens let through | `chosen` |
| f_i(X~) | what the block adds: attention and feed-forward of these tokens alone |

The weight r_i carries the gradient to the router. Which tokens are the C largest depends on those
to come: training alone chooses so. In evaluation a token passes where sigmoid(r_i) is over one
half, which needs no other token (section 3.5); `router_loss` teaches that threshold, or
`calibrate` sets it. A window counts tokens that were let through.

Router tuning (He et al. 2024, arXiv:2410.13184) trains the routers of a model whose other weights
stay as they are: `only_routers`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from worthit.nn.decoder import Block
from worthit.nn.depth.selection import RowCaches, best, through
from worthit.nn.tokens import Tokens
from worthit.spec.model import Layer, ModelSpec


class TokenRouter(nn.Module):
    """One number a token: how much it needs the block."""

    weights_read = ("linear",)  # in fp32, whatever it is stored in

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.linear = nn.Linear(d_model, 1, bias=False)
        # A buffer: 0 is sigmoid(r) = 1/2.
        self.threshold: Tensor
        self.register_buffer("threshold", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        """`(batch, n, d_model)` to `(batch, n)`, in fp32."""
        return functional.linear(x.float(), self.linear.weight.float())[..., 0]

    def calibrate(self, x: Tensor, share: float) -> None:
        """Set the threshold such that `share` of the tokens of `x` `(..., d_model)` pass it."""
        r = self(x).flatten().sort(descending=True).values
        n = max(1, round(share * len(r)))
        below = r[n] if n < len(r) else r[-1] - 1
        self.threshold.copy_((r[n - 1] + below) / 2)


class MixtureOfDepths(Block):
    """A block that `token_fraction` of the tokens go through."""

    def __init__(self, layer: Layer, model: ModelSpec) -> None:
        super().__init__(layer, model)
        self.router = TokenRouter(model.d_model)

    def new_caches(self) -> list[object]:
        """One cache that holds those of the block for each row."""
        return [RowCaches(super().new_caches)]

    def forward(self, x: Tensor, tokens: Tokens, caches: list[object] | None = None) -> Tensor:
        """`(batch, n, d_model)` to the same shape."""
        r = self.router(x)
        chosen = self.chosen(r.detach(), tokens)
        cache = caches[0] if caches else None
        assert cache is None or isinstance(cache, RowCaches)
        return through(super().forward, x, tokens, chosen, r, cache)

    def chosen(self, r: Tensor, tokens: Tokens) -> Tensor:
        """Who passes, of scores `(batch, n)`: the best, in evaluation those over the threshold."""
        known = tokens.is_new_real
        is_real = torch.ones_like(r, dtype=torch.bool) if known is None else known
        if self.training:
            return best(r, is_real, is_real, self.spec.token_fraction)
        return (r > self.router.threshold) & is_real


def router_loss(r: Tensor, chosen: Tensor) -> Tensor:
    """Teaches the threshold: cross-entropy of sigmoid(r) `(batch, n)` with who was among the best.

    Its gradient reaches the stream below too, unless `r` was made of a detached `x`.
    """
    return functional.binary_cross_entropy_with_logits(r, chosen.to(r.dtype))


def only_routers(model: nn.Module) -> list[nn.Parameter]:
    """Freeze everything but the routers of tokens, and return their parameters."""
    for p in model.parameters():
        p.requires_grad_(False)
    routers = [m for m in model.modules() if isinstance(m, TokenRouter)]
    parameters = [p for m in routers for p in m.parameters()]
    for p in parameters:
        p.requires_grad_(True)
    return parameters
