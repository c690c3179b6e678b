"""Conceptors: soft projections onto where activations lie, combined by and, or, not.

Changes: nothing of the weights; the stream at a layer is multiplied by a matrix.
Relieves: control: several behaviours at once, which sums of vectors mix up.
Does nothing when: one behaviour along one direction is all that is wanted.
Costs: a matrix of the width squared a token and layer, and an aperture to choose.
"""

from __future__ import annotations

from worthit.spec.case import Case
from worthit.techniques._record import Evidence, Source, Technique
from worthit.techniques.interpretability._inside import is_looked_into, left_alone, looked_into

JAEGER_2014 = Source(
    cite="Jaeger 2014",
    title="Controlling Recurrent Neural Networks by Conceptors",
    id="arXiv:1403.3369",
    where="equation 7, definition 4",
)
POSTMUS_2024 = Source(
    cite="Postmus and Abreu 2024",
    title="Steering Large Language Models using Conceptors: Improving Addition-Based "
    "Activation Engineering",
    id="arXiv:2410.16314",
    where="section 3",
)


def apply(case: Case) -> Case:
    """Return `case` with a conceptor."""
    return looked_into(case, "conceptor", least_labels=50)


def is_present(case: Case) -> bool:
    """Whether a conceptor acts on the stream."""
    return is_looked_into(case, "conceptor")


def remove(case: Case) -> Case:
    """Return `case` left alone."""
    return left_alone(case)


TECHNIQUE = Technique(
    id="conceptor",
    name="Conceptor",
    relieves=("control",),
    bottleneck=(
        "Behaviours occupy subspaces rather than directions, and adding the vectors of "
        "several makes each of them worse."
    ),
    apply=apply,
    is_present=is_present,
    remove=remove,
    adoption="drop-in",
    cost_of_adoption=(
        "Fifty or more states of each behaviour, an inverse of the width cubed, and a "
        "product of the width squared a token."
    ),
    nothing_when=(
        "A single direction already does it: then a vector is the same at a thousandth "
        "of the arithmetic."
    ),
    pitfalls=(
        "The aperture decides everything: at a narrow one it shrinks the state, at a "
        "wide one it does nothing; sweep it with the gain.",
        "Fewer samples than columns leave directions that were merely not seen, and "
        "they are removed.",
        "AND of singular conceptors needs the formula of their ranges, not a plain inverse.",
        "Not a projection: applied twice it acts twice.",
    ),
    sources=(
        JAEGER_2014,
        POSTMUS_2024,
    ),
    evidence=(
        Evidence(
            claim="Better than adding means on function vectors of models up to 20B, and for "
            "combined tasks.",
            source=POSTMUS_2024,
        ),
    ),
    orientation={
        "en": "A direction is a thin thing: it says which way, but not how the examples "
        "spread. A conceptor remembers the cloud of states that a behaviour makes, and "
        "passes what lies within it while damping the rest. Two clouds can be "
        "intersected, united or excluded by a small algebra that behaves like logic. "
        "It costs a matrix where a vector would do, so it pays where behaviours are "
        "combined, if anywhere.",
        "es": "Una dirección es algo delgado: dice hacia dónde, pero no cómo se reparten los "
        "ejemplos. Un conceptor recuerda la nube de estados que produce un "
        "comportamiento, deja pasar lo que cae en ella y amortigua el resto. Dos nubes "
        "pueden cortarse, unirse o excluirse con un álgebra pequeña que se comporta "
        "como la lógica. Cuesta una matriz donde bastaría un vector: compensa, si "
        "acaso, al combinar comportamientos.",
    },
    diagram=(
        "states x of one behaviour, R = mean x x^T",
        "+C = R (R + aperture^-2 I)^-1",
        "~h => C h; C AND B, C OR B, NOT C are conceptors too",
    ),
    module="worthit.interp.conceptor:conceptor",
    parity=(
        "Jaeger 2014: definition 1 by its gradient, the laws of Boole, equation 29, "
        "the order of definition 4 (tests/interp/test_conceptor.py)",
    ),
    experiment="worthit.lab.experiments.conceptor:EXPERIMENT",
)
