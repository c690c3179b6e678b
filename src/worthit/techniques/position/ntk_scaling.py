"""NTK-aware scaling: a larger base slows the slow rotations and spares the fast ones.

Changes: rotary scaling `ntk` (or `dynamic`, which grows with the text), with `context_len` grown by
a power of two until the workload's sequences fit or four times the trained length is reached.
Matched: everything else.
Relieves: a context that is too short for the sequences at hand, without training.
Does nothing when: sequences fit already; the factor is then 1.
Costs: no training; quality at the far end of the stretch.
"""

from __future__ import annotations

from dataclasses import replace

from worthit.spec.case import Case
from worthit.spec.model import ScalingKind
from worthit.techniques._record import Evidence, Technique
from worthit.techniques.position._positions import (
    HSIEH_2024,
    PENG_2023_YARN,
    is_scaled,
    stretch,
    unstretch,
)

# The post that proposed it took a model of 2K to 8K without training; beyond, quality falls fast.
UNTRAINED_FACTOR = 4.0


def apply(case: Case, *, is_dynamic: bool = False, max_factor: float = UNTRAINED_FACTOR) -> Case:
    """Return `case` with the rotary base raised by the factor that the workload needs.

    `is_dynamic` raises it only as far as the text at hand requires, which spares short ones.
    `max_factor` is how far the trained length can be stretched without training.
    """
    kind: ScalingKind = "dynamic" if is_dynamic else "ntk"
    return stretch(case, "ntk-scaling", kind, max_factor=max_factor)


def is_present(case: Case) -> bool:
    """Whether the rotary base is raised, at once or with the text."""
    return is_scaled(case, "ntk", "dynamic")


def remove(case: Case) -> Case:
    """Return `case` with unscaled positions and the context that they were trained for."""
    return unstretch(case)


NTK = replace(PENG_2023_YARN, where="section 3.1, definition 1, after a public post by bloc97")

TECHNIQUE = Technique(
    id="ntk-scaling",
    name="NTK-aware scaling of rotary positions",
    relieves=("context-length",),
    bottleneck="Dividing all positions blurs the fast rotations that tell neighbours apart.",
    apply=apply,
    module="worthit.nn.position.ntk_scaling:stretch",
    experiment="worthit.lab.experiments.ntk_scaling:EXPERIMENT",
    parity=(
        "transformers 5.23 `ROPE_INIT_FUNCTIONS`, dynamic and llama3: frequencies and "
        "temperature; turned heads (tests/nn/position/test_rope.py)",
        "the formula of the new base, for the plain form (tests/nn/position/test_rope.py)",
    ),
    is_present=is_present,
    remove=remove,
    adoption="drop-in",
    cost_of_adoption="One number in the configuration; a check of quality at the length needed.",
    nothing_when="Every sequence fits in the trained context.",
    pitfalls=(
        "The usable stretch is somewhat shorter than the factor: choose a larger one than needed.",
        "The dynamic form changes the base as the text grows, and keys in the cache keep the old "
        "one unless they are stored before rotation.",
        "The exponent counts rotated channels only, not the whole head.",
        "A nominal context is not an effective one: test retrieval at the length you need.",
    ),
    sources=(NTK,),
    evidence=(
        Evidence(
            claim="Without any fine-tuning it extends further than dividing positions does; after "
            "fine-tuning the order turns, which is what the later blend repairs.",
            source=replace(PENG_2023_YARN, where="sections 3.1 and 3.2"),
        ),
        Evidence(
            claim="Of the long-context models tested, about half of those that claim 32K tokens or "
            "more keep satisfactory quality at 32K.",
            source=HSIEH_2024,
        ),
    ),
    orientation={
        "en": "Raising the base of the rotary frequencies slows the slowest rotation by the whole "
        "factor and the fastest by almost nothing. Long texts then stay within known angles where "
        "it matters and neighbouring words remain distinct. It needs no training at all, which "
        "makes it the first thing to try, and it is good for a stretch of two to four rather than "
        "for sixteen.",
        "es": "Aumentar la base de las frecuencias rotatorias frena la rotación más lenta en todo "
        "el factor y la más rápida en casi nada. Así los textos largos se quedan en ángulos "
        "conocidos donde importa y las palabras vecinas siguen distinguiéndose. No exige ningún "
        "entrenamiento, de modo que es lo primero que conviene probar, y sirve para estirar dos o "
        "cuatro veces más que para dieciséis.",
    },
    diagram=(
        "position p",
        "~base: b => b * factor^(d / (d - 2))",
        "rotate q and k",
        "~usable context: trained => up to trained * factor",
    ),
    metric="context_shortfall",
)
