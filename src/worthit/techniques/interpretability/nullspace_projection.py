"""Nullspace projection: the least change after which no linear reader finds a concept (LEACE).

Changes: nothing of the weights; the stream at a layer is mapped by an affine map of low rank.
Relieves: control: a concept that must not be used, or must not be readable.
Does nothing when: the concept is also there in another form than a linear one.
Costs: labels, a covariance, and a product of low rank a token.
"""

from __future__ import annotations

from worthit.spec.case import Case
from worthit.techniques._record import Evidence, Source, Technique
from worthit.techniques.interpretability._inside import is_looked_into, left_alone, looked_into

BELROSE_2023 = Source(
    cite="Belrose et al. 2023",
    title="LEACE: Perfect linear concept erasure in closed form",
    id="arXiv:2306.03819",
    where="theorem 4.3",
)
RAVFOGEL_2020 = Source(
    cite="Ravfogel et al. 2020",
    title="Null It Out: Guarding Protected Attributes by Iterative Nullspace Projection",
    id="arXiv:2004.07667",
    where="algorithm 1",
)


def apply(case: Case) -> Case:
    """Return `case` with a concept projected out."""
    return looked_into(case, "nullspace-projection", least_labels=100)


def is_present(case: Case) -> bool:
    """Whether a concept is projected out."""
    return is_looked_into(case, "nullspace-projection")


def remove(case: Case) -> Case:
    """Return `case` left alone."""
    return left_alone(case)


TECHNIQUE = Technique(
    id="nullspace-projection",
    name="Nullspace projection (LEACE, INLP)",
    relieves=("control",),
    bottleneck=(
        "A concept in the states must not be used, gender or a language for instance, "
        "and retraining without it is out of reach."
    ),
    apply=apply,
    is_present=is_present,
    remove=remove,
    adoption="drop-in",
    cost_of_adoption=(
        "A hundred or more labelled texts, more than the width for a sound covariance, "
        "and a product of low rank a token."
    ),
    nothing_when=(
        "A later layer computes the concept again from what is left, or reads it in a "
        "way that is not linear."
    ),
    pitfalls=(
        "Only linear readers are shut out: a small network often still reads it; measure one.",
        "With fewer rows than columns the covariance is guessed: fit on more, or shrink it.",
        "INLP keeps taking directions, and with them what was useful; watch the task.",
        "Erasing at one layer does not erase at the next, unless all layers are erased in turn.",
    ),
    sources=(
        BELROSE_2023,
        RAVFOGEL_2020,
    ),
    evidence=(
        Evidence(
            claim="After it no linear classifier beats a constant, by proof, and no affine "
            "map changes the states less.",
            source=BELROSE_2023,
        ),
        Evidence(
            claim="Gender is taken out of word vectors and biographies with little loss of "
            "the task.",
            source=RAVFOGEL_2020,
        ),
    ),
    orientation={
        "en": "Sometimes the model should not know something: the gender of an applicant, "
        "the language of a text. Projecting the direction out is easy; doing it so "
        "that nothing linear can find the concept any more, and so that everything "
        "else moves as little as possible, has a closed answer. It takes labels and "
        "one matrix. What it does not promise is that a cleverer reader cannot find "
        "it, so test one.",
        "es": "A veces el modelo no debería saber algo: el género de quien solicita, el "
        "idioma de un texto. Quitar la dirección es fácil; hacerlo de modo que ningún "
        "lector lineal encuentre ya el concepto y que todo lo demás se mueva lo menos "
        "posible tiene una solución cerrada. Pide etiquetas y una matriz. Lo que no "
        "promete es que un lector más hábil no lo encuentre: pruébalo con uno.",
    },
    diagram=(
        "states x of a layer, with labels z",
        "+W = S_xx^(-1/2), P onto the columns of W S_xz",
        "~x => x - W^+ P W (x - mean)",
    ),
    module="worthit.interp.erase:leace",
    parity=(
        "concept-erasure 0.2.4 `LeaceEraser`, both methods, two and five labels "
        "(tests/interp/test_erase.py)",
    ),
    experiment="worthit.lab.experiments.nullspace_projection:EXPERIMENT",
)
