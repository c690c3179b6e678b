"""A tree of drafted tokens, verified in one pass: ancestors see each other, siblings do not.

Miao et al. 2023, "SpecInfer: Accelerating Large Language Model Serving with Tree-based Speculative
Inference and Verification", arXiv:2305.09781, sections 4.2 (tree attention) and 4.3, algorithm 2
(multi-step speculative sampling); Cai et al. 2024, "Medusa", arXiv:2401.10774, section 3.1.2.

| paper | here |
|---|---|
| tree, root included | slot 0 of a pass is the token said last; node i of the tree is slot i + 1 |
| topology-aware causal mask | `ancestors`: a slot sees the past, its ancestors and itself |
| position of a node | past + depth; siblings share one, whatever slot they have |
| Q(x) | `q`, what a sibling was drawn from |

A child whose token was not drawn but picked (the k likeliest, a look-up) has no `q`. What is
accepted of a tree says `accept`.

After the pass `commit` moves the keys and values of the accepted path to the front and drops the
rest, so that the cache is that of a prefill of what was said.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from worthit.errors import InputError
from worthit.nn.attention.gqa import GroupedQueryAttention
from worthit.nn.attention.mla import MultiHeadLatentAttention
from worthit.nn.cache import Cache
from worthit.nn.decoder import Block, Decoder
from worthit.nn.tokens import Tokens

# The parent of a node that follows the token said last.
ROOT = -1


@dataclass(frozen=True)
class Tree:
    """Guesses at what follows: each node a token, below its parent.

    Attributes:
        tokens: of each node.
        parents: the number of each node's parent, which is smaller than its own; `ROOT` for those
            that follow the token said last.
        q: `(n, vocab_size)`, the distribution that each node's token was drawn from, given that
            its elder siblings were drawn before; None where tokens were picked, not drawn.
    """

    tokens: tuple[int, ...]
    parents: tuple[int, ...]
    q: Tensor | None = None

    def __post_init__(self) -> None:
        if len(self.tokens) != len(self.parents):
            raise InputError(
                f"a tree has a parent a token, got {len(self.tokens)} and {len(self.parents)}"
            )
        bad = [i for i, parent in enumerate(self.parents) if not ROOT <= parent < i]
        if bad:
            raise InputError(
                f"a node comes after its parent: node {bad[0]} has parent {self.parents[bad[0]]}"
            )

    @classmethod
    def chain(cls, tokens: Sequence[int], q: Tensor | None = None) -> Tree:
        """One guess after another."""
        return cls(tuple(tokens), tuple(range(-1, len(tokens) - 1)), q)

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def is_chain(self) -> bool:
        """Whether no node has a sibling."""
        return self.parents == tuple(range(-1, len(self) - 1))

    @property
    def depths(self) -> list[int]:
        """How far each node is from the root; its children have 1."""
        found: list[int] = []
        for parent in self.parents:
            found.append(1 if parent == ROOT else found[parent] + 1)
        return found

    def children(self, node: int) -> list[int]:
        """The nodes below `node`, in order."""
        return [i for i, parent in enumerate(self.parents) if parent == node]

    def path(self, node: int) -> list[int]:
        """From the root's child down to `node`."""
        found: list[int] = []
        while node != ROOT:
            found.append(node)
            node = self.parents[node]
        return found[::-1]


def ancestors(parents: Sequence[int]) -> Tensor:
    """`(n + 1, n + 1)` booleans: whether slot j is an ancestor of slot i, or slot i itself."""
    seen = torch.eye(len(parents) + 1, dtype=torch.bool)
    seen[:, 0] = True
    for i, parent in enumerate(parents):
        seen[i + 1] |= seen[parent + 1]
    return seen


def tree_tokens(tree: Tree, past: int, device: torch.device) -> Tokens:
    """Describe the pass over the token said last and `tree` after `past` computed tokens."""
    places = torch.tensor([past, *(past + d for d in tree.depths)], device=device)
    tokens = Tokens(n=len(tree) + 1, past=past, positions=places[None])
    if not tree.is_chain:
        before = torch.arange(past, device=device)
        tokens.slot_positions = torch.cat([before, places])[None]
        tokens.among = ancestors(tree.parents).to(device)
    return tokens


def require_trees(model: Decoder) -> None:
    """Raise InputError where a layer cannot look at a tree: what it remembers is one chain."""
    known = (GroupedQueryAttention, MultiHeadLatentAttention)
    for i, block in enumerate(model.layers):
        parts = (
            [] if type(block) is not Block else [m for m in block.mixers if type(m) not in known]
        )
        if type(block) is not Block or parts:
            name = type(parts[0] if parts else block).__name__
            raise InputError(
                f"layer {i} is a {name}, whose memory is that of one chain of tokens: a tree has "
                "several; draft chains"
            )


def tree_pass(model: Decoder, cache: Cache, last: int, tree: Tree) -> Tensor:
    """Logits `(n + 1, vocab_size)` of the token said last and of each node; the cache grows."""
    tokens = tree_tokens(tree, cache.length, model.device)
    tokens.relative_bias, tokens.low_rank = model.relative_bias, model.low_rank
    ids = torch.tensor([[last, *tree.tokens]], device=model.device)
    x = model.run(model.embedded(ids, tokens), tokens, cache)
    cache.length += len(tree) + 1
    return model.logits(x)[0]


def commit(cache: Cache, tree: Tree, path: Sequence[int]) -> None:
    """Keep of the last pass the token said before it and the nodes of `path`."""
    n = len(tree) + 1
    kept = [0, *(node + 1 for node in path)]
    if kept == list(range(len(kept))):
        cache.take_back(n - len(kept))
    else:
        cache.keep_of_last(n, torch.tensor(kept))
