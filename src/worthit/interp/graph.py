"""A decoder as a graph: heads and feed-forwards that send to each other through the stream.

Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits": the stream is a sum of what
was written, so that what any part reads is a sum over earlier senders, and every term is an edge:

    senders     embed, layers.0.head.3, layers.0.ffn, ...
    receivers   layers.1.q.3, layers.1.k.0, layers.1.v.0, layers.1.ffn, ..., logits

A *patched* edge carries what its sender sends in another run, the rest what they send in this one.
One patched edge is a path of path patching (Goldowsky-Dill et al. 2023, arXiv:2304.05969); all
edges outside of a circuit patched is the circuit alone (Conmy et al. 2023, arXiv:2304.14997).

Every receiver gets an input of its own, so that a pass costs as many norms and projections as there
are heads: for models whose circuit one hopes to read.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable

import torch
from torch import Tensor, nn

from worthit.errors import InputError
from worthit.nn.attention.gqa import GroupedQueryAttention
from worthit.nn.decoder import Block, Decoder
from worthit.nn.ffn import FeedForward
from worthit.nn.tokens import Tokens, tokens_of

Edge = tuple[str, str]
Sent = dict[str, Tensor]


class Graph:
    """`model`, run edge by edge.

    Raises:
        InputError: a model that is no sum of heads and feed-forwards.
    """

    def __init__(self, model: Decoder) -> None:
        problems = list(_not_a_graph(model))
        if problems:
            raise InputError(*problems, context="reading the model as a graph")
        self.model = model
        self.senders = ["embed"]
        self.receivers: list[str] = []
        self._edges: list[Edge] = []
        for i, block in enumerate(model.layers):
            (attention,) = block.mixers
            a = attention.spec
            for kind, n in (("q", a.n_heads), ("k", a.n_kv_heads), ("v", a.n_kv_heads)):
                for j in range(n):
                    self._receive(f"layers.{i}.{kind}.{j}")
            self.senders += [f"layers.{i}.head.{j}" for j in range(a.n_heads)]
            if block.ffn is not None:
                self._receive(f"layers.{i}.ffn")
                self.senders.append(f"layers.{i}.ffn")
        self._receive("logits")

    def _receive(self, name: str) -> None:
        self.receivers.append(name)
        self._edges += [(sender, name) for sender in self.senders]

    @property
    def edges(self) -> list[Edge]:
        """Every edge, receivers in the order of a pass."""
        return list(self._edges)

    def run(
        self,
        input_ids: Tensor,
        *,
        patched: Collection[Edge] = (),
        other: Sent | None = None,
        on_receive: Callable[[str, Tensor], Tensor] | None = None,
    ) -> tuple[Tensor, Sent]:
        """Logits, and what every sender sent `(batch, n, d_model)`.

        Args:
            patched: edges that carry what `other` holds.
            other: what senders sent in another run.
            on_receive: what to make of a receiver's input, by its name.
        """
        model = self.model
        tokens = tokens_of(input_ids, past=0, attention_mask=None)
        sent: Sent = {"embed": model.embed(input_ids, tokens)}
        total = sent["embed"]
        swaps: dict[str, list[str]] = {}
        for sender, receiver in patched:
            swaps.setdefault(receiver, []).append(sender)

        def received(name: str) -> Tensor:
            x = total
            for sender in swaps.get(name, ()):
                assert other is not None
                x = x + (other[sender] - sent[sender])
            # Its own tensor, so that gradients towards it are its own.
            return x if on_receive is None else on_receive(name, x + 0)

        for i, block in enumerate(model.layers):
            heads, rest = _heads(block, f"layers.{i}", received, tokens)
            for j, head in enumerate(heads):
                sent[f"layers.{i}.head.{j}"] = head
            total = total + sum(heads) + rest
            if block.ffn is not None:
                h = _normed(block.ffn_norm, received(f"layers.{i}.ffn"))
                out = sent[f"layers.{i}.ffn"] = block.spec.residual_scale * block.ffn(h, tokens)
                total = total + out
        return model.logits(received("logits")), sent


def _heads(
    block: Block, name: str, received: Callable[[str], Tensor], tokens: Tokens
) -> tuple[list[Tensor], Tensor]:
    """What every head writes, and what the output's bias does."""
    (attention,) = block.mixers
    a, scale = attention.spec, block.spec.residual_scale

    def projected(kind: str, n: int, matrix: nn.Linear) -> Tensor:
        x = torch.stack([received(f"{name}.{kind}.{j}") for j in range(n)], dim=1)
        h = _normed(block.mixer_norm, x)  # (batch, heads, n, d_model)
        y = torch.einsum("bhnd,hkd->bhnk", h, matrix.weight.unflatten(0, (n, -1)))
        if matrix.bias is not None:
            y = y + matrix.bias.unflatten(0, (n, -1))[:, None]
        return y

    q = projected("q", a.n_heads, attention.q_proj)
    k = projected("k", a.n_kv_heads, attention.k_proj)
    v = projected("v", a.n_kv_heads, attention.v_proj)
    q, k = attention._placed(q, k, tokens)
    read = attention.recall(q, k, v, tokens)  # (batch, n_heads, n, head_dim)
    out = attention.o_proj
    wrote = torch.einsum("bhnk,dhk->hbnd", read, out.weight.unflatten(1, (a.n_heads, -1)))
    rest = wrote.new_zeros(()) if out.bias is None else scale * out.bias
    return list((scale * wrote).unbind(0)), rest


def _normed(norm: nn.Module | None, x: Tensor) -> Tensor:
    if norm is None:
        return x
    y: Tensor = norm(x)
    return y


def _not_a_graph(model: Decoder) -> Iterable[str]:
    if type(model).run is not Decoder.run:
        yield f"{type(model).__name__} has an order of its own"
    for i, block in enumerate(model.layers):
        if type(block) is not Block or block.spec.placement != "pre" or block.is_parallel:
            yield f"layer {i}: only blocks with norms before, one half after the other, are sums"
            continue
        mixer = block.mixers[0] if len(block.mixers) == 1 else None
        if type(mixer) is not GroupedQueryAttention or mixer.qkv_proj is not None:
            yield f"layer {i}: needs one plain attention, got {type(mixer).__name__}"
            continue
        a = mixer.spec
        scales = (a.in_scale, a.key_scale, a.out_scale)
        if a.has_output_gate or a.qk_norm == "full" or a.qkv_clip or scales != (1.0, 1.0, 1.0):
            yield f"layer {i}: its heads share a gate, a norm, a clip or a scale"
        if block.ffn is not None and type(block.ffn) is not FeedForward:
            yield f"layer {i}: needs a dense feed-forward, got {type(block.ffn).__name__}"
