"""c(M) of the engine's own passes: blocks, formats and exactness included."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from worthit.decode.engine.chooser import Chance
from worthit.decode.engine.memory import Hits
from worthit.decode.engine.request import Request
from worthit.decode.engine.scheduler import Part
from worthit.decode.engine.sequence import Sequence
from worthit.decode.sampling import Sampling
from worthit.decode.speculative.control import Costs
from worthit.decode.speculative.costs import N_PAST, ROWS, kept, measure
from worthit.decode.speculative.drafter import NOTHING
from worthit.decode.speculative.tree import Tree

if TYPE_CHECKING:
    from worthit.decode.engine.config import EngineConfig


def costs_of(runner: Any, config: EngineConfig) -> Costs:
    """Seconds of a step that verifies M tokens of one sequence; kept between starts.

    Args:
        runner: a `ModelRunner` whose memory nobody uses yet.
    """
    how = f"engine {config.cache} exact={config.is_exact} block={config.block_tokens}"
    return kept(runner.model, how, lambda: _measured(runner, config))


def _measured(runner: Any, config: EngineConfig) -> Costs:
    memory, vocab = runner.memory, runner.vocab_size
    room = min(memory.n_tokens() or 2**62, runner.context_len, config.max_batch_tokens + N_PAST)
    n_past = max(1, min(N_PAST, room - ROWS[-1]))
    bound = min((g.kept for g in memory.groups if g.kept is not None), default=n_past + 1)
    n_past = min(n_past, bound - 1)
    rows = tuple(n for n in ROWS if n_past + n <= room)
    ids = [i % vocab for i in range(n_past + 1)]
    sequence = Sequence(
        request=Request(prompt=ids, salt="verify-costs"),
        id="verify-costs",
        index=0,
        ids=ids[:n_past],
        n_prompt=n_past,
        max_tokens=1,
        stop_ids=frozenset(),
        arrived_at=0.0,
        order=(0.0, 0, 0),
        chance=Chance(0, 0, Sampling(), ids, vocab),
    )
    if not memory.start(sequence):
        return Costs((1,), (1.0,))  # no room even for this: then none for drafts either
    try:
        while sequence.n_computed < n_past:
            n = min(n_past - sequence.n_computed, config.max_batch_tokens)
            if not memory.reserve(sequence, n):
                return Costs((1,), (1.0,))
            runner.run([Part(sequence, n)])
            sequence.n_computed += n
        memory.settle(sequence)
        sequence.ids = ids

        def run(n: int) -> None:
            sequence.draft = Tree.chain([i % vocab for i in range(n - 1)]) if n > 1 else NOTHING
            if not memory.reserve(sequence, n):
                return
            if n == 1:
                # As a draft of none: what is computed is taken back.
                runner.hold(sequence.holding)
            runner.run([Part(sequence, n)])
            memory.take_back(sequence, n_past)

        return measure(run, rows)
    finally:
        sequence.draft = NOTHING
        memory.free(sequence)
        memory.forget_prefixes()
        memory.hits = Hits()
