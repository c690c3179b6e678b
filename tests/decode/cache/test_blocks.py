"""Blocks: counted right in any order of events, found by what they hold, read as if contiguous."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from decode.engine.test_engine import model_of
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from nn.test_ragged import MODELS

from worthit.decode.cache.paged import PagedCodes, PagedPair
from worthit.decode.cache.pages import Pages
from worthit.decode.cache.pool import BlockPool, OutOfBlocks
from worthit.decode.cache.prefix import Chain, named, namespace
from worthit.decode.cache.quantized import FORMATS, QuantizedKV
from worthit.decode.cache.table import BlockTable
from worthit.errors import InputError

SIZE, N = 4, 12


class Tables(RuleBasedStateMachine):
    """Tables beside lists: what is written through one is read through it, and through no other."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = BlockPool(N)
        self.store = [-1] * (N * SIZE)
        self.tables: list[BlockTable] = []
        self.texts: list[list[int]] = []
        self.counter = 0

    def write(self, which: int, n: int) -> None:
        table, text = self.tables[which], self.texts[which]
        if table.n_missing(len(text) + n, write_from=len(text)) > self.pool.n_free:
            return
        table.reserve(len(text) + n, write_from=len(text))
        for source, target in table.copies:
            block = self.store[source * SIZE : (source + 1) * SIZE]
            self.store[target * SIZE : (target + 1) * SIZE] = block
        table.copies.clear()
        new = list(range(self.counter, self.counter + n))
        self.counter += n
        for slot, token in zip(table.slots(len(text), len(text) + n), new, strict=True):
            assert self.pool.holders[slot // SIZE] == 1
            self.store[slot] = token
        text += new

    @precondition(lambda self: len(self.tables) < 5)
    @rule(n=st.integers(1, 9))
    def begin(self, n: int) -> None:
        self.tables.append(BlockTable(self.pool, SIZE))
        self.texts.append([])
        self.write(len(self.tables) - 1, n)

    @precondition(lambda self: self.tables)
    @rule(data=st.data(), n=st.integers(1, 6))
    def grow(self, data: st.DataObject, n: int) -> None:
        self.write(data.draw(st.integers(0, len(self.tables) - 1)), n)

    @precondition(lambda self: 0 < len(self.tables) < 5)
    @rule(data=st.data())
    def fork(self, data: st.DataObject) -> None:
        which = data.draw(st.integers(0, len(self.tables) - 1))
        self.tables.append(self.tables[which].fork())
        self.texts.append(list(self.texts[which]))

    @precondition(lambda self: self.tables)
    @rule(data=st.data(), n=st.integers(0, 7))
    def take_back(self, data: st.DataObject, n: int) -> None:
        which = data.draw(st.integers(0, len(self.tables) - 1))
        keep = max(0, len(self.texts[which]) - n)
        del self.texts[which][keep:]
        self.tables[which].truncate(keep)

    @precondition(lambda self: self.tables)
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        which = data.draw(st.integers(0, len(self.tables) - 1))
        self.tables.pop(which).free()
        self.texts.pop(which)

    @precondition(lambda self: self.tables)
    @rule(data=st.data())
    def name_blocks(self, data: st.DataObject) -> None:
        which = data.draw(st.integers(0, len(self.tables) - 1))
        text, chain = self.texts[which], Chain(b"", SIZE)
        for i, name in enumerate(chain.extend(text)):
            block = self.tables[which].blocks[i]
            self.pool.name(block, name, tuple(text[i * SIZE : (i + 1) * SIZE]))

    @precondition(lambda self: len(self.tables) < 5)
    @rule(data=st.data())
    def begin_known(self, data: st.DataObject) -> None:
        """A sequence whose beginning somebody wrote, maybe long ago."""
        if not self.pool._contents:
            return
        known = data.draw(st.sampled_from(sorted(self.pool._contents)))
        contents = self.pool._contents[known]
        assert self.pool.find(contents.name, contents.tokens) == known
        # What is found is still there.
        assert tuple(self.store[known * SIZE : (known + 1) * SIZE]) == contents.tokens
        if named(b"", contents.tokens) != contents.name:
            return
        table = BlockTable(self.pool, SIZE)
        table.share([known])
        self.tables.append(table)
        self.texts.append(list(contents.tokens))

    @invariant()
    def counts_agree(self) -> None:
        held = Counter(b for table in self.tables for b in table.blocks)
        assert [held[b] for b in range(N)] == self.pool.holders
        assert self.pool.n_free + self.pool.n_held == N
        for table, text in zip(self.tables, self.texts, strict=True):
            assert [self.store[s] for s in table.slots(0, len(text))] == text
            run = table.run(0, len(text)) if text else None
            if run is not None:
                assert self.store[run : run + len(text)] == text

    def teardown(self) -> None:
        while self.tables:
            self.tables.pop().free()
        assert self.pool.n_free == N


Tables.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestTables = Tables.TestCase


def test_the_last_used_is_emptied_last_and_ends_before_beginnings(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("worthit.decode.cache.pool.EMPTIED_AT_ONCE", 1)
    pool = BlockPool(4)
    first, second = BlockTable(pool, 1), BlockTable(pool, 1)
    for table, tokens in ((first, (7, 8)), (second, (9, 10))):
        table.reserve(2, write_from=0)
        for i, name in enumerate(Chain(b"", 1).extend(tokens)):
            pool.name(table.blocks[i], name, tokens[i : i + 1])
    (start, end), (other_start, other_end) = list(first.blocks), list(second.blocks)
    first.free()
    second.free()
    names = Chain(b"", 1).extend((7, 8))
    pool.hold(pool.find(names[0], (7,)))  # used again
    pool.drop(pool.find(names[0], (7,)))
    order = []
    for _ in range(4):
        before = set(pool._named.values())
        pool.take()
        order += before - set(pool._named.values())
    assert order == [end, other_end, other_start, start]
    with pytest.raises(OutOfBlocks, match="all 4 blocks of the cache are held"):
        pool.take()


def test_sequences_grow_into_neighbouring_blocks() -> None:
    pool = BlockPool(64)
    tables = [BlockTable(pool, 1) for _ in range(4)]
    for n in range(1, 13):
        for table in tables:
            table.reserve(n, write_from=n - 1)
    # Each in one run: what attention reads is a view.
    assert [table.run(0, 12) is not None for table in tables] == [True] * 4


def test_names_tell_prefixes_apart_and_tokens_are_verified() -> None:
    ids = [5, 6, 7, 8, 9, 10, 11, 12, 13]
    a, b = Chain(namespace("m", "x"), 4), Chain(namespace("m", "y"), 4)
    assert len(a.extend(ids)) == 2
    assert not set(a.names) & set(b.extend(ids))  # another model, another tenant
    assert namespace("ab", "c") != namespace("a", "bc")
    other = Chain(a.root, 4)
    other.extend([1, *ids[1:]])
    assert not set(a.names) & set(other.names)  # the same second block behind another first
    longer = Chain(a.root, 4)
    assert longer.extend(ids[:8]) == a.names
    pool = BlockPool(2)
    block = pool.take()
    pool.name(block, a.names[0], (5, 6, 7, 8))
    assert pool.find(a.names[0], (5, 6, 7, 8)) == block
    assert pool.find(a.names[0], (5, 6, 7, 9)) is None  # a collision, if there were one


def test_a_block_that_is_written_to_loses_its_name() -> None:
    pool = BlockPool(3)
    table = BlockTable(pool, 2)
    table.reserve(4, write_from=0)
    pool.name(table.blocks[1], b"n", (1, 2))
    table.truncate(3)
    table.reserve(4, write_from=3)
    assert pool.find(b"n", (1, 2)) is None


@pytest.mark.parametrize("name", ["grouped", "latent", "alibi", "chosen keys"])
def test_a_paged_cache_is_a_drop_in(name: str) -> None:
    model = model_of(name)
    pages = Pages(model, n_blocks=30, block_tokens=4)
    # Somebody else takes every second block, so that ours lie apart.
    others = [pages.pool.take() for _ in range(30)]
    for block in others[::2]:
        pages.pool.drop(block)
    plain, paged = model.new_cache(), pages.new_cache()
    torch.manual_seed(0)
    with torch.no_grad():
        for n in (7, 1, 1, 5, 1):
            ids = torch.randint(40, (1, n))
            torch.testing.assert_close(model(ids, cache=paged), model(ids, cache=plain))
        twin_plain, twin = plain.fork(), paged.fork()
        assert pages.pool.n_held == 15 + 4  # nothing was copied yet
        for a, b in ((plain, paged), (twin_plain, twin)):
            ids = torch.randint(40, (1, 3))
            torch.testing.assert_close(model(ids, cache=b), model(ids, cache=a))
        paged.take_back(2)
        plain.take_back(2)
        ids = torch.randint(40, (1, 2))
        torch.testing.assert_close(model(ids, cache=paged), model(ids, cache=plain))
    assert paged.nbytes == 5 * 4 * plain.nbytes // plain.length
    paged.free()
    twin.free()
    assert pages.pool.n_held == 15


def test_what_a_paged_cache_is_not_for_is_said() -> None:
    for name in ("window", "mamba2"):
        with pytest.raises(InputError, match="keeps a window or a state"):
            Pages(model_of(name), n_blocks=4)
    model = model_of("grouped")
    with pytest.raises(InputError, match="one sequence each, got 2 rows"):
        model(torch.zeros(2, 3, dtype=torch.long), cache=Pages(model, n_blocks=4).new_cache())
    assert MODELS["grouped"].layers


@pytest.mark.parametrize("name", ["int8", "int4"])
def test_codes_in_blocks_are_codes_in_a_row(name: str) -> None:
    torch.manual_seed(0)
    k, v = torch.randn(1, 2, 20, 64), torch.randn(1, 2, 20, 64)
    cache = QuantizedKV(FORMATS[name])
    want = cache.append(k, v)
    pair = PagedCodes.in_format(FORMATS[name], k, v, n_slots=50)
    slots = torch.randperm(50)[:20]
    pair.write(slots, k, v)
    for got, w in zip(pair.gather(slots), want, strict=True):
        assert torch.equal(got, w[0])
    pair.copy_blocks(slots[:4], torch.tensor([40, 41, 42, 43]))
    assert torch.equal(pair.run(40, 4)[0], want[0][0, :, :4])
    assert pair.bytes_per_slot * 20 == cache.nbytes
    plain = PagedPair.like(k, v, 50)
    assert plain.bytes_per_slot == 2 * 2 * 64 * 4
