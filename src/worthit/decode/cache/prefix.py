"""Names of prefixes: each full block's is a hash of its tokens and of everything before them.

Zheng et al. 2023, "SGLang", arXiv:2312.07104, section 3, keeps prefixes in a tree; a chain of
hashes finds the same blocks by as many look-ups (vLLM's automatic prefix caching):

    name_0 = H(namespace)        name_i = H(name_{i-1}, tokens of block i)

H is SHA-256: the names decide whose keys and values a request reads, and predictable hashes have
been attacked (CVE-2025-25183). Everything on which cached numbers depend besides the tokens belongs
into the namespace: the model, its precision, the format of the cache, a tenant's salt.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Sequence


def namespace(*facts: str) -> bytes:
    """The name of the empty prefix, where these facts hold."""
    # Lengths go first, or ("ab", "c") would be ("a", "bc").
    joined = "".join(f"{len(fact)}:{fact}" for fact in facts)
    return hashlib.sha256(joined.encode()).digest()


def named(parent: bytes, tokens: Sequence[int]) -> bytes:
    """The name of a block of `tokens` behind the prefix called `parent`."""
    return hashlib.sha256(parent + array("q", tokens).tobytes()).digest()


class Chain:
    """The names of a growing sequence's full blocks."""

    def __init__(self, root: bytes, block_tokens: int) -> None:
        self.root, self.block_tokens = root, block_tokens
        self.names: list[bytes] = []

    def extend(self, ids: Sequence[int]) -> list[bytes]:
        """The names of all full blocks of `ids`, which begins with what was given before."""
        size = self.block_tokens
        for i in range(len(self.names), len(ids) // size):
            parent = self.names[-1] if self.names else self.root
            self.names.append(named(parent, ids[i * size : (i + 1) * size]))
        return self.names
