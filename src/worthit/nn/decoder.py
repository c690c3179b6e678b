"""From a `ModelSpec` to a decoder: one obvious path from facts to modules.

`build(spec)` makes a `Decoder`: embedding, one `Block` a layer, final norm, output head. A block's
slots (mixers, feed-forward, norms) are filled by `worthit.nn.mixer.module_for`, so that a hybrid is
a spec whose layers differ. Where the norm N stands around a sublayer f (Xiong et al. 2020, "On
Layer Normalization in the Transformer Architecture", arXiv:2002.04745, table 1; others by use):

    pre       x + f(N(x))              post      N(x + f(x))
    output    x + N(f(x))  (OLMo 2)    sandwich  x + N(f(N(x)))  (Gemma 2)
    parallel  x + f(N(x)) + g(N'(x))   (GPT-J; one N for both where `has_one_norm`)

| symbol | here |
|---|---|
| f, g | the layer's mixers (added where there are several) and its feed-forward |
| N | `mixer_norm`, `ffn_norm` before; `mixer_post_norm`, `ffn_post_norm` after |
| the last N of the stream | `final_norm`, without which a pre-norm stream's scale is unbounded |
"""

from __future__ import annotations

from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from worthit.nn.cache import Cache
from worthit.nn.ffn import FeedForward
from worthit.nn.mixer import Mixer, module_for
from worthit.nn.norm import norm_for
from worthit.nn.position import sinusoidal
from worthit.nn.position.learned_positions import LearnedPositions
from worthit.nn.position.relative_bias import RelativeBias
from worthit.nn.quant.linear import StoredEmbedding
from worthit.nn.ragged import in_rows, one_by_one
from worthit.nn.tokens import Tokens, tokens_of
from worthit.spec.model import Attention, Layer, ModelSpec


def build(spec: ModelSpec) -> Decoder:
    """The decoder that `spec` describes, with fresh weights.

    Use `with torch.device("meta")` to count without memory.
    """
    if spec.early_exit is not None:
        from worthit.nn.depth.early_exit import EarlyExitDecoder

        return EarlyExitDecoder(spec)
    return Decoder(spec)


class Block(nn.Module):
    """One layer: mixers in parallel, then (or beside them) a feed-forward, each with its norm."""

    def __init__(self, layer: Layer, model: ModelSpec) -> None:
        super().__init__()
        self.spec = layer
        self.mixers = nn.ModuleList(module_for(m, model) for m in layer.mixers)
        self.ffn = None if layer.ffn is None else module_for(layer.ffn, model)
        has_before = layer.placement in ("pre", "sandwich")
        has_after = layer.placement != "pre"

        def norm(wanted: bool) -> nn.Module | None:
            return norm_for(layer.norm, model.d_model) if wanted else None

        has_mixer, has_ffn = bool(layer.mixers), layer.ffn is not None
        # With only one half there is nothing for it to run beside.
        self.is_parallel = layer.is_parallel and has_mixer and has_ffn
        shares = self.is_parallel and layer.has_one_norm
        self.mixer_norm = norm(has_mixer and has_before)
        self.mixer_post_norm = norm(has_mixer and has_after)
        self.ffn_norm = norm(has_ffn and has_before and not shares)
        self.ffn_post_norm = norm(has_ffn and has_after and not shares)

    def forward(self, x: Tensor, tokens: Tokens, caches: list[object] | None = None) -> Tensor:
        """`(batch, n, d_model)` to the same shape."""
        layer = self.spec
        if self.is_parallel:
            h = _maybe(self.mixer_norm, x)
            beside = h if layer.has_one_norm else _maybe(self.ffn_norm, x)
            return x + (self.mixer_out(h, tokens, caches) + self.ffn_out(beside, tokens, caches))
        return self.second_half(self.first_half(x, tokens, caches), tokens, caches)

    def first_half(self, x: Tensor, tokens: Tokens, caches: list[object] | None = None) -> Tensor:
        """`x` with what its mixers add, where the two halves follow each other."""
        if not self.spec.mixers:
            return x
        added = self.mixer_out(_maybe(self.mixer_norm, x), tokens, caches)
        return self._joined(x, added, self.mixer_post_norm)

    def second_half(self, x: Tensor, tokens: Tokens, caches: list[object] | None = None) -> Tensor:
        """`x` with what its feed-forward adds."""
        if self.ffn is None:
            return x
        added = self.ffn_out(_maybe(self.ffn_norm, x), tokens, caches)
        return self._joined(x, added, self.ffn_post_norm)

    def mixer_out(self, h: Tensor, tokens: Tokens, caches: list[object] | None) -> Tensor:
        """What the mixers add to the stream, of their normalised input `h`."""
        return self._added(self.mix(h, tokens, caches), self.mixer_post_norm)

    def ffn_out(self, h: Tensor, tokens: Tokens, caches: list[object] | None) -> Tensor:
        """What the feed-forward adds to the stream, of its normalised input `h`."""
        return self._added(self.feed(h, tokens, caches), self.ffn_post_norm)

    def mix(self, h: Tensor, tokens: Tokens, caches: list[object] | None) -> Tensor:
        """The sum of the mixers on the same input."""
        n_mixers = len(self.mixers)
        own = caches[:n_mixers] if caches else [None] * n_mixers
        parts = [mixed(m, h, tokens, c) for m, c in zip(self.mixers, own, strict=True)]
        total: Tensor = parts[0]
        for part in parts[1:]:
            total = total + part
        return total

    def feed(self, h: Tensor, tokens: Tokens, caches: list[object] | None) -> Tensor:
        """The feed-forward; the last cache is its own where it remembers (RWKV)."""
        assert self.ffn is not None
        if isinstance(self.ffn, Mixer):
            return mixed(self.ffn, h, tokens, caches[-1] if caches else None)
        if tokens.parts is not None and getattr(self.ffn, "looks_around", False):
            ffn = self.ffn
            return one_by_one(lambda x, part, _: ffn(x, part), h, tokens, None)
        y: Tensor = self.ffn(h, tokens)
        return y

    def _added(self, y: Tensor, after: nn.Module | None) -> Tensor:
        scale = self.spec.residual_scale
        if self.spec.placement != "post":
            y = _maybe(after, y)
        return y if scale == 1.0 else scale * y

    def _joined(self, x: Tensor, added: Tensor, after: nn.Module | None) -> Tensor:
        return _maybe(after, x + added) if self.spec.placement == "post" else x + added

    def new_caches(self) -> list[object]:
        """An empty cache for each mixer, and for a feed-forward that remembers."""
        return [m.new_cache() for m in (*self.mixers, self.ffn) if isinstance(m, Mixer)]


