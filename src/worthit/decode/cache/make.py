"""A model's caches, stored in few bits or bounded: drop-ins for `Decoder.new_cache`."""

from __future__ import annotations

from dataclasses import dataclass

from worthit.decode.cache.evicting import EvictingKV
from worthit.decode.cache.policies import Policy, policy_of
from worthit.decode.cache.quantized import CacheFormat, QuantizedKV, cache_format
from worthit.errors import InputError
from worthit.nn.attention.gqa import GroupedQueryAttention
from worthit.nn.cache import Cache, KVCache, LatentCache
from worthit.nn.decoder import Block, Decoder


@dataclass(frozen=True, kw_only=True)
class CacheConfig:
    """How keys and values of whole sequences are kept.

    Attributes:
        format: a name of `quantized.FORMATS`, or a format; None stores them as they are.
        policy: a name of `policies.POLICIES`, or a policy; None drops nothing.
        budget: the tokens that a policy keeps.
    """

    format: str | CacheFormat | None = None
    policy: str | Policy | None = None
    budget: int | None = None

    def __post_init__(self) -> None:
        if (self.policy is None) != (self.budget is None):
            raise InputError(
                "policy and budget go together: the rule, and how many tokens it keeps; got "
                f"policy={self.policy!r} and budget={self.budget}"
            )

    @property
    def is_plain(self) -> bool:
        """Whether everything is kept as it is."""
        return self.format is None and self.policy is None

    def make(self) -> KVCache:
        """An empty cache of one layer."""
        store = KVCache()
        if self.format is not None:
            known = cache_format(self.format) if isinstance(self.format, str) else self.format
            store = QuantizedKV(known)
        if self.policy is None:
            return store
        assert self.budget is not None
        rule = policy_of(self.policy) if isinstance(self.policy, str) else self.policy
        return EvictingKV(rule, self.budget, store)


def new_cache(model: Decoder, config: CacheConfig) -> Cache:
    """An empty cache of `model` in which growing keys and values are kept as `config` says.

    Windows, states and the like stay what they are.

    Raises:
        InputError: nothing there to act on, or layers that cannot be kept so.
    """
    cache = model.new_cache()
    if config.is_plain:
        return cache
    n_changed = 0
    for block, caches in zip(model.layers, cache.layers, strict=True):
        for j, own in enumerate(caches):
            if type(own) is LatentCache:
                raise InputError(
                    "cache: latent attention keeps one small vector a token, which neither these "
                    "formats nor these policies are made for; leave its cache as it is"
                )
            if type(own) is KVCache and own.window is None:
                mixer = block.mixers[j] if type(block) is Block else None
                _check(mixer, config)
                caches[j] = config.make()
                n_changed += 1
    if not n_changed:
        raise InputError(
            "cache: no layer of this model keeps keys and values of all tokens; there is nothing "
            "to quantize or drop"
        )
    return cache


def _check(mixer: object, config: CacheConfig) -> None:
    """Raise where a layer reads its keys in a way that these caches do not bear."""
    if not isinstance(mixer, GroupedQueryAttention):
        raise InputError(
            "cache: layers that are applied several times, or by some tokens alone, keep caches of "
            "their own kind; leave them as they are"
        )
    if config.format is not None:
        form = cache_format(config.format) if isinstance(config.format, str) else config.format
        form.check(mixer.spec.head_dim)
    if config.policy is not None and not mixer.is_plain:
        raise InputError(
            "cache: eviction needs plain softmax attention with positions in the keys; a bias by "
            "distance, chosen keys, sinks or a soft cap would read what was dropped"
        )


__all__ = ["CacheConfig", "new_cache"]
