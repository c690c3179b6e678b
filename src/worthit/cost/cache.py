"""What a model remembers of a sequence, in elements: growing caches, windows and fixed states.

Elements times the width of the format are the bytes; pages and scales are added by the memory
model. A growing cache stores `per_token` elements for each of the last `window` tokens (all of
them when None); a state stores `fixed` elements whatever the length.
"""

from __future__ import annotations

from functools import singledispatch

from worthit._record import value
from worthit.spec.model import (
    S4,
    Attention,
    LatentAttention,
    Layer,
    LinearAttention,
    Mamba,
    Mamba2,
    Rwkv,
)


@value
class CacheElements:
    """Elements that one layer keeps of one sequence.

    `fixed` is recurrent state (kept in the state format), `conv` the convolution's last inputs
    (kept in the activation format), `per_token` keys and values or latents (cache format).
    """

    per_token: int = 0
    window: int | None = None
    fixed: int = 0
    conv: int = 0


def layer_cache(layer: Layer, d_model: int) -> tuple[CacheElements, ...]:
    """One entry for each mixer of `layer`; loops that keep their own cache repeat it."""
    n_copies = 1 if layer.shares_loop_cache else layer.n_loops
    return tuple(cache_elements(mixer, d_model) for mixer in layer.mixers) * n_copies


@singledispatch
def cache_elements(mixer: object, d_model: int) -> CacheElements:
    """Elements that one mixer keeps of one sequence."""
    raise TypeError(f"no cache count for {type(mixer).__name__}")


@cache_elements.register(Attention)
def _(mixer: Attention, d_model: int) -> CacheElements:
    if mixer.low_rank is not None:
        return CacheElements(fixed=2 * mixer.n_kv_heads * mixer.head_dim * mixer.low_rank)
    if mixer.n_features is not None:
        # Sums of features by values for each query head, and of the features alone.
        return CacheElements(fixed=mixer.n_heads * mixer.n_features * (mixer.head_dim + 1))
    return CacheElements(per_token=2 * mixer.n_kv_heads * mixer.head_dim, window=mixer.reach)


@cache_elements.register(LatentAttention)
def _(mixer: LatentAttention, d_model: int) -> CacheElements:
    # One latent for keys and values together, and one rotary key shared by all heads.
    return CacheElements(per_token=mixer.kv_lora_rank + mixer.qk_rope_head_dim)


@cache_elements.register(LinearAttention)
def _(mixer: LinearAttention, d_model: int) -> CacheElements:
    state = mixer.n_value_heads * mixer.key_dim * mixer.value_dim
    if mixer.kind == "linear":
        # The sum of keys that normalises (Katharopoulos et al. 2020, equation 17).
        state += mixer.n_key_heads * mixer.key_dim
    width = 2 * mixer.n_key_heads * mixer.key_dim + mixer.n_value_heads * mixer.value_dim
    return CacheElements(fixed=state, conv=width * mixer.d_conv)


@cache_elements.register(Mamba)
def _(mixer: Mamba, d_model: int) -> CacheElements:
    return CacheElements(fixed=mixer.d_inner * mixer.d_state, conv=mixer.d_inner * mixer.d_conv)


@cache_elements.register(Mamba2)
def _(mixer: Mamba2, d_model: int) -> CacheElements:
    width = mixer.d_inner + 2 * mixer.n_groups * mixer.d_state
    return CacheElements(fixed=mixer.d_inner * mixer.d_state, conv=width * mixer.d_conv)


@cache_elements.register(Rwkv)
def _(mixer: Rwkv, d_model: int) -> CacheElements:
    # Numerator, denominator and running maximum, or a matrix a head; the previous token's input of
    # both halves of the layer (time mixing and channel mixing) is its one-token convolution.
    each = 3 if mixer.version == 4 else mixer.head_dim
    return CacheElements(fixed=each * mixer.d_attention, conv=2 * d_model)


@cache_elements.register(S4)
def _(mixer: S4, d_model: int) -> CacheElements:
    # Complex states in conjugate pairs: d_state reals per channel.
    return CacheElements(fixed=d_model * mixer.d_state)
