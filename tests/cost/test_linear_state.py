"""The state of linear attention, by hand from its equations."""

from __future__ import annotations

from worthit.cost.cache import cache_elements
from worthit.spec.model import LinearAttention


def test_additive_states_keep_their_normaliser() -> None:
    part = LinearAttention(kind="linear", n_key_heads=2, n_value_heads=4, key_dim=6, value_dim=5)
    # S is 6 x 5 for each of 4 heads, z is 6 for each of the 2 heads that have keys of their own.
    assert cache_elements(part, 32).fixed == 4 * 6 * 5 + 2 * 6


def test_decaying_states_have_none() -> None:
    part = LinearAttention(kind="gated", n_key_heads=2, n_value_heads=4, key_dim=6, value_dim=5)
    assert cache_elements(part, 32).fixed == 4 * 6 * 5
