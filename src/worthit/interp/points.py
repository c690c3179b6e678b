"""The places of a model that have a name, and how a function is put there.

A point is a tensor that a pass computes; its name says where it stands in the residual stream
(Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits"). Of a model:

    embed  layers.0 ... layers.L-1  final_norm  logits

and of layer i, `layers.i.` followed by

| point | what | shape |
|---|---|---|
| `resid_pre`, `resid_mid`, `resid_post` | the stream before, between, after its two halves | d |
| `mixer_in`, `ffn_in` | what its mixers and its feed-forward are given: normalised | d |
| `mixer_out`, `ffn_out` | what they add to the stream, scales and norms included | d |
| `ffn_hidden` | what the last matrix of a dense feed-forward reads: its neurons | d_ff |
| `q`, `k`, `v` | of the new tokens, in place (`batch, heads, n, head_dim`) | |
| `pattern` | attention weights `(batch, n_heads, n, m)` | |
| `heads` | what each head read `(batch, n, n_heads, head_dim)` | |

Points without a shape above are `(batch, n, ...)`. A layer whose halves stand beside each other has
no `resid_mid`; one without attention has no `q` ... `heads`, and what is said of a point that a
layer lacks says why. Latent attention has a `pattern`, but its queries and keys come in two parts;
additive linear attention has one too, over the tokens of the pass, whose rows lack to one what is
read of the state of earlier passes. A `pattern` that is wanted takes the plain path, which writes
all scores down. In a block that is applied several times the points inside
are computed once an application.

Methods of the model are replaced on the instance, and only while a point of theirs is wanted: a
model that nobody looks into runs the code it always ran.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Sequence
from fnmatch import fnmatchcase
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from worthit.errors import InputError, unknown_name
from worthit.nn.attention.core import attention_weights, repeat_heads
from worthit.nn.attention.gqa import GroupedQueryAttention
from worthit.nn.attention.linear_attention import AdditiveAttention, attend_in_weights
from worthit.nn.attention.mla import MultiHeadLatentAttention
from worthit.nn.decoder import Block, Decoder
from worthit.nn.ffn import FeedForward
from worthit.nn.tokens import Tokens

Function = Callable[[Tensor], Tensor] | Callable[[Tensor, Tokens], Tensor]
Seen = Callable[[Tensor, Tokens | None], Tensor]

# In the order in which a pass computes them.
OF_LAYER = (
    "resid_pre",
    "mixer_in",
    "q",
    "k",
    "v",
    "pattern",
    "heads",
    "mixer_out",
    "resid_mid",
    "ffn_in",
    "ffn_hidden",
    "ffn_out",
    "resid_post",
)


def points(model: Decoder) -> list[str]:
    """The names of all points of `model`, in the order of a pass."""
    names = ["embed"]
    for i, block in enumerate(model.layers):
        there = points_of_layer(block)
        names += [f"layers.{i}.{point}" for point in OF_LAYER if point in there]
    return [*names, *(["final_norm"] if model.final_norm is not None else []), "logits"]


def points_of_layer(block: Block) -> set[str]:
    """The points that a block has, without its name."""
    there = {"resid_pre", "resid_post"}
    if len(block.mixers):
        there |= {"mixer_in", "mixer_out"}
    if block.ffn is not None:
        there |= {"ffn_in", "ffn_out"}
    if len(block.mixers) and block.ffn is not None and not block.is_parallel:
        there.add("resid_mid")
    if type(block.ffn) is FeedForward:
        there.add("ffn_hidden")
    attention = attention_of(block)
    if attention is not None:
        there.add("heads")
    if isinstance(attention, GroupedQueryAttention):
        there |= {"q", "k", "v"}
    if attention is not None and not _no_pattern(attention):
        there.add("pattern")
    return there


def attention_of(block: Block) -> Any:
    """The one mixer of a block that has heads with an output matrix; None without, or of two."""
    found = [m for m in block.mixers if hasattr(m, "o_proj") and _n_heads(m)]
    # Beside a softmax over tokens, a state is not what is asked for.
    found = [m for m in found if hasattr(m.spec, "n_heads")] or found
    return found[0] if len(found) == 1 else None


def _n_heads(mixer: Any) -> int:
    """How many heads a mixer's output matrix reads; 0 where it has none."""
    return int(getattr(mixer.spec, "n_heads", 0) or getattr(mixer.spec, "n_value_heads", 0))


def _no_pattern(attention: Any) -> str:
    """Why there are no weights of tokens to be seen; empty where there are."""
    name = type(attention).__name__
    if isinstance(attention, GroupedQueryAttention):
        is_plain = type(attention).recall is GroupedQueryAttention.recall
        return "" if is_plain else f"{name} never has the weights of all tokens"
    if isinstance(attention, MultiHeadLatentAttention | AdditiveAttention):
        return ""
    return f"{name} reads a state in which tokens cannot be told apart"


