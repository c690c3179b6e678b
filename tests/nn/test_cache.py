"""Caches: what they keep, in what order, and to the byte."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from worthit.errors import InputError
from worthit.nn.cache import (
    GROWTH_TOKENS,
    Cache,
    GrowingTensor,
    KVCache,
    LatentCache,
    StateCache,
)


def numbered(start: int, n: int, *, heads: int = 2, width: int = 3) -> Tensor:
    """`(2, heads, n, width)`, token t filled with t."""
    return torch.arange(start, start + n).float()[:, None].expand(2, heads, n, width)


def places(x: Tensor) -> list[int]:
    assert (x == x[..., :1, :, :1]).all()
    return [int(t) for t in x[0, 0, :, 0]]


@pytest.mark.parametrize("lengths", [[1], [1] * 200, [100, 1, 300, 1, 1], [GROWTH_TOKENS + 1, 1]])
def test_a_growing_tensor_is_what_was_appended(lengths: list[int]) -> None:
    growing, end = GrowingTensor(), 0
    assert growing.nbytes == 0
    for n in lengths:
        got = growing.append(numbered(end, n))
        end += n
        assert places(got) == list(range(end))
        assert growing.length == end
        assert growing.nbytes == 2 * 2 * end * 3 * 4


def test_growth_moves_seldom() -> None:
    growing, rooms = GrowingTensor(), set()
    for t in range(2000):
        growing.append(numbered(t, 1))
        rooms.add(growing._room.data_ptr())
    # By half each time: some ten moves for 2,000 tokens, not 2,000.
    assert len(rooms) <= 12


def test_keep_last_forgets_the_first() -> None:
    growing = GrowingTensor()
    growing.append(numbered(0, 10))
    growing.keep_last(4)
    assert places(growing.value) == [6, 7, 8, 9]
    assert places(growing.append(numbered(10, 2))) == [6, 7, 8, 9, 10, 11]
    growing.keep_last(100)
    assert growing.length == 6


@pytest.mark.parametrize("lengths", [[1] * 12, [9, 1, 1], [3, 5, 1, 4]])
def test_a_window_returns_all_that_the_pass_sees_and_keeps_the_last(lengths: list[int]) -> None:
    window, cache, end = 4, KVCache(4), 0
    for n in lengths:
        before = min(end, window)
        k, v = cache.append(numbered(end, n), -numbered(end, n))
        end += n
        assert places(k) == list(range(end - n - before, end))
        assert places(-v) == places(k)
        kept = min(end, window)
        assert places(cache.keys.value) == list(range(end - kept, end))
        assert cache.nbytes == 2 * (2 * 2 * kept * 3 * 4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bytes_are_elements_times_their_size(dtype: torch.dtype) -> None:
    kv = KVCache()
    kv.append(torch.zeros(3, 2, 7, 5, dtype=dtype), torch.zeros(3, 2, 7, 6, dtype=dtype))
    assert kv.nbytes == 3 * 2 * 7 * (5 + 6) * dtype.itemsize
    latent = LatentCache()
    latent.append(torch.zeros(3, 7, 16, dtype=dtype), torch.zeros(3, 7, 4, dtype=dtype))
    assert latent.nbytes == 3 * 7 * 20 * dtype.itemsize
    state = StateCache()
    assert state.nbytes == 0
    state["state"] = torch.zeros(3, 4, 5)
    state["conv"] = torch.zeros(3, 4, 8, dtype=dtype)
    assert state.nbytes == 3 * 4 * (5 * 4 + 8 * dtype.itemsize)
    state["state"] = torch.zeros(3, 4, 5)
    assert state.nbytes == 3 * 4 * (5 * 4 + 8 * dtype.itemsize)
    assert Cache([[kv, latent], [state]]).nbytes == kv.nbytes + latent.nbytes + state.nbytes


def test_rows_can_be_chosen_repeated_and_dropped() -> None:
    rows = torch.tensor([2, 0, 0])
    own = torch.arange(3.0)[:, None, None, None].expand(3, 1, 4, 2)
    kv, latent, state = KVCache(), LatentCache(), StateCache()
    kv.append(own, own)
    latent.append(own[:, 0], own[:, 0])
    state["s"] = own
    cache = Cache([[kv], [latent, state]])
    cache.is_real = torch.tensor([[True] * 4, [False] * 4, [False, True, True, True]])
    cache.select_rows(rows)
    for kept in (kv.keys.value, kv.values.value, latent.latents.value, state.get("s")):
        assert kept.flatten(1)[:, 0].tolist() == [2, 0, 0]
    assert cache.is_real.tolist() == [[False, True, True, True], [True] * 4, [True] * 4]
    k, _ = kv.append(own, own)
    assert k.shape == (3, 1, 8, 2)
    KVCache().select_rows(rows)


def test_the_mask_covers_what_was_seen_whatever_is_given() -> None:
    cache = Cache([])
    ids = torch.zeros(2, 3, dtype=torch.long)
    assert cache.mask_of(3, None, ids) is None
    cache.length = 3
    new = torch.tensor([[0, 1], [1, 1]])
    # Only the new tokens' mask: everything before was real.
    assert cache.mask_of(2, new, ids).long().tolist() == [[1, 1, 1, 0, 1], [1] * 5]
    cache.length = 5
    # Nothing given: what was padding stays padding.
    assert cache.mask_of(1, None, ids).long().tolist() == [[1, 1, 1, 0, 1, 1], [1] * 6]
    cache.length = 6
    whole = torch.ones(2, 7)
    assert cache.mask_of(1, whole, ids).all()


def test_tokens_can_be_taken_back() -> None:
    kv, latent = KVCache(), LatentCache()
    kv.append(numbered(0, 5), numbered(0, 5))
    latent.append(numbered(0, 5)[:, 0], numbered(0, 5)[:, 0])
    cache = Cache([[kv], [latent]])
    cache.length, cache.is_real = 5, torch.ones(2, 5, dtype=torch.bool)
    cache.take_back(2)
    assert cache.length == 3
    assert cache.is_real.shape == (2, 3)
    assert places(kv.append(numbered(3, 1), numbered(3, 1))[0]) == [0, 1, 2, 3]
    assert latent.latents.length == 3
    cache = Cache([[kv, StateCache()]])
    with pytest.raises(InputError, match="fork the cache before them"):
        cache.take_back(1)


@pytest.mark.parametrize("spare", [0, 3])
def test_a_window_takes_back_what_it_spares(spare: int) -> None:
    whole, cache = KVCache(4), KVCache(4, spare=spare)
    end = 0
    for n, taken in [(3, 1), (4, 2), (1, 1), (5, 3), (2, 2), (1, 0), (1, 1), (6, 0)]:
        if taken > spare and cache.keys.length + n > 4:
            cache.append(numbered(end, n), numbered(end, n))
            with pytest.raises(InputError, match="what they pushed out is gone"):
                cache.take_back(taken)
            return
        k, v = cache.append(numbered(end, n), numbered(end, n))
        cache.take_back(taken)
        # What the queries of the pass saw: the window, and themselves.
        fresh = whole.fork()
        assert places(k) == places(fresh.append(numbered(end, n), numbered(end, n))[0])
        assert places(v) == places(k)
        if n > taken:
            whole.append(numbered(end, n - taken), numbered(end, n - taken))
        end += n - taken
    assert spare == 3


def test_rows_are_kept_and_replaced_head_by_head() -> None:
    growing = GrowingTensor()
    growing.append(numbered(0, 6))
    growing.keep(torch.tensor([[[5, 0, 2], [1, 2, 3]]]).expand(2, 2, 3))
    assert growing.value[0, :, :, 0].tolist() == [[5, 0, 2], [1, 2, 3]]
    growing.replace_by_last(torch.tensor([[0, 2]]).expand(2, 2))
    assert growing.value[1, :, :, 0].tolist() == [[2, 0], [1, 2]]
    assert growing.append(numbered(9, 1))[0, :, :, 0].tolist() == [[2, 0, 9], [1, 2, 9]]
