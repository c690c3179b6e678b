"""How an engine is set up."""

from __future__ import annotations

from dataclasses import dataclass, field

from worthit.decode.cache.make import CacheConfig
from worthit.errors import InputError


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """Limits and choices of an engine; every one has a default that suits a small machine.

    Attributes:
        max_batch_tokens: tokens of one step, prompts and answers together. It bounds the gap
            between two tokens of a running answer while others' prompts are computed.
        max_sequences: sequences that run at the same time.
        max_waiting: requests that may wait; one more is refused with `QueueFull`.
        block_tokens: tokens of a block of the cache.
        cache_bytes: memory for blocks; None is room for four whole contexts, or what
            `max_sequences` can use where that is less.
        n_blocks: blocks, in place of `cache_bytes`.
        cache: how keys and values of whole sequences are stored and which are kept. Formats with
            scales of each token's own are in blocks like plain ones; groups of tokens that share
            scales, and policies that drop tokens, are with each sequence, counted in blocks, and
            have no prefixes to share.
        has_prefix_caching: prompts that begin alike share the blocks of their beginning.
        snapshot_bytes: memory for recurrent states at the ends of prefixes.
        patience_s: a request of priority p is treated as if it had come p times this earlier. Later
            ones of higher priority overtake for so long and no longer: nobody starves.
        draft_tokens: tokens of a draft, at most; all branches of a tree together.
        has_draft_control: how many is decided for each request, by what verifying costs here,
            which is measured when the engine starts, and by how its drafts fared.
        is_exact: every number is computed by operations whose results do not depend on what else
            is in the step (see docs/engine.md); slower.
    """

    max_batch_tokens: int = 256
    max_sequences: int = 16
    max_waiting: int = 1024
    block_tokens: int = 16
    cache_bytes: int | None = None
    n_blocks: int | None = None
    cache: CacheConfig = field(default_factory=CacheConfig)
    has_prefix_caching: bool = True
    snapshot_bytes: int = 64 * 2**20
    patience_s: float = 10.0
    draft_tokens: int = 7
    has_draft_control: bool = True
    is_exact: bool = False

    def __post_init__(self) -> None:
        problems = [
            f"{name}: must be at least {least}, got {getattr(self, name)}"
            for name, least in (
                ("max_batch_tokens", 1),
                ("max_sequences", 1),
                ("max_waiting", 0),
                ("block_tokens", 1),
                ("snapshot_bytes", 0),
                ("patience_s", 0),
                ("draft_tokens", 1),
                ("cache_bytes", 1),
                ("n_blocks", 1),
            )
            if getattr(self, name) is not None and not getattr(self, name) >= least
        ]
        if self.cache_bytes is not None and self.n_blocks is not None:
            problems.append("cache_bytes and n_blocks say the same thing; give one")
        if self.max_batch_tokens < self.max_sequences:
            problems.append(
                f"max_batch_tokens: must hold a token of each of {self.max_sequences} sequences, "
                f"got {self.max_batch_tokens}"
            )
        if problems:
            raise InputError(*problems)
