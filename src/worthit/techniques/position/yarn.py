"""YaRN: slow rotations are interpolated, fast ones left alone, and attention is sharpened a little.

Changes: rotary scaling `yarn`, with `context_len` grown by a power of two until the workload's
sequences fit. Matched: everything else.
Relieves: a context that is too short for the sequences at hand.
Does nothing when: sequences fit already; the factor is then 1.
Costs: a few hundred steps of fine-tuning for the best result; usable without.
"""

from __future__ import annotations

from dataclasses import replace

from worthit.spec.case import Case
from worthit.techniques._record import Evidence, Technique
from worthit.techniques.position._positions import (
    HSIEH_2024,
    PENG_2023_YARN,
    is_scaled,
    stretch,
    unstretch,
)


def apply(case: Case) -> Case:
    """Return `case` with positions stretched by parts, by the factor that the workload needs."""
    return stretch(case, "yarn", "yarn")


def is_present(case: Case) -> bool:
    """Whether rotary positions are stretched by YaRN."""
    return is_scaled(case, "yarn")


def remove(case: Case) -> Case:
    """Return `case` with unscaled positions and the context that they were trained for."""
    return unstretch(case)


TECHNIQUE = Technique(
    id="yarn",
    name="YaRN context extension",
    relieves=("context-length",),
    bottleneck="Treating all rotations alike either blurs neighbours or meets unknown angles.",
    apply=apply,
    module="worthit.nn.position.yarn:stretch",
    experiment="worthit.lab.experiments.yarn:EXPERIMENT",
    parity=(
        "transformers 5.23 `ROPE_INIT_FUNCTIONS`, yarn: frequencies and temperature; turned "
        "heads (tests/nn/position/test_rope.py)",
    ),
    is_present=is_present,
    remove=remove,
    adoption="finetune",
    cost_of_adoption=(
        "About 400 steps of fine-tuning, a thousandth of the pretraining data; moderate factors "
        "are usable without."
    ),
    nothing_when="Every sequence fits in the trained context.",
    pitfalls=(
        "The sharpening multiplies queries and keys, so it counts twice in the score.",
        "Whether the ramp's bounds are rounded, and DeepSeek's two extra weights, differ between "
        "checkpoints: copy them exactly.",
        "A static factor slightly harms short texts; switch it on only for long ones.",
        "A nominal context is not an effective one: test retrieval at the length you need.",
    ),
    sources=(PENG_2023_YARN,),
    evidence=(
        Evidence(
            claim="It extends LLaMA models with ten times fewer tokens and two and a half times "
            "fewer training steps than the methods before it, up to 128K tokens.",
            source=replace(PENG_2023_YARN, where="abstract and section 4"),
        ),
        Evidence(
            claim="Of the long-context models tested, about half of those that claim 32K tokens or "
            "more keep satisfactory quality at 32K.",
            source=HSIEH_2024,
        ),
    ),
    orientation={
        "en": "Rotations that turn many times within the trained context already know every angle "
        "and are left alone; those that never complete a turn are divided by the factor; a ramp "
        "joins the two. Longer contexts also flatten attention, so the scores are sharpened by a "
        "small amount. The result works fairly well at once and very well after a few hundred "
        "steps, which made it the usual way from 4K to 32K and 128K.",
        "es": "Las rotaciones que dan muchas vueltas dentro del contexto entrenado ya conocen "
        "todos los ángulos y se dejan como están; las que nunca completan una vuelta se dividen "
        "por el factor; una rampa une ambas. Los contextos largos además aplanan la atención, así "
        "que las puntuaciones se afilan un poco. El resultado funciona bastante bien de inmediato "
        "y muy bien tras unos cientos de pasos, lo que lo convirtió en el camino habitual de 4K a "
        "32K y 128K.",
    },
    diagram=(
        "position p",
        "~slow rotations: p => p / factor",
        "fast rotations: as they were",
        "+ramp between the two, by wavelength",
        "+scores times (0.1 ln(factor) + 1)^2",
        "~usable context: trained => trained * factor",
    ),
    metric="context_shortfall",
)
