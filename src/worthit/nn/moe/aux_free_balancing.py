"""Balance without a loss: each expert's selection bias follows its load.

Wang et al. 2024, "Auxiliary-Loss-Free Load Balancing Strategy for Mixture-of-Experts",
arXiv:2408.15664, algorithm 1:

    b_i <- b_i + u sign(mean_j c_j - c_i)

| paper | here |
|---|---|
| b_i | `Router.selection_bias`, a buffer |
| c_i, tokens that expert i got | `load` |
| u | `rate` |

The bias is added to the scores that choose experts and to nothing else: weights, and so gradients,
are those of the plain scores.

    balancer = BiasBalancer(model)
    for batch in batches:
        with balancer:
            loss = ...
        loss.backward()
        optimizer.step()
        balancer.step()
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from worthit.nn.moe.topk_moe import Router, Routing

RATE = 1e-3


def updated_bias(bias: Tensor, load: Tensor, rate: float = RATE) -> Tensor:
    """`bias` `(n_experts,)` after a step in which expert i got `load[i]` tokens."""
    load = load.float()
    return bias + rate * torch.sign(load.mean() - load)


class BiasBalancer:
    """Counts what each router with a selection bias chooses; `step` moves its bias.

    `loads` holds one count a router: where several devices share a batch, sum it over them first.
    """

    def __init__(self, model: nn.Module, rate: float = RATE) -> None:
        self.rate = rate
        self.routers = [
            m for m in model.modules() if isinstance(m, Router) and m.selection_bias is not None
        ]
        self.loads = [torch.zeros(r.spec.n_experts, dtype=torch.long) for r in self.routers]
        self._hooks: list[RemovableHandle] = []

    def __enter__(self) -> BiasBalancer:
        for i, router in enumerate(self.routers):
            self._hooks.append(router.register_forward_hook(self._counter(i)))
        return self

    def __exit__(self, *exception: object) -> None:
        while self._hooks:
            self._hooks.pop().remove()

    def _counter(self, index: int) -> Callable[[nn.Module, object, Routing], None]:
        def count(module: nn.Module, inputs: object, routing: Routing) -> None:
            self.loads[index] = self.loads[index].to(routing.load.device) + routing.load

        return count

    def step(self) -> None:
        """Move every bias by `rate` towards balance, and forget the counts."""
        for router, load in zip(self.routers, self.loads, strict=True):
            assert router.selection_bias is not None
            router.selection_bias.copy_(updated_bias(router.selection_bias, load, self.rate))
            load.zero_()