def _why_not(block: Block, point: str) -> str:
    """Why a block lacks a point; empty where the list of those that it has says it."""
    attention = attention_of(block)
    if point in ("q", "k", "v", "pattern", "heads") and attention is None:
        kinds = " beside ".join(type(m).__name__ for m in block.mixers)
        return f"{kinds} has no heads of one output matrix" if kinds else "nothing mixes tokens"
    if point == "pattern":
        return _no_pattern(attention)
    if point in ("q", "k", "v"):
        if isinstance(attention, MultiHeadLatentAttention):
            return "latent attention has queries and keys in two parts, and no values of its own"
        return f"those of {type(attention).__name__} pass a feature map first; take mixer_in"
    if point == "resid_mid" and block.is_parallel:
        return "its halves stand beside each other"
    if point == "ffn_hidden" and block.ffn is not None:
        return f"{type(block.ffn).__name__} has no one matrix that reads its neurons"
    return ""


def expand(model: Decoder, names: str | Iterable[str]) -> list[str]:
    """The points that `names` mean, in the order of a pass; `*` stands for any letters.

    Raises:
        InputError: a point that this model does not have, with those that its layer has.
    """
    known = points(model)
    wanted: set[str] = set()
    for name in [names] if isinstance(names, str) else names:
        found = [point for point in known if fnmatchcase(point, name)]
        if not found:
            raise _no_such_point(model, name, known)
        wanted.update(found)
    return [point for point in known if point in wanted]


def width(model: Decoder, name: str) -> int:
    """The size of the last axis of a point, of those that have one vector a token."""
    (name,) = expand(model, name)
    if name == "logits":
        return model.spec.vocab_size
    last = name.rpartition(".")[2]
    if last == "ffn_hidden":
        return int(model.layers[int(name.split(".")[1])].ffn.spec.d_ff)
    if last in ("q", "k", "v", "pattern", "heads"):
        raise InputError(
            f"{name}: has several vectors a token, got a need for one; take mixer_in, mixer_out or "
            "a point of the stream"
        )
    return model.spec.d_model


def _no_such_point(model: Decoder, name: str, known: Sequence[str]) -> InputError:
    before, _, last = name.rpartition(".")
    own = [point.rpartition(".")[2] for point in known if point.rpartition(".")[0] == before]
    parts = name.split(".")
    if own and last in OF_LAYER:
        why = _why_not(model.layers[int(parts[1])], last)
        because = f": {why}" if why else ""
        return InputError(f"{name}: this layer has no such point{because}; it has {', '.join(own)}")
    if len(parts) == 3 and parts[0] == "layers" and parts[1].isdecimal() and not own:
        return InputError(
            f"{name}: there is no layer {parts[1]}, got a model of {len(model.layers)}; "
            f"pick one of 0 to {len(model.layers) - 1}"
        )
    return unknown_name("point", name, known)


