"""Who holds which blocks and states: room for sequences, shared beginnings, and what is given back.

A model's growing caches form groups by how far back they look: all layers of a group have the same
block table a sequence. Recurrent states belong to the sequence and are not divided; a copy of them
(a snapshot) at the end of a block lets others begin there.

A prefix is found as far as every kind of layer has it: layers that see everything need all of its
blocks, a window the last ones, states a snapshot at its very end.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from collections.abc import Sequence as Ids
from dataclasses import dataclass, field

from worthit.decode.cache.pool import BlockPool, OutOfBlocks
from worthit.decode.cache.prefix import Chain
from worthit.decode.cache.table import BlockTable, blocks_for
from worthit.decode.engine.sequence import Sequence
from worthit.nn.cache import Cache


@dataclass(frozen=True)
class Group:
    """Layers with one block table: those that see all tokens, or the last `window`.

    Layers that keep at most `kept` tokens, whichever, hold as many blocks as these take.
    """

    window: int | None
    n_blocks: int
    kept: int | None = None


@dataclass
class Holding:
    """What one sequence holds: a table a group, and caches of its own for everything else."""

    tables: list[BlockTable]
    own: Cache
    chain: Chain
    # Blocks whose contents have been given their names.
    n_named: int = 0
    # What was there before tokens that may be taken back.
    before_draft: Cache | None = None


@dataclass
class Snapshot:
    """The states of a sequence at the end of a prefix."""

    own: Cache
    tokens: tuple[int, ...]
    nbytes: int


@dataclass
class Hits:
    """How much was looked up and found, in tokens."""

    n_asked: int = 0
    n_found: int = 0


@dataclass
class Memory:
    """The blocks of all groups, and the snapshots.

    Attributes:
        make_own: new caches of everything that is not in blocks.
        has_states: whether there are states, which cannot lose a token: a sequence begins at a
            prefix with a snapshot, and goes back to one.
        can_share: whether prefixes are looked for at all.
        root: the name of an empty prefix, by the salt of a request.
        flushes: `(recent, group)` where behind `recent` tokens whole groups change their format.
    """

    groups: list[Group]
    block_tokens: int
    make_own: Callable[[], Cache]
    root: Callable[[str], bytes]
    has_states: bool = False
    can_share: bool = True
    snapshot_bytes: int = 0
    step_tokens: int = 256
    flushes: tuple[int, int] | None = None
    hits: Hits = field(default_factory=Hits)

    def __post_init__(self) -> None:
        self.pools = [BlockPool(group.n_blocks) for group in self.groups]
        self._snapshots: OrderedDict[bytes, Snapshot] = OrderedDict()
        self._bytes_of_snapshots = 0

    @property
    def n_blocks(self) -> int:
        """Blocks of all groups."""
        return sum(pool.n_blocks for pool in self.pools)

    @property
    def n_held(self) -> int:
        """Blocks that sequences hold."""
        return sum(pool.n_held for pool in self.pools)

    def n_tokens(self) -> int | None:
        """The longest sequence that fits if it is alone; None for any."""
        n_tokens = [
            g.n_blocks * self.block_tokens
            for g in self.groups
            if g.window is None and g.kept is None
        ]
        return min(n_tokens, default=None)

    # Room for the scheduler.

    def start(self, sequence: Sequence) -> bool:
        """Give a sequence tables, with the blocks of as much of its tokens as are known."""
        chain = Chain(self.root(sequence.request.salt), self.block_tokens)
        n_known = 0
        shared: list[list[int]] = [[] for _ in self.groups]
        if self.can_share and sequence.request.prompt_logprobs is None:
            n_known, shared = self._longest(sequence, chain)
        tables = [BlockTable(pool, self.block_tokens) for pool in self.pools]
        for table, group, blocks in zip(tables, self.groups, shared, strict=True):
            table.share(blocks, self._n_unseen(group, n_known))
        for table, group in zip(tables, self.groups, strict=True):
            # The whole of it must find room, though it is taken step by step.
            wanted = min(sequence.n_total, n_known + self._n_at_once(group))
            if table.n_missing(wanted, write_from=n_known) > table.pool.n_free:
                for each in tables:
                    each.free()
                return False
        own = self.make_own()
        if n_known and self.has_states:
            own = self._snapshot(chain.names[n_known // self.block_tokens - 1]).own.fork()
        own.length = n_known
        sequence.holding = Holding(tables, own, chain, n_known // self.block_tokens)
        sequence.n_computed = n_known
        if sequence.n_preemptions == 0:
            sequence.n_cached = n_known
            self.hits.n_asked += sequence.n_prompt
            self.hits.n_found += n_known
        return True

    def reserve(self, sequence: Sequence, n: int) -> bool:
        """Have blocks for `n` more tokens in every group, or take none."""
        holding = _holding(sequence)
        done, end = sequence.n_computed, sequence.n_computed + n
        limits = [
            (end, done) if g.kept is None else (min(done, g.kept) + n, min(done, g.kept))
            for g in self.groups
        ]
        for table, (last, first) in zip(holding.tables, limits, strict=True):
            if table.n_missing(last, write_from=first) > table.pool.n_free:
                return False
        for table, (last, first) in zip(holding.tables, limits, strict=True):
            table.reserve(last, write_from=first)
        return True

    def free(self, sequence: Sequence) -> None:
        """Take all blocks and states; named blocks keep their contents until they are needed."""
        if sequence.holding is not None:
            for table in sequence.holding.tables:
                table.free()
            sequence.holding = None

    def cut(self, sequence: Sequence, n: int) -> int:
        """Of the next `n` tokens, as many as end with a block, where a snapshot may be taken."""
        if not (self.has_states and self.can_share) or n == 1:
            return n
        done = sequence.n_computed
        # The last place where a request with the same prompt could still begin.
        goal = min(done + n, (sequence.n_prompt - 1) // self.block_tokens * self.block_tokens)
        end = goal // self.block_tokens * self.block_tokens
        return end - done if end > done else n

    # After a step.

    def settle(self, sequence: Sequence) -> None:
        """Name the blocks that are full now, and give back what no window sees any more."""
        holding = _holding(sequence)
        done = sequence.n_computed
        for cache in holding.own:
            if cache.holds:
                cache.holds = False
                cache.settle()
        if self.can_share:
            self._name(sequence, holding, done)
        for table, group in zip(holding.tables, self.groups, strict=True):
            table.release_before(self._n_unseen(group, done) * self.block_tokens)
            if group.kept is not None:
                table.truncate(min(done, group.kept))

    def fork(self, sequence: Sequence, copy: Sequence) -> None:
        """Let `copy` hold what `sequence` holds; whoever writes first copies the last block."""
        holding = _holding(sequence)
        copy.holding = Holding(
            [table.fork() for table in holding.tables],
            holding.own.fork(),
            Chain(holding.chain.root, self.block_tokens),
            holding.n_named,
        )
        copy.holding.chain.names = list(holding.chain.names)
        copy.n_computed = sequence.n_computed

    def n_alike(self, sequence: Sequence) -> int:
        """How many of the next tokens see the earlier ones as each would by itself.

        The one that completes a group leaves it changed to those behind it, and one that is too
        many for a bounded cache drops another: a draft ends there, or its tokens would read what
        they do not read one by one. A bounded cache that is full takes no draft at all.
        """
        done, n = sequence.n_computed, 2**62
        for group in self.groups:
            if group.kept is not None:
                n = min(n, max(1, group.kept - done))
        if self.flushes is None:
            return n
        recent, size = self.flushes
        n_groups = max(0, done - recent) // size
        return min(n, (n_groups + 1) * size + recent - done)

    def take_back(self, sequence: Sequence, n_tokens: int) -> None:
        """Forget what was computed behind the first `n_tokens`, and more where it takes more.

        States cannot lose a token: they go back to what they were before the draft, and the right
        ones of it are computed again with the next step.
        """
        holding = _holding(sequence)
        if self.has_states:
            assert holding.before_draft is not None
            holding.own, holding.before_draft = holding.before_draft, None
            n_tokens = holding.own.length
        else:
            holding.own.take_back(holding.own.length - n_tokens)
        for table in holding.tables:
            table.truncate(n_tokens)
        sequence.n_computed = n_tokens

    def forget_prefixes(self) -> None:
        """Make everything that nobody holds unknown."""
        for pool in self.pools:
            pool.forget_all()
        self._snapshots.clear()
        self._bytes_of_snapshots = 0

    def _name(self, sequence: Sequence, holding: Holding, done: int) -> None:
        size = self.block_tokens
        names = holding.chain.extend(sequence.ids)
        for i in range(holding.n_named, min(done // size, len(names))):
            tokens = tuple(sequence.ids[i * size : (i + 1) * size])
            for table in holding.tables:
                table.pool.name(table.blocks[i], names[i], tokens)
            holding.n_named = i + 1
        if self.has_states and done % size == 0 and 0 < done // size <= len(names):
            tokens = tuple(sequence.ids[done - size : done])
            self._keep(names[done // size - 1], Snapshot(holding.own.fork(), tokens, 0))

    def _longest(self, sequence: Sequence, chain: Chain) -> tuple[int, list[list[int]]]:
        """Tokens of the longest known prefix, and its blocks in each group."""
        size, ids = self.block_tokens, sequence.ids
        # One token at least must be computed: somebody has to say what comes next.
        n_blocks = (len(ids) - 1) // size
        names = chain.extend(ids)[:n_blocks]
        found: list[list[int | None]] = []
        for pool, group in zip(self.pools, self.groups, strict=True):
            blocks: list[int | None] = []
            for i, name in enumerate(names):
                block = pool.find(name, tuple(ids[i * size : (i + 1) * size]))
                if block is None and group.window is None:
                    break
                blocks.append(block)
            found.append(blocks)
        n = min((len(blocks) for blocks in found), default=n_blocks)
        while n and not self._has(n, found, names, ids):
            n -= 1
        return n * size, [[-1 if b is None else b for b in blocks[:n]] for blocks in found]

    def _has(self, n: int, found: list[list[int | None]], names: Ids[bytes], ids: Ids[int]) -> bool:
        size = self.block_tokens
        if self.has_states:
            snapshot = self._snapshots.get(names[n - 1])
            if snapshot is None or snapshot.tokens != tuple(ids[(n - 1) * size : n * size]):
                return False
        return all(
            None not in blocks[self._n_unseen(group, n * size) : n]
            for blocks, group in zip(found, self.groups, strict=True)
        )

    def _n_unseen(self, group: Group, n_tokens: int) -> int:
        """Blocks of the first `n_tokens` that the next query does not see."""
        if group.window is None:
            return 0
        return max(0, n_tokens - group.window + 1) // self.block_tokens

    def _n_at_once(self, group: Group) -> int:
        """Tokens of a sequence that one step and the window behind it hold."""
        behind = group.kept if group.window is None else group.window
        return 2**62 if behind is None else behind + self.step_tokens

    def _snapshot(self, name: bytes) -> Snapshot:
        self._snapshots.move_to_end(name)
        return self._snapshots[name]

    def _keep(self, name: bytes, snapshot: Snapshot) -> None:
        if name in self._snapshots:
            self._snapshots.move_to_end(name)
            return
        snapshot.nbytes = snapshot.own.nbytes
        self._snapshots[name] = snapshot
        self._bytes_of_snapshots += snapshot.nbytes
        while self._bytes_of_snapshots > self.snapshot_bytes:
            _, oldest = self._snapshots.popitem(last=False)
            self._bytes_of_snapshots -= oldest.nbytes


def _holding(sequence: Sequence) -> Holding:
    assert sequence.holding is not None, f"{sequence.id} holds nothing"
    return sequence.holding


__all__ = ["Group", "Holding", "Memory", "OutOfBlocks", "blocks_for"]
