"""All layers of a plain decoder in one call of `decoder.cpp`: embeddings in, hidden states out.

"Plain" is the common shape of today's models: RMS norms before each half, grouped-query attention
over all that came before, rotations of whole heads in halves, a gated SiLU. Everything else, and
every pass that pads, keeps other caches, wants gradients or is looked into by a hook, goes the way
of `worthit.nn.decoder`.

Between layers numbers are fp32 throughout; a model in 16 bits or fewer rounds them to bf16 where a
product reads them, and keeps keys and values in bf16, as the reference does.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from worthit.nn.attention.gqa import GroupedQueryAttention
from worthit.nn.cache import Cache, KVCache
from worthit.nn.ffn import FeedForward
from worthit.nn.native.build import library
from worthit.nn.native.linear import GROUP, Matrix, NativeLinear, native
from worthit.nn.norm import RMSNorm
from worthit.nn.position.rope import changes_with_length, frequencies
from worthit.nn.ragged import Ragged
from worthit.nn.tokens import Tokens
from worthit.spec.model import Attention
from worthit.spec.model import FeedForward as FeedForwardSpec

if TYPE_CHECKING:
    from worthit.nn.decoder import Decoder

# Tokens of each sequence in one call: what stands between products should stay near the cores.
CHUNK = 256
# What the source has room for.
WIDEST_HEAD = 256


class _Layer(ctypes.Structure):
    _fields_ = (
        *((name, Matrix) for name in ("qkv", "out", "up", "down")),
        ("mixer_norm", ctypes.c_void_p),
        ("ffn_norm", ctypes.c_void_p),
    )


class _Model(ctypes.Structure):
    _fields_ = (
        *(
            (name, ctypes.c_int32)
            for name in (
                "n_layers", "d_model", "d_ff", "n_heads", "n_kv_heads", "head_dim", "is_fp32",
                "unused",
            )
        ),
        ("eps", ctypes.c_float),
        ("scale", ctypes.c_float),
        ("layers", ctypes.c_void_p),
    )  # fmt: skip


class _Pass(ctypes.Structure):
    _fields_ = (
        *(
            (name, ctypes.c_int32)
            for name in ("n_tokens", "n_sequences", "n_threads", "block_tokens")
        ),
        ("head_stride", ctypes.c_int64),
        *(
            (name, ctypes.c_void_p)
            for name in ("x", "sequences", "keys", "values", "cosines", "sines", "taps")
        ),
    )


# `Sequence` of the source.
SEQUENCE = np.dtype(
    [
        ("start", np.int32),
        ("n", np.int32),
        ("past", np.int32),
        ("n_among", np.int32),
        ("blocks", np.uintp),
        ("among", np.uintp),
        ("places", np.uintp),
        ("offset", np.int64),
    ]
)


class Stores:
    """Where the keys and values of all layers are: pointers, and how far heads are apart."""

    def __init__(self, held: Sequence[Tensor]) -> None:
        # Keys and values in turn; held, that nobody frees what is pointed to.
        self.held, first = held, held[0]
        self.head_stride = first.stride(-3)
        assert all(t.stride() == first.stride() and t.dtype == first.dtype for t in held)
        pointers = np.array([t.data_ptr() for t in held], dtype=np.uintp)
        self.keys, self.values = pointers[::2].copy(), pointers[1::2].copy()


class NativeLayers:
    """The layers of one model, all of whose matrices are `NativeLinear`."""

    def __init__(self, model: Decoder) -> None:
        spec = model.spec
        first = spec.layers[0].mixers[0]
        ffn = spec.layers[0].ffn
        assert isinstance(first, Attention)
        assert isinstance(ffn, FeedForwardSpec)
        self.position, self.head_dim = spec.position, first.head_dim
        self.n_kv_heads, self.dtype = first.n_kv_heads, model.dtype
        self.layers = model.layers
        blocks: list[Any] = list(model.layers)
        # Who looks inside of a layer, or changes it, wants it to run: dictionaries filled then.
        # What only reads what a layer gives out is told.
        self._readers = [block._forward_hooks for block in blocks]
        own = {id(hooks) for hooks in self._readers}
        self._hooks = [
            hooks
            for module in model.layers.modules()
            for hooks in (module._forward_hooks, module._forward_pre_hooks)
            if id(hooks) not in own
        ]
        self._norms = [
            norm.weight.detach().float().contiguous()
            for block in blocks
            for norm in (block.mixer_norm, block.ffn_norm)
        ]
        self._layers = (_Layer * len(blocks))(
            *(
                _Layer(
                    block.mixers[0].qkv_proj.matrix,
                    block.mixers[0].o_proj.matrix,
                    block.ffn.up.matrix,
                    block.ffn.down.matrix,
                    *(norm.data_ptr() for norm in self._norms[2 * i : 2 * i + 2]),
                )
                for i, block in enumerate(blocks)
            )
        )
        self._model = _Model(
            len(blocks), spec.d_model, ffn.d_ff, first.n_heads, first.n_kv_heads, first.head_dim,
            int(model.dtype == torch.float32), 0, blocks[0].mixer_norm.eps,
            blocks[0].mixers[0].scale, ctypes.addressof(self._layers),
        )  # fmt: skip
        found = library()
        assert found is not None
        self._pass: Any = found.worthit_pass
        self._angles = self._turned(1024)

    def run(self, x: Tensor, tokens: Tokens, cache: Cache | None) -> Tensor | None:
        """Hidden states of a pass, in shape and type of `x`; None where this is not for us.

        The cache has grown by the pass then, as after any other.
        """
        is_odd = (
            cache is None
            or tokens.is_real is not None
            or (tokens.slot_positions is not None and tokens.among is None)
            or x.requires_grad
            or any(self._hooks)
            or (any(self._readers) and not self._is_only_read())
        )
        if is_odd:
            return None
        assert cache is not None
        if tokens.parts is None:
            return self._run_rows(x, tokens, cache)
        found = cache.layers[0][0]
        stores = found.in_blocks() if isinstance(found, Ragged) else None
        if stores is None:
            return None
        return self._run_blocks(x, tokens.parts, cache, *stores)

    def _run_rows(self, x: Tensor, tokens: Tokens, cache: Cache) -> Tensor | None:
        caches: list[Any] = [layer[0] for layer in cache.layers]
        if any(type(one) is not KVCache or one.window is not None for one in caches):
            return None
        stores = self._room(caches, x.shape[0], tokens.n, cache)
        batch, n, width = x.shape
        y = x.to(torch.float32, copy=True).contiguous()
        row = self.n_kv_heads * stores.head_stride
        is_tree, taps = tokens.among is not None, self._taps(y)
        for start in range(0, n, n if is_tree else CHUNK):
            end = n if is_tree else min(n, start + CHUNK)
            # A chunk of one row is where it is; of several it has to be brought together.
            part = y if batch == 1 else y[:, start:end].contiguous()
            sequences = np.zeros(batch, SEQUENCE)
            held = [_describe(sequences, i, tokens) for i in range(batch)] if is_tree else []
            sequences["n"] = end - start
            sequences["past"] = tokens.past + start
            sequences["start"] = np.arange(batch) * (end - start)
            sequences["offset"] = np.arange(batch) * row
            at = part.data_ptr() + (4 * width * start if batch == 1 else 0)
            own = {i: torch.empty_like(part[:, : end - start]) for i in taps}
            self._call(at, batch * (end - start), sequences, stores, tokens.past + end, 1, own)
            del held
            for i, tap in own.items():
                taps[i][:, start:end] = tap
            if batch > 1:
                y[:, start:end] = part
        for one in caches:
            one.keys.length += n
            one.values.length += n
        self._tell(taps, x.dtype)
        return y.to(x.dtype)

    def _room(self, caches: list[Any], batch: int, n: int, cache: Cache) -> Stores:
        shape = (batch, self.n_kv_heads, n, self.head_dim)
        grown = [part for one in caches for part in (one.keys, one.values)]
        for part in grown:
            part.reserve(shape, self.dtype)
        stores = cache.stores
        # Others may have moved them too.
        if not isinstance(stores, Stores) or any(
            part.room is not held for part, held in zip(grown, stores.held, strict=True)
        ):
            stores = cache.stores = Stores([part.room for part in grown])
        return stores

    def _run_blocks(
        self,
        x: Tensor,
        parts: list[Tokens],
        cache: Cache,
        tables: Sequence[Sequence[int]],
        block_tokens: int,
    ) -> Tensor | None:
        slots: list[Any] = [layer[0] for layer in cache.layers]
        if len({id(slot.places) for slot in slots}) > 1:
            return None
        first = slots[0].pair
        if first.stores is None:
            first.stores = Stores([part for slot in slots for part in slot.pair.parts])
        blocks = [np.array(table, dtype=np.int32) for table in tables]
        sequences = np.zeros(len(parts), SEQUENCE)
        sequences["start"] = [part.start for part in parts]
        sequences["n"] = [part.n for part in parts]
        sequences["past"] = [part.past for part in parts]
        sequences["blocks"] = [one.ctypes.data for one in blocks]
        held = [_describe(sequences, i, part) for i, part in enumerate(parts)]
        y = x.to(torch.float32, copy=True).contiguous()
        longest = max(part.past + part.n for part in parts)
        taps = self._taps(y)
        self._call(y.data_ptr(), y.shape[1], sequences, first.stores, longest, block_tokens, taps)
        del held
        self._tell(taps, x.dtype)
        return y.to(x.dtype)

    def _is_only_read(self) -> bool:
        hooks = [hook for readers in self._readers for hook in readers.values()]
        return all(getattr(hook, "only_reads", False) for hook in hooks)

    def _taps(self, y: Tensor) -> dict[int, Tensor]:
        """Room for what the layers give out that somebody reads."""
        if not any(self._readers):
            return {}
        return {i: torch.empty_like(y) for i, readers in enumerate(self._readers) if readers}

    def _tell(self, taps: dict[int, Tensor], dtype: torch.dtype) -> None:
        for i, tap in taps.items():
            for reader in self._readers[i].values():
                reader(self.layers[i], (), tap.to(dtype))

    def _call(
        self,
        x: int,
        n: int,
        sequences: Any,
        stores: Stores,
        longest: int,
        block_tokens: int,
        taps: dict[int, Tensor],
    ) -> None:
        if longest > self._angles[0].shape[0]:
            self._angles = self._turned(max(longest, 2 * self._angles[0].shape[0]))
        wanted = np.zeros(len(self._layers) if taps else 0, dtype=np.uintp)
        for i, tap in taps.items():
            wanted[i] = tap.data_ptr()
        one = _Pass(
            n, len(sequences), torch.get_num_threads(), block_tokens, stores.head_stride, x,
            sequences.ctypes.data, stores.keys.ctypes.data, stores.values.ctypes.data,
            self._angles[0].data_ptr(), self._angles[1].data_ptr(),
            wanted.ctypes.data if taps else None,
        )  # fmt: skip
        self._pass(ctypes.byref(self._model), ctypes.byref(one))

    def _turned(self, n: int) -> tuple[Tensor, Tensor]:
        freqs, factor = frequencies(self.position, self.head_dim, n)
        angles = torch.arange(n).float()[:, None] * freqs
        return (angles.cos() * factor).contiguous(), (angles.sin() * factor).contiguous()


def _describe(sequences: Any, i: int, tokens: Tokens) -> list[Any]:
    """Say what the tokens of sequence `i` see where they are a tree; what to hold meanwhile."""
    if tokens.among is None:
        return []
    among = np.ascontiguousarray(tokens.among.numpy(), dtype=np.uint8)
    places = np.ascontiguousarray(tokens.positions[0].numpy(), dtype=np.int32)
    sequences[i]["n_among"] = among.shape[1]
    sequences[i]["among"], sequences[i]["places"] = among.ctypes.data, places.ctypes.data
    return [among, places]


def make_native(model: Decoder) -> NativeLayers | None:
    """Lay `model` out for the compiled pass, in place; None, and nothing changed, where it cannot.

    Its projections must be fused, see `GroupedQueryAttention.fuse`.
    """
    if library() is None or not is_plain(model):
        return None
    places = [
        (owner, name)
        for block in model.layers
        for owner, name in (
            (block.mixers[0], "qkv_proj"),
            (block.mixers[0], "o_proj"),
            (block.ffn, "up"),
            (block.ffn, "down"),
        )
    ]
    made: list[tuple[nn.Module, str, NativeLinear]] = []
    for owner, name in places:
        one = native(getattr(owner, name))
        if one is None:
            return None
        made.append((owner, name, one))
    head = native(model.embedding if model.head is None else model.head)
    if head is None or len({one.kind == "fp32" for *_, one in made}) > 1:
        return None
    for owner, name, one in made:
        setattr(owner, name, one)
    if model.head is None:
        model.tied_head = head
    else:
        model.head = head
    return NativeLayers(model)


def is_plain(model: Decoder) -> bool:
    """Whether the layers are of the shape that the source knows, all alike."""
    from worthit.nn.decoder import Block, Decoder

    spec = model.spec
    attentions = {m for layer in spec.layers for m in layer.mixers}
    ffns = {layer.ffn for layer in spec.layers}
    if type(model) is not Decoder or len(attentions) != 1 or len(ffns) != 1:
        return False
    a, ffn, position = attentions.pop(), ffns.pop(), spec.position
    if not isinstance(a, Attention) or not isinstance(ffn, FeedForwardSpec):
        return False
    if model.dtype not in (torch.float32, torch.bfloat16) or model.device.type != "cpu":
        return False
    blocks = list(model.layers)
    return (
        all(type(block) is Block and len(block.mixers) == 1 for block in blocks)
        and all(type(block.mixers[0]) is GroupedQueryAttention for block in blocks)
        and all(type(block.ffn) is FeedForward for block in blocks)
        and all(
            layer.placement == "pre"
            and layer.residual_scale == 1.0
            and not layer.is_parallel
            and layer.n_loops == 1
            and layer.token_fraction == 1
            for layer in spec.layers
        )
        and all(_is_plain_norm(n) for b in blocks for n in (b.mixer_norm, b.ffn_norm))
        and _is_plain_norm(model.final_norm)
        and model.embedding_out is None
        and blocks[0].mixers[0].is_plain
        and blocks[0].mixers[0].qkv_proj is not None
        and _is_plain_attention(a)
        and position.kind == "rope"
        and not position.is_interleaved
        and not changes_with_length(position)
        and ffn.is_gated
        and ffn.activation == "silu"
        and ffn.gate_scale == 1.0
        and ffn.out_scale == 1.0
        and spec.d_model % GROUP == 0
        and ffn.d_ff % GROUP == 0
    )


def _is_plain_norm(norm: object) -> bool:
    return (
        type(norm) is RMSNorm
        and norm.weight is not None
        and norm.bias is None
        and not norm.has_unit_offset
    )


def _is_plain_attention(a: Attention) -> bool:
    return (
        a.rotary_dim == a.head_dim
        and a.head_dim % GROUP == 0
        and a.head_dim <= WIDEST_HEAD
        and a.reach is None
        and a.qk_norm == "none"
        and a.qkv_clip is None
        and a.temperature is None
        and not a.has_output_gate
        and not a.is_position_free
        and (a.in_scale, a.out_scale, a.key_scale) == (1.0, 1.0, 1.0)
    )
