"""Mixture of recursions: one block in a loop, and a router that says which tokens go round again.

Bae et al. 2025, "Mixture-of-Recursions: Learning Dynamic Recursive Depths for Adaptive Token-Level
Computation", arXiv:2507.10524, section 2.2:

    H_t^(r+1) = g_t^r f(H_t^r; Phi') + H_t^r  where g_t^r is among the best,  H_t^r  elsewhere

| paper | here |
|---|---|
| N_r recursion steps | `n_loops` |
| g_t^r = G(theta_r^T H_t^r), G the sigmoid | `sigmoid(routers[r](x))` |
| f(.; Phi') | what the block adds |
| capacities, N_r/N_r .. 1/N_r | `capacity(r)`, whose mean is `token_fraction` |

Expert choice: step r chooses among the tokens that step r - 1 let through, and takes its capacity
of them. Choosing the best looks ahead; in evaluation a token goes on where g is over one half.
Token choice: each token picks its number of steps before the first one, by the largest of its
routers' scores; that is causal, and the batch takes what it gets.

The spec repeats each layer where it stands, with routers of its own; the paper prefers to repeat a
block of several (its "middle cycle"), routed once a round. Each step's cache holds only the tokens
active in it (recursion-wise caching); with `shares_loop_cache` all steps read the keys and values
of the first, in which every token is.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from worthit.nn.decoder import Block
from worthit.nn.depth.mixture_of_depths import TokenRouter
from worthit.nn.depth.recursive_transformer import first_seen, require_keys
from worthit.nn.depth.selection import RowCaches, best, through
from worthit.nn.tokens import Tokens
from worthit.spec.model import Layer, ModelSpec

Chooser = Literal["expert", "token"]


class MixtureOfRecursions(Block):
    """A shared block with a router for each time that it is applied."""

    def __init__(self, layer: Layer, model: ModelSpec, *, chooser: Chooser = "expert") -> None:
        super().__init__(layer, model)
        require_keys(layer)
        self.chooser = chooser
        self.routers = nn.ModuleList(TokenRouter(model.d_model) for _ in range(layer.n_loops))

    def capacity(self, step: int) -> float:
        """The share of all tokens that `step` takes: 1 first, then evenly less."""
        layer = self.spec
        return 1 - 2 * (1 - layer.token_fraction) * step / (layer.n_loops - 1)

    def new_caches(self) -> list[object]:
        """One cache a step, of the tokens active in it; the block's own where steps share."""
        make = super().new_caches
        if self.spec.shares_loop_cache:
            return make()
        return [RowCaches(make) for _ in range(self.spec.n_loops)]

    def forward(self, x: Tensor, tokens: Tokens, caches: list[object] | None = None) -> Tensor:
        """`(batch, n, d_model)` to the same shape."""
        run = super().forward
        shared: list[object] = []
        if self.spec.shares_loop_cache:
            shared = first_seen(super().new_caches() if caches is None else caches)
        known = tokens.is_new_real
        active = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
        active = active if known is None else known
        everyone, planned = active, self.planned_steps(x)
        for step, router in enumerate(self.routers):
            r = router(x)
            if step:
                active = self.going_on(step, r.detach(), active, everyone, planned)
            weights = r.sigmoid()
            if shared:
                # Keys of the first step stand for all tokens: queries of all are asked, some kept.
                if step and not bool(active.any()):
                    break
                added = (run(x, tokens, shared) - x) * weights[..., None].to(x.dtype)
                x = x + added.masked_fill(~active[..., None], 0.0)
            else:
                cache = caches[step] if caches else None
                assert cache is None or isinstance(cache, RowCaches)
                x = through(run, x, tokens, active, weights, cache)
        return x

    def planned_steps(self, x: Tensor) -> Tensor:
        """Token choice: how many steps each token of `x` goes, `(batch, n)`, from 1."""
        return torch.stack([router(x) for router in self.routers], dim=-1).argmax(dim=-1) + 1

    def going_on(
        self, step: int, r: Tensor, active: Tensor, everyone: Tensor, planned: Tensor
    ) -> Tensor:
        """Who of the `active` takes part in `step`, `(batch, n)`."""
        if self.chooser == "token":
            return active & (planned > step)
        if self.training:
            return best(r, active, everyone, self.capacity(step))
        return active & (r > self.routers[step].threshold)
