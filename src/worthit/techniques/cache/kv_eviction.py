"""KV eviction: cached tokens that attention hardly reads are dropped.

Changes: `runtime.kept_tokens`, the most entries that a sequence keeps in each layer.
Relieves: the capacity for sequences and the bytes that decoding reads from the cache.
Does nothing when: sequences are shorter than what must be kept anyway.
Costs: a budget to calibrate; whatever was evicted cannot be looked up again.

Held equal: the model and the workload; quality is not, see `evidence`.
"""

from __future__ import annotations

from math import ceil

from worthit.spec.case import Case
from worthit.techniques._change import require_growing_cache, require_serving, with_runtime
from worthit.techniques._record import Evidence, Source, Technique

# First tokens (sinks) and a recent window that no policy may drop.
LEAST_TOKENS = 64

ZHANG_2023 = Source(
    cite="Zhang et al. 2023",
    title="H2O: Heavy-Hitter Oracle for Efficient Generative Inference of Large Language Models",
    id="arXiv:2306.14048",
    where="section 4, algorithm 1",
)
XIAO_2023 = Source(
    cite="Xiao et al. 2023",
    title="Efficient Streaming Language Models with Attention Sinks",
    id="arXiv:2309.17453",
    where="section 3",
)
LI_2024 = Source(
    cite="Li et al. 2024",
    title="SnapKV: LLM Knows What You are Looking for Before Generation",
    id="arXiv:2404.14469",
    where="section 4",
)


def apply(case: Case, *, keep: float = 0.5) -> Case:
    """Return `case` keeping the share `keep` of a whole sequence's cache entries.

    At least `LEAST_TOKENS` are kept, so that short sequences are left as they are.
    """
    serving = require_serving(case, "kv-eviction")
    require_growing_cache(case, "kv-eviction")
    return with_runtime(case, kept_tokens=max(LEAST_TOKENS, ceil(keep * serving.context)))


def is_present(case: Case) -> bool:
    """Whether the cache of a sequence is capped already."""
    return case.runtime.kept_tokens is not None


def remove(case: Case) -> Case:
    """Return `case` keeping every token."""
    return with_runtime(case, kept_tokens=None)


TECHNIQUE = Technique(
    id="kv-eviction",
    name="KV-cache eviction",
    relieves=("kv-capacity", "decode-cache"),
    bottleneck=(
        "The cache grows with every token, though most past tokens get almost no attention."
    ),
    apply=apply,
    experiment="worthit.lab.experiments.kv_eviction:EXPERIMENT",
    is_present=is_present,
    remove=remove,
    adoption="calibrate",
    cost_of_adoption=(
        "No training; an attention kernel that reports scores, and a budget chosen by measuring "
        "perplexity and retrieval on your own prompts."
    ),
    nothing_when=(
        "Sequences are short, most layers have a sliding window already, or weights dominate a "
        "decode step."
    ),
    pitfalls=(
        "Perplexity looks fine while retrieval is lost: a fact evicted before it is asked for "
        "cannot come back. Report both.",
        "The first tokens collect attention whatever they say: dropping them ruins the model.",
        "Keep the original rotary positions, and count positions by tokens seen, not by entries "
        "kept.",
        "Budgets that differ by head free no pages unless pages are per head; evicted pages must "
        "leave the prefix cache too.",
        "Fused attention does not return weights: scoring needs a pass over the last queries.",
    ),
    module="worthit.decode.cache.evicting:EvictingKV",
    parity=(
        "StreamingLLM, H2O, SnapKV and TOVA head by head in lists; a mask over one whole pass "
        "(tests/decode/cache/test_evicting.py)",
        "bytes that `cost` predicts (tests/decode/cache/test_bridge.py)",
    ),
    sources=(ZHANG_2023, XIAO_2023, LI_2024),
    evidence=(
        Evidence(
            claim="Keeping 20 % of the cache as heavy hitters and recent tokens leaves OPT, Llama "
            "and GPT-NeoX close to full quality on the tasks tried.",
            source=ZHANG_2023,
        ),
        Evidence(
            claim="Four initial tokens beside a recent window keep perplexity stable over millions "
            "of tokens; without them it collapses. It extends the stream, not what is remembered.",
            source=XIAO_2023,
        ),
    ),
    orientation={
        "en": "Attention concentrates on few tokens: the first ones, recent ones, and some that "
        "matter throughout. Eviction keeps those up to a fixed budget and forgets the rest, so the "
        "cache stops growing and every step reads less. It is lossy in a way that averages hide: "
        "text stays fluent, but a detail in the middle of a long prompt may be gone when the "
        "question about it arrives.",
        "es": "La atención se concentra en pocos tokens: los primeros, los recientes y algunos "
        "que importan siempre. La expulsión conserva esos hasta un presupuesto fijo y olvida el "
        "resto, de modo que la caché deja de crecer y cada paso lee menos. La pérdida no se ve en "
        "los promedios: el texto sigue siendo fluido, pero un detalle en medio de un texto largo "
        "puede haber desaparecido cuando llega la pregunta sobre él.",
    },
    diagram=(
        "x",
        "q_proj, k_proj, v_proj, rotary",
        "+score cached tokens: sinks, heavy hitters, recent",
        "~cache: every token => at most kept_tokens",
        "softmax(q k) v over what is kept",
        "o_proj",
    ),
)
