"""LongRoPE: a search finds how far to stretch each rotation.

Changes: rotary scaling `longrope`, with `context_len` grown by a power of two until the workload's
sequences fit. Matched: everything else. The factors come out of the search and stay empty until it
has run; sizes and times do not depend on them.
Relieves: a context that is far too short for the sequences at hand.
Does nothing when: sequences fit already; the factor is then 1.
Costs: an evolutionary search over perplexity, and fine-tuning at long lengths.
"""

from __future__ import annotations

from worthit.spec.case import Case
from worthit.techniques._record import Evidence, Source, Technique
from worthit.techniques.position._positions import HSIEH_2024, is_scaled, stretch, unstretch

DING_2024 = Source(
    cite="Ding et al. 2024",
    title="LongRoPE: Extending LLM Context Window Beyond 2 Million Tokens",
    id="arXiv:2402.13753",
    where="section 3",
)


def apply(case: Case) -> Case:
    """Return `case` with rotary positions stretched pair by pair, to what the workload needs."""
    return stretch(case, "longrope", "longrope")


def is_present(case: Case) -> bool:
    """Whether rotary positions carry searched factors."""
    return is_scaled(case, "longrope")


def remove(case: Case) -> Case:
    """Return `case` with unscaled positions and the context that they were trained for."""
    return unstretch(case)


TECHNIQUE = Technique(
    id="longrope",
    name="LongRoPE context extension",
    relieves=("context-length",),
    bottleneck="One formula for all rotations wastes information when the stretch is large.",
    apply=apply,
    module="worthit.nn.position.longrope:stretch",
    experiment="worthit.lab.experiments.longrope:EXPERIMENT",
    parity=(
        "transformers 5.23 `ROPE_INIT_FUNCTIONS`, longrope: frequencies and temperature; turned "
        "heads (tests/nn/position/test_rope.py)",
    ),
    is_present=is_present,
    remove=remove,
    adoption="finetune",
    cost_of_adoption=(
        "A search that evaluates long texts many times, then up to about 1000 steps of fine-tuning "
        "at 128K to 256K tokens for the longest contexts."
    ),
    nothing_when=(
        "Every sequence fits in the trained context, or the stretch is small enough for a formula."
    ),
    pitfalls=(
        "Two sets of factors, for short and for long texts: crossing the threshold changes what "
        "the keys in the cache mean.",
        "The search can fit the texts that it was run on.",
        "Attention is rescaled by the ratio of lengths; leaving that out degrades everything.",
        "A nominal context is not an effective one: test retrieval at the length you need.",
    ),
    sources=(DING_2024,),
    evidence=(
        Evidence(
            claim="Extends LLaMA 2 and Mistral to 2048K tokens with at most 1000 fine-tuning steps "
            "at up to 256K, and eightfold without fine-tuning.",
            source=DING_2024,
        ),
        Evidence(
            claim="Of the long-context models tested, about half of those that claim 32K tokens or "
            "more keep satisfactory quality at 32K.",
            source=HSIEH_2024,
        ),
    ),
    orientation={
        "en": "How much each pair of channels should be stretched is not given by any formula, and "
        "the first few positions are best not stretched at all. An evolutionary search tries "
        "combinations and keeps those with the lowest perplexity on long texts; a second set of "
        "factors restores the quality of short ones. It goes further than the formulas do and "
        "costs a search for every model.",
        "es": "Ninguna fórmula dice cuánto conviene estirar cada par de canales, y las primeras "
        "posiciones es mejor no estirarlas. Una búsqueda evolutiva prueba combinaciones y se queda "
        "con las de menor perplejidad en textos largos; un segundo juego de factores devuelve la "
        "calidad a los cortos. Llega más lejos que las fórmulas y cuesta una búsqueda por cada "
        "modelo.",
    },
    diagram=(
        "position p",
        "+searched factor for each rotation, one set for short and one for long texts",
        "~angle: p * frequency => p * frequency / factor of the pair",
        "rotate q and k, scores rescaled",
        "~usable context: trained => trained * factor",
    ),
    metric="context_shortfall",
)