class Taps:
    """The functions that are put into one model, by the name of their point."""

    def __init__(self) -> None:
        self.functions: dict[str, list[Seen]] = {}
        self.tokens: Tokens | None = None
        self._undo: list[Callable[[], object]] = []

    def fire(self, name: str, value: Tensor) -> Tensor:
        """What the functions at `name` make of `value`, one after another."""
        for function in self.functions.get(name, ()):
            new = function(value, self.tokens)
            if not isinstance(new, torch.Tensor) or new.shape != value.shape:
                got = list(new.shape) if isinstance(new, torch.Tensor) else type(new).__name__
                raise InputError(
                    f"{name}: an intervention must return a tensor of shape {list(value.shape)}, "
                    f"got {got}"
                )
            value = new
        return value

    def add(self, model: Decoder, functions: dict[str, Seen]) -> None:
        """Put each function after those that are at its point already."""
        for name, function in functions.items():
            self.functions.setdefault(name, []).append(function)
        self._install(model)

    def remove(self, model: Decoder, functions: dict[str, Seen]) -> None:
        """Take them out again, whoever came and left in between."""
        for name, function in functions.items():
            self.functions[name] = [f for f in self.functions[name] if f is not function]
            if not self.functions[name]:
                del self.functions[name]
        self._install(model)

    def _install(self, model: Decoder) -> None:
        """Replace what the wanted points need, and nothing else."""
        for undo in reversed(self._undo):
            undo()
        self._undo = []
        if not self.functions:
            return
        self._at_model(model)
        for i, block in enumerate(model.layers):
            prefix = f"layers.{i}."
            wanted = {n.removeprefix(prefix) for n in self.functions if n.startswith(prefix)}
            if wanted:
                self._at_block(block, prefix, wanted)

    def _replace(self, module: nn.Module, method: str, new: Callable[..., Any]) -> None:
        setattr(module, method, new)
        self._undo.append(lambda: delattr(module, method))

    def _hook(self, handle: Any) -> None:
        self._undo.append(handle.remove)

    def _at_model(self, model: Decoder) -> None:
        embed, fire = model.embed, self.fire

        def embedded(input_ids: Tensor, tokens: Tokens) -> Tensor:
            self.tokens = tokens
            return fire("embed", embed(input_ids, tokens))

        def logits_at(input_ids: Tensor, rows: Tensor) -> Tensor:
            # The short cut calls halves of the last layer; no point may be left out.
            y: Tensor = model(input_ids)
            return y.flatten(0, 1).index_select(0, rows)

        self._replace(model, "embed", embedded)
        self._replace(model, "logits_at", logits_at)
        if "final_norm" in self.functions:
            self._hook(
                model.final_norm.register_forward_hook(  # type: ignore[union-attr]  # it is a point
                    lambda _, args, y: fire("final_norm", y)
                )
            )
        if "logits" in self.functions:
            logits = model.logits
            self._replace(model, "logits", lambda x: fire("logits", logits(x)))

    def _at_block(self, block: Block, prefix: str, wanted: set[str]) -> None:
        def before(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
            x, tokens, *rest = args
            self.tokens = tokens
            return (self.fire(prefix + "resid_pre", x), tokens, *rest)

        def after(_: nn.Module, args: tuple[Any, ...], y: Tensor) -> Tensor:
            self.tokens = args[1]
            return self.fire(prefix + "resid_post", y)

        self._hook(block.register_forward_pre_hook(before))
        if "resid_post" in wanted:
            self._hook(block.register_forward_hook(after))
        for half in ("mixer", "ffn"):
            if wanted & {f"{half}_in", f"{half}_out"}:
                self._at_half(block, prefix, half)
        if "resid_mid" in wanted:
            first_half = block.first_half

            def middle(x: Tensor, tokens: Tokens, caches: Any = None) -> Tensor:
                y = first_half(x, tokens, caches)
                self.tokens = tokens
                return self.fire(prefix + "resid_mid", y)

            self._replace(block, "first_half", middle)
        if "ffn_hidden" in wanted:
            self._hook(
                block.ffn.down.register_forward_pre_hook(  # type: ignore[union-attr]  # it is a point
                    lambda _, args: (self.fire(prefix + "ffn_hidden", args[0]),)
                )
            )
        if wanted & {"q", "k", "v", "pattern", "heads"}:
            self._at_attention(attention_of(block), prefix, wanted)

    def _at_half(self, block: Block, prefix: str, half: str) -> None:
        added = getattr(block, f"{half}_out")

        def out(h: Tensor, tokens: Tokens, caches: Any) -> Tensor:
            self.tokens = tokens
            y = added(self.fire(f"{prefix}{half}_in", h), tokens, caches)
            self.tokens = tokens
            return self.fire(f"{prefix}{half}_out", y)

        self._replace(block, f"{half}_out", out)

    def _at_attention(self, attention: Any, prefix: str, wanted: set[str]) -> None:
        if wanted & {"q", "k", "v"}:
            recall = attention.recall

            def recalled(
                q: Tensor, k: Tensor, v: Tensor, tokens: Tokens, cache: Any = None
            ) -> Tensor:
                self.tokens = tokens
                q, k, v = (
                    self.fire(prefix + name, t) for name, t in zip("qkv", (q, k, v), strict=True)
                )
                y: Tensor = recall(q, k, v, tokens, cache)
                return y

            self._replace(attention, "recall", recalled)
        if "pattern" in wanted:
            self._replace(attention, "attend", self._weighing(attention, prefix + "pattern"))
        if "heads" in wanted:
            n_heads = _n_heads(attention)

            def read(_: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
                by_head = args[0].unflatten(-1, (n_heads, -1))
                return (self.fire(prefix + "heads", by_head).flatten(-2),)

            self._hook(attention.o_proj.register_forward_pre_hook(read))

    def _weighing(self, attention: Any, name: str) -> Callable[..., Any]:
        """What a mixer's `attend` is replaced by, so that its weights pass `name`."""
        if isinstance(attention, AdditiveAttention):

            def in_weights(
                q: Tensor, k: Tensor, v: Tensor, weight: Tensor, state: Tensor | None
            ) -> tuple[Tensor, Tensor]:
                return attend_in_weights(q, k, v, weight, state, lambda w: self.fire(name, w))

            return in_weights
        n_heads = _n_heads(attention)

        def attend(q: Tensor, k: Tensor, v: Tensor, **how: Any) -> Tensor:
            how.pop("is_causal", None)  # the mask says it too
            weights = attention_weights(q, k, **how)
            # Of absorbed latents, heads stand among the queries.
            by_head = weights.reshape(len(weights), n_heads, -1, weights.shape[-1])
            weights = self.fire(name, by_head).reshape(weights.shape)
            return weights @ repeat_heads(v, q.shape[1] // k.shape[1])

        return attend


_TAPS: WeakKeyDictionary[Decoder, Taps] = WeakKeyDictionary()


def taps_of(model: Decoder) -> Taps:
    """The taps of `model`; the same for all who look at it."""
    return _TAPS.setdefault(model, Taps())


def as_seen(function: Function) -> Seen:
    """`function`, given the tokens of the pass where it has a place for them."""
    try:
        places = [
            p
            for p in inspect.signature(function).parameters.values()
            if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) and p.default is p.empty
        ]
    except (TypeError, ValueError):  # built in
        places = [None]  # type: ignore[list-item]
    if len(places) >= 2:
        return function  # type: ignore[return-value]
    return lambda value, _: function(value)  # type: ignore[call-arg]
