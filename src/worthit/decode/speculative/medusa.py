"""Medusa: heads on the last hidden state that guess the tokens after the next, all at once.

Cai et al. 2024, "Medusa: Simple LLM Inference Acceleration Framework with Multiple Decoding Heads",
arXiv:2401.10774, section 3.1: from the state h_t that gives token t + 1, head k gives token t+k+1,

    p_k = softmax(W2_k (SiLU(W1_k h_t) + h_t))

| paper | here |
|---|---|
| h_t | `final_norm` of the stream after the last layer |
| W1_k | `wide`, `narrow[k]`: a residual block of two maps and not of one; see below |
| W2_k | `head`: rows of the target's own output head, one for all heads |
| K heads | `n_heads` |
| sparse tree, by accuracy (3.1.2, 3.3.3) | `likeliest_tree`: by the heads' own odds, each time |

Departures, for small models on a CPU. A W2 of each head's own would weigh more than the model; one
that is shared is read once for all of them, and the block does the work instead. The tree is chosen
anew at every step, of the nodes whose paths are likeliest, and not once from a table.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from worthit.decode.speculative.drafter import NOTHING, Asked, Plain, Verified
from worthit.decode.speculative.heads import Heads, HeadsConfig
from worthit.decode.speculative.tree import ROOT, Tree
from worthit.nn.decoder import Decoder

# Children of a node that a tree may have.
MOST_CHILDREN = 8
# A path that is less likely is not worth a row of the target's pass.
FLOOR = 0.1


class Medusa(Heads):
    """`n_heads` residual blocks in front of one output head."""

    def __init__(self, config: HeadsConfig, model: Decoder) -> None:
        d = model.spec.d_model
        super().__init__(config, d)
        hidden = config.shape.get("hidden", 2 * d)
        # All heads read the same: one product.
        self.wide = nn.Linear(d, config.n_heads * hidden, bias=False)
        self.narrow = nn.ModuleList(nn.Linear(hidden, d, bias=False) for _ in range(config.n_heads))
        for linear in self.narrow:
            # Every head begins as the target's own, and no block is in the way.
            nn.init.zeros_(linear.weight)
        self._norm = (model.final_norm,)
        # Of the model: compiled layers give out fp32, whatever it is stored in.
        self.dtype = model.dtype

    def states(self, features: Tensor) -> Tensor:
        """What the heads read, `(..., d_model)`, from the tapped stream."""
        norm = self._norm[0]
        return features if norm is None else norm(features)

    def turned(self, states: Tensor) -> list[Tensor]:
        """What the output head reads for each head, of states `(..., d_model)`."""
        inner = functional.silu(self.wide(states)).chunk(len(self.narrow), dim=-1)
        return [states + narrow(x) for narrow, x in zip(self.narrow, inner, strict=True)]

    def forward(self, states: Tensor) -> Tensor:
        """Logits `(n_heads, ..., draft_vocab)` of states `(..., d_model)`."""
        return self.read(torch.stack(self.turned(states)))


class MedusaDrafter(Plain):
    """`Medusa` heads at work: a tree of the likeliest paths, or the likeliest chain.

    Args:
        has_trees: draft trees; chains otherwise, the first guess of each head.
        floor: paths that are less likely by the heads' own odds are left out.
    """

    name = "medusa"

    def __init__(self, heads: Medusa, *, has_trees: bool = True, floor: float = FLOOR) -> None:
        self.heads, self.has_trees, self.floor = heads, has_trees, floor
        self.taps = heads.config.taps

    def observe(self, one: Asked, verified: Verified) -> None:
        """Keep the feature of the last token that was computed."""
        assert verified.features is not None, "it has taps"
        last = verified.features[-1].to(self.heads.dtype)
        one.state = (verified.start + verified.n, last)

    @torch.inference_mode()
    def propose(self, asked: Sequence[Asked]) -> list[Tree]:
        """A guess for all whose last feature is that of the token before the last one said."""
        ready = [
            i
            for i, one in enumerate(asked)
            if one.most > 0 and one.state is not None and one.state[0] == len(one.ids) - 1
        ]
        trees = [NOTHING for _ in asked]
        if not ready:
            return trees
        states = self.heads.states(torch.stack([asked[i].state[1] for i in ready]))
        odds = self.heads(states).float().softmax(dim=-1)  # (n_heads, n, draft_vocab)
        for row, i in enumerate(ready):
            trees[i] = likeliest_tree(
                odds[:, row],
                self.heads.ids,
                asked[i].most,
                floor=self.floor,
                most_children=MOST_CHILDREN if self.has_trees else 1,
            )
        return trees


def likeliest_tree(
    odds: Tensor,
    ids: Tensor,
    n_tokens: int,
    *,
    floor: float = 0.0,
    most_children: int = MOST_CHILDREN,
) -> Tree:
    """The `n_tokens` nodes with the likeliest paths, where heads know nothing of each other.

    A path's odds are the product of its tokens', each of its own head; so a node is never likelier
    than its parent and the set is connected.

    Args:
        odds: `(n_heads, draft_vocab)`.
        ids: `(draft_vocab,)`, the token of each column.
    """
    best = odds.topk(min(most_children, odds.shape[-1], n_tokens), dim=-1)
    values, tokens = best.values.tolist(), ids[best.indices].tolist()
    n_heads, width = best.values.shape
    said: list[int] = []
    parents: list[int] = []
    # What may come next: (-odds, depth, rank, odds of the parent, parent).
    waiting = [(-values[0][0], 0, 0, 1.0, ROOT)]
    while waiting and len(said) < n_tokens:
        minus, depth, rank, above, parent = heapq.heappop(waiting)
        if said and -minus < floor:
            break
        node = len(said)
        said.append(tokens[depth][rank])
        parents.append(parent)
        if rank + 1 < width:
            sibling = -above * values[depth][rank + 1]
            heapq.heappush(waiting, (sibling, depth, rank + 1, above, parent))
        if depth + 1 < n_heads:
            heapq.heappush(waiting, (minus * values[depth + 1][0], depth + 1, 0, -minus, node))
    return Tree(tuple(said), tuple(parents))
