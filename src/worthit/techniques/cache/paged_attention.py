"""Paged attention: the cache of a sequence lives in small pages, allotted as it grows.

Changes: `runtime.has_paging`, with pages of `runtime.page_tokens`.
Relieves: memory reserved for outputs that may never be that long.
Does nothing when: every output has the same known length, or one sequence runs alone.
Costs: an engine that has it; the attention kernel follows a block table.

Held equal: the sequences in flight and their lengths. Exact: outputs do not change.
"""

from __future__ import annotations

from worthit.spec.case import Case
from worthit.techniques._change import require_growing_cache, require_serving, with_runtime
from worthit.techniques._record import Evidence, Technique
from worthit.techniques.cache._sources import KWON_2023


def apply(case: Case, *, page_tokens: int = 16) -> Case:
    """Return `case` with the cache in pages of `page_tokens` tokens."""
    require_serving(case, "paged-attention")
    require_growing_cache(case, "paged-attention")
    return with_runtime(case, has_paging=True, page_tokens=page_tokens)


def is_present(case: Case) -> bool:
    """Whether the cache is paged already."""
    return case.runtime.has_paging


def remove(case: Case) -> Case:
    """Return `case` with one contiguous reservation a sequence."""
    return with_runtime(case, has_paging=False)


TECHNIQUE = Technique(
    id="paged-attention",
    name="Paged attention",
    relieves=("cache-reservation", "kv-capacity"),
    bottleneck=(
        "A contiguous cache must be reserved for the longest output a request might reach, and "
        "most of the reservation is never filled."
    ),
    apply=apply,
    experiment="worthit.lab.experiments.paged_attention:EXPERIMENT",
    is_present=is_present,
    remove=remove,
    adoption="drop-in",
    cost_of_adoption="A serving engine built on pages (most are); about a page wasted a sequence.",
    nothing_when=(
        "Output lengths are all equal and known, one sequence runs alone with memory to spare, or "
        "the model keeps a fixed state."
    ),
    pitfalls=(
        "Small pages mean longer block tables and scattered reads; large ones waste their last "
        "page: 16 to 64 tokens is usual.",
        "When pages run out a sequence must be preempted: a request that can never fit must be "
        "refused at admission, or the service deadlocks.",
        "Group-wise quantized caches need pages that are a multiple of the group.",
    ),
    module="worthit.decode.cache.paged:PagedRagged",
    parity=(
        "contiguous caches, under forks and tokens taken back; tables beside lists in any order "
        "of events "
        "(tests/decode/cache/test_blocks.py)",
        "greedy tokens of each sequence alone, on every kind of layer "
        "(tests/decode/engine/test_engine.py)",
        "bytes that `cost` predicts (tests/decode/cache/test_bridge.py)",
    ),
    sources=(KWON_2023,),
    evidence=(
        Evidence(
            claim="Earlier engines filled 20.4 to 38.2 % of the cache memory they reserved; paging "
            "wastes under 4 %, and throughput rises 2 to 4 times at equal latency.",
            source=KWON_2023,
        ),
    ),
    orientation={
        "en": "Nobody knows how long an answer will be, so an engine with contiguous caches "
        "reserves room for the longest. Paging borrows virtual memory from operating systems: the "
        "cache is cut into pages of a few tokens, handed out as a sequence grows, found again "
        "through a block table, and shared between sequences that begin alike. The answers are the "
        "same; the memory that was reserved in vain now holds more sequences.",
        "es": "Nadie sabe cuánto medirá una respuesta, así que un motor con cachés contiguas "
        "reserva sitio para la más larga. La paginación toma prestada la memoria virtual de los "
        "sistemas operativos: la caché se corta en páginas de unos pocos tokens, que se entregan "
        "a medida que crece la secuencia, se encuentran mediante una tabla de bloques y se "
        "comparten entre secuencias que empiezan igual. Las respuestas no cambian; la memoria "
        "reservada en vano aloja ahora más secuencias.",
    },
    diagram=(
        "x",
        "q_proj, k_proj, v_proj",
        "+block table: logical page => physical page",
        "~cache: one reservation of the longest length => pages of page_tokens",
        "softmax(q k) v, pages gathered in the kernel",
        "o_proj",
    ),
)