def mixed(mixer: Mixer, h: Tensor, tokens: Tokens, cache: Any) -> Tensor:
    """`mixer` on a pass of any kind; `cache` holds one a sequence where the pass is ragged."""
    if tokens.parts is None or mixer.takes_parts:
        y: Tensor = mixer(h, tokens, cache)
        return y
    return in_rows(mixer, h, tokens, cache)


def passed(block: nn.Module, x: Tensor, tokens: Tokens, caches: Any) -> Tensor:
    """`block` on a pass of any kind; blocks with an order of their own go sequence by sequence."""
    if tokens.parts is None or type(block) is Block:
        y: Tensor = block(x, tokens, caches)
        return y
    return one_by_one(block, x, tokens, caches)


def block_for(layer: Layer, model: ModelSpec) -> Block:
    """The block of `layer`, by how many tokens pass it and how often."""
    if model.is_equilibrium:
        from worthit.nn.depth.deep_equilibrium import EquilibriumBlock

        return EquilibriumBlock(layer, model)
    if layer.n_loops > 1 and layer.token_fraction < 1:
        from worthit.nn.depth.mixture_of_recursions import MixtureOfRecursions

        return MixtureOfRecursions(layer, model)
    if layer.n_loops > 1:
        from worthit.nn.depth.recursive_transformer import Recursive

        return Recursive(layer, model)
    if layer.token_fraction < 1:
        from worthit.nn.depth.mixture_of_depths import MixtureOfDepths

        return MixtureOfDepths(layer, model)
    return Block(layer, model)


def _maybe(norm: nn.Module | None, x: Tensor) -> Tensor:
    if norm is None:
        return x
    y: Tensor = norm(x)
    return y


