"""What a cache can lose: rows of attention any of the last ones, states nothing."""

from __future__ import annotations

from worthit.nn.cache import Cache, KVCache, LatentCache
from worthit.nn.decoder import Block, Decoder
from worthit.nn.position.rope import changes_with_length


def can_take_back(cache: Cache) -> bool:
    """Whether the last tokens can be forgotten; else a copy from before them has to be kept."""
    return all(type(one) in (KVCache, LatentCache) for one in cache)


def spare_windows(cache: Cache, n: int) -> None:
    """Let windows keep `n` tokens more than they show, so that as many can be taken back."""
    for one in cache:
        if isinstance(one, KVCache) and one.window is not None:
            one.spare = max(one.spare, n)


def why_not(model: Decoder, n_tokens: int) -> str | None:
    """Why tokens of `model` cannot be verified several at once; None where they can.

    Args:
        n_tokens: of the whole sequence, what is to come included.
    """
    position = model.spec.position
    if changes_with_length(position):
        assert position.scaling is not None
        known = position.scaling.original_context_len
        if n_tokens > known:
            return (
                f"this model turns its keys otherwise beyond {known} tokens "
                f"({position.scaling.kind}): cached keys would keep the old rotation"
            )
    for i, block in enumerate(model.layers):
        if type(block) is Block and getattr(block.ffn, "looks_around", False):
            return (
                f"the experts of layer {i} choose among all tokens of a pass, drafted ones "
                "included: what is verified together is not what is said alone"
            )
    return None
