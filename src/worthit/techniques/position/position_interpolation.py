"""Position interpolation: positions are divided, so that long texts use angles already known.

Changes: rotary scaling `linear`, with `context_len` grown by a power of two until the workload's
sequences fit. Matched: everything else; no cost changes but for the longer cache that is used.
Relieves: a context that is too short for the sequences at hand.
Does nothing when: sequences fit already; the factor is then 1.
Costs: about a thousand steps of fine-tuning; near positions blur.
"""

from __future__ import annotations

from worthit.spec.case import Case
from worthit.techniques._record import Evidence, Source, Technique
from worthit.techniques.position._positions import HSIEH_2024, is_scaled, stretch, unstretch

CHEN_2023 = Source(
    cite="Chen et al. 2023",
    title="Extending Context Window of Large Language Models via Positional Interpolation",
    id="arXiv:2306.15595",
    where="section 2.3, equation 4",
)


def apply(case: Case) -> Case:
    """Return `case` with positions divided by the factor that the workload needs."""
    return stretch(case, "position-interpolation", "linear")


def is_present(case: Case) -> bool:
    """Whether rotary positions are divided by a constant."""
    return is_scaled(case, "linear")


def remove(case: Case) -> Case:
    """Return `case` with unscaled positions and the context that they were trained for."""
    return unstretch(case)


TECHNIQUE = Technique(
    id="position-interpolation",
    name="Position interpolation",
    relieves=("context-length",),
    bottleneck="Past the trained length rotary angles are ones that the model has never seen.",
    apply=apply,
    module="worthit.nn.position.position_interpolation:stretch",
    experiment="worthit.lab.experiments.position_interpolation:EXPERIMENT",
    parity=(
        "transformers 5.23 `ROPE_INIT_FUNCTIONS`, linear: frequencies and temperature; turned "
        "heads (tests/nn/position/test_rope.py)",
    ),
    is_present=is_present,
    remove=remove,
    adoption="finetune",
    cost_of_adoption="About 1000 steps of fine-tuning at the new length.",
    nothing_when="Every sequence fits in the trained context.",
    pitfalls=(
        "Without fine-tuning it is worse than the methods that spare the fast angles.",
        "Neighbouring positions come closer together, so short texts get slightly worse too.",
        "A nominal context is not an effective one: test retrieval at the length you need.",
    ),
    sources=(CHEN_2023,),
    evidence=(
        Evidence(
            claim="LLaMA models of 7B to 65B parameters reach 32,768 tokens within 1000 steps, and "
            "keep their quality within the original context nearly unchanged.",
            source=CHEN_2023,
        ),
        Evidence(
            claim="Of the long-context models tested, about half of those that claim 32K tokens or "
            "more keep satisfactory quality at 32K.",
            source=HSIEH_2024,
        ),
    ),
    orientation={
        "en": "Instead of going on to positions the model has never seen, squeeze the longer text "
        "into the range it knows: position p becomes p divided by the factor. All angles stay "
        "familiar and a short fine-tuning teaches the finer steps. It was the first method that "
        "worked; the later ones squeeze only the slow angles and leave the fast ones, which tell "
        "neighbours apart, alone.",
        "es": "En lugar de seguir hacia posiciones que el modelo nunca ha visto, se comprime el "
        "texto largo en el intervalo que conoce: la posición p pasa a ser p dividida por el "
        "factor. Todos los ángulos siguen siendo familiares y un ajuste breve enseña los pasos más "
        "finos. Fue el primer método que funcionó; los posteriores comprimen solo los ángulos "
        "lentos y dejan en paz los rápidos, que son los que distinguen a los vecinos.",
    },
    diagram=(
        "position p",
        "~angle: p * frequency => (p / factor) * frequency",
        "rotate q and k",
        "~usable context: trained => trained * factor",
    ),
    metric="context_shortfall",
)