class Decoder(nn.Module):
    """A causal language model; `forward(input_ids)` gives logits `(batch, n, vocab_size)`.

    `source` is the folder or file that it was loaded from, `source_config` its Hugging Face config.
    """

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.spec = spec
        self.source: str | None = None
        # What `worthit.nn.inference.optimize` changes.
        self.is_optimized = False
        self.tied_head: nn.Module | None = None
        self.native: Any = None
        self.source_config: dict[str, Any] | None = None
        # What `worthit.nn.quant` stored in few bits, as `config.json` says it.
        self.quantization: dict[str, Any] | None = None
        width = spec.embedding_dim or spec.d_model
        self.embedding: nn.Module = nn.Embedding(spec.vocab_size, width)
        is_narrow = width != spec.d_model
        self.embedding_in = nn.Linear(width, spec.d_model, bias=False) if is_narrow else None
        self.embedding_out = nn.Linear(spec.d_model, width, bias=False) if is_narrow else None
        self.positions: LearnedPositions | None = None
        if spec.n_positions:
            self.positions = LearnedPositions(
                spec.n_positions, spec.d_model, offset=spec.position.offset
            )
        self.relative_bias: RelativeBias | None = None
        if spec.position.kind == "relative-bias":
            n_heads = [m.n_heads for m in spec.mixers if isinstance(m, Attention)]
            self.relative_bias = RelativeBias(max(n_heads, default=0))
        ranks = [m.low_rank for m in spec.mixers if isinstance(m, Attention) and m.low_rank]
        self.low_rank: nn.Parameter | None = None
        if ranks:
            start = torch.randn(spec.context_len, max(ranks)) * max(ranks) ** -0.5
            self.low_rank = nn.Parameter(start)
        self.embedding_norm = norm_for(spec.norm, spec.d_model) if spec.has_embedding_norm else None
        self.layers = nn.ModuleList(block_for(layer, spec) for layer in spec.layers)
        self.final_norm = norm_for(spec.norm, spec.d_model) if spec.has_final_norm else None
        self.head: nn.Linear | None = None
        if not spec.has_tied_embeddings:
            self.head = nn.Linear(width, spec.vocab_size, bias=spec.has_head_bias)

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        held = chain(self.embedding.parameters(), self.embedding.buffers())
        device: torch.device = next(held).device
        return device

    @property
    def dtype(self) -> torch.dtype:
        """What it computes in."""
        table = self.embedding
        held = table.scales if isinstance(table, StoredEmbedding) else table.weight
        dtype: torch.dtype = held.dtype
        return dtype

    def new_cache(self) -> Cache:
        """An empty cache for `forward`, one entry a layer application."""
        return Cache(
            [block.new_caches() for block in self.layers if isinstance(block, Block)]  # type: ignore[misc]
        )

    def outgrows(self, cache: Cache, n: int) -> bool:
        """Whether `n` more tokens take a sequence beyond LongRoPE's trained context.

        Every rotation is another one from there on, and cached keys keep theirs: continue with a
        new cache and the whole sequence.
        """
        scaling = self.spec.position.scaling
        if scaling is None or scaling.kind != "longrope" or cache.length == 0:
            return False
        seen = cache.length
        if cache.is_real is not None:
            seen = int(cache.is_real.sum(dim=-1).max())
        return seen <= scaling.original_context_len < seen + n

    def forward(
        self,
        input_ids: Tensor,
        *,
        cache: Cache | None = None,
        attention_mask: Tensor | None = None,
        last_only: bool = False,
    ) -> Tensor:
        """Logits `(batch, n, vocab_size)`.

        Args:
            input_ids: `(batch, n)`.
            cache: continues what it holds, and grows.
            attention_mask: 0 on left padding: `(batch, n)`, or everything seen and `n`.
            last_only: logits of the last token alone, `(batch, 1, vocab_size)`.
        """
        past = 0 if cache is None else cache.length
        if cache is not None:
            attention_mask = cache.mask_of(input_ids.shape[1], attention_mask, input_ids)
        tokens = tokens_of(input_ids, past=past, attention_mask=attention_mask)
        tokens.relative_bias, tokens.low_rank = self.relative_bias, self.low_rank
        x = self.run(self.embedded(input_ids, tokens), tokens, cache)
        if cache is not None:
            cache.length += input_ids.shape[1]
        return self.logits(x[:, -1:] if last_only else x)

    def hidden_states(self, input_ids: Tensor) -> Tensor:
        """What the output head reads, `(batch, n, d_model)`: normalised."""
        tokens = tokens_of(input_ids, past=0, attention_mask=None)
        tokens.relative_bias, tokens.low_rank = self.relative_bias, self.low_rank
        return _maybe(self.final_norm, self.run(self.embed(input_ids, tokens), tokens, None))

    def forward_ragged(
        self, input_ids: Tensor, tokens: Tokens, cache: Cache, *, rows: Tensor | None = None
    ) -> Tensor:
        """Logits `(1, n rows, vocab_size)` of sequences side by side; their `length` is not moved.

        Args:
            input_ids: `(1, n)`, the new tokens of all sequences in the order of `tokens.parts`.
            tokens: see `worthit.nn.ragged.ragged_tokens`.
            cache: see `worthit.nn.ragged.side_by_side`.
            rows: of which tokens logits are wanted, in their order; None for all.
        """
        for described in (tokens, *(tokens.parts or ())):
            described.relative_bias, described.low_rank = self.relative_bias, self.low_rank
        x = self.run(self.embedded(input_ids, tokens), tokens, cache)
        if rows is not None and not len(rows):
            return x.new_empty(1, 0, self.spec.vocab_size)
        return self.logits(x if rows is None else x[:, rows])

    def logits_at(self, input_ids: Tensor, rows: Tensor, tokens: Tokens | None = None) -> Tensor:
        """Logits `(n rows, vocab_size)` of some tokens of `input_ids` `(batch, n)` alone.

        Args:
            rows: which, in the order of `input_ids.flatten()`; the same one may be asked twice.
            tokens: where they stand and what they see, where they are no plain sequences.

        Where the last layer ends in a feed-forward that acts token by token, that, the final norm
        and the head run for these tokens only: few targets make a cheap loss.
        """
        if type(self).run is not Decoder.run or not self.layers:
            assert tokens is None, "plain sequences alone where the pass has an order of its own"
            return self(input_ids).flatten(0, 1).index_select(0, rows)
        if tokens is None:
            tokens = tokens_of(input_ids, past=0, attention_mask=None)
        tokens.relative_bias, tokens.low_rank = self.relative_bias, self.low_rank
        x = self.embed(input_ids, tokens)
        *before, last = self.layers
        for block in before:
            x = block(x, tokens)
        if type(last) is Block and type(last.ffn) is FeedForward and not last.is_parallel:
            x = last.first_half(x, tokens).flatten(0, 1).index_select(0, rows)
            return self.logits(last.second_half(x, tokens))
        return self.logits(last(x, tokens).flatten(0, 1).index_select(0, rows))

    def run(self, x: Tensor, tokens: Tokens, cache: Cache | None) -> Tensor:
        """All layers, one after another; in one call where they are compiled."""
        wanted = x.dtype
        if self.native is not None:
            if self.native.layers is not self.layers:  # a view with some of them alone
                self.native = type(self.native)(self)
            y: Tensor | None = self.native.run(x, tokens, cache)
            if y is not None:
                return y
            x = x.to(self.dtype)
        for i, block in enumerate(self.layers):
            x = passed(block, x, tokens, None if cache is None else cache.layers[i])
        return x.to(wanted)

    def generate(self, prompt: Any, **options: Any) -> Any:
        """What the model says to a prompt: `worthit.decode.generate`, with its own tokenizer.

        Args:
            prompt: a text, its ids `(n,)`, or several of either.
            options: `max_tokens`, `sampling`, `stop`, `seed` and the rest.

        Returns:
            A `Generation`; a list of them where there were several prompts.
        """
        from worthit.decode.generate import generate_with

        return generate_with(self, prompt, **options)

    def embed(self, input_ids: Tensor, tokens: Tokens) -> Tensor:
        """Token embeddings with what is added to them, `(batch, n, d_model)`."""
        spec = self.spec
        x: Tensor = self.embedding(input_ids)
        if self.embedding_in is not None:
            x = self.embedding_in(x)
        if spec.embedding_scale != 1.0:
            # Rounded to the working precision first, as the checkpoints that use it were trained.
            x = x * torch.tensor(spec.embedding_scale, dtype=x.dtype, device=x.device)
        if self.positions is not None:
            x = x + self.positions(tokens.positions).to(x.dtype)
        if spec.position.kind == "sinusoidal":
            x = x + sinusoidal.table(tokens.positions, spec.d_model).to(x.dtype)
        return _maybe(self.embedding_norm, x)

    def embedded(self, input_ids: Tensor, tokens: Tokens) -> Tensor:
        """Embeddings; in fp32 where layers are compiled, and then logits are so too."""
        x = self.embed(input_ids, tokens)
        return x if self.native is None else x.float()

    def logits(self, x: Tensor) -> Tensor:
        """Final norm, output head, scale and soft cap."""
        x = _maybe(self.final_norm, x)
        if self.embedding_out is not None:
            x = self.embedding_out(x)
        head = self.tied_head if self.head is None else self.head
        if head is not None:
            y = head(x)
        elif isinstance(self.embedding, StoredEmbedding):
            y = self.embedding.as_head(x)
        else:
            y = functional.linear(x, self.embedding.weight)
        if self.spec.logit_scale != 1.0:
            y = y * self.spec.logit_scale
        if self.spec.logit_softcap is not None:
            cap = self.spec.logit_softcap
            y = cap * torch.tanh(y / cap)
        return y
