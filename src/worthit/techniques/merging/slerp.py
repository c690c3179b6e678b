"""SLERP: two checkpoints, joined along the arc between them instead of the chord.

Changes: nothing of the model; each tensor is turned from one checkpoint's towards the other's.
Relieves: training one model on two tasks, where each has its checkpoint.
Does nothing when: the two are nearly parallel, as fine-tunes of one base are: arc and chord agree.
Costs: one position on the arc to choose, or one a layer; exactly two checkpoints.

Held equal: model, tasks. What cost can say is the training that is saved; quality is measured.
"""

from __future__ import annotations

from worthit.spec.case import Case
from worthit.techniques._record import Evidence, Source, Technique
from worthit.techniques.merging._checkpoints import (
    GODDARD_2024,
    is_merged,
    merged,
    unmerged,
)

SHOEMAKE_1985 = Source(
    cite="Shoemake 1985",
    title="Animating rotation with quaternion curves",
    id="doi:10.1145/325334.325242",
    where="section 3.3",
)


def apply(case: Case) -> Case:
    """Return `case` with its two checkpoints joined in place of training."""
    return merged(case, "slerp", least=2, most=2)


def is_present(case: Case) -> bool:
    """Whether the weights were interpolated on the sphere."""
    return is_merged(case, "slerp")


def remove(case: Case) -> Case:
    """Return `case` trained."""
    return unmerged(case)


TECHNIQUE = Technique(
    id="slerp",
    name="Spherical linear interpolation (SLERP)",
    relieves=("separate-skills",),
    bottleneck=(
        "The mean of two unlike weight vectors is shorter than either; two models are wanted in "
        "one at full length."
    ),
    apply=apply,
    is_present=is_present,
    remove=remove,
    adoption="calibrate",
    cost_of_adoption=(
        "Minutes of reading and writing files, and an evaluation for each position on the arc."
    ),
    nothing_when=(
        "The cosine of the two is above 0.9995, where the arc is computed as the chord; fine-tunes "
        "of one base are close to that."
    ),
    pitfalls=(
        "It takes two models; three are merged two at a time, and the order matters.",
        "The length of all weights together has no meaning of its own in a network with norms: "
        "that the arc is better than the chord is practice, not theory.",
        "Per-layer gradients of the position are many numbers tuned on few evaluations.",
        "Two different starts remain unrelated on the arc too.",
    ),
    sources=(SHOEMAKE_1985, GODDARD_2024),
    evidence=(
        Evidence(
            claim="Described as a common choice for two models, in a toolkit whose merges led the "
            "open leaderboards of 2024.",
            source=GODDARD_2024,
        ),
    ),
    orientation={
        "en": "A straight line between two vectors of one length cuts through the sphere that both "
        "lie on, so the middle is shorter than the ends. SLERP stays on the sphere: it turns one "
        "tensor into the other at constant speed. Between fine-tunes of one base the angle is so "
        "small that line and arc are the same; between more distant relatives it keeps the scale "
        "of the weights. It joins exactly two models.",
        "es": "La recta entre dos vectores de igual longitud atraviesa la esfera en la que ambos "
        "están, así que el punto medio es más corto que los extremos. SLERP permanece en la "
        "esfera: gira un tensor hacia el otro a velocidad constante. Entre ajustes de una misma "
        "base el ángulo es tan pequeño que recta y arco coinciden; entre parientes más lejanos "
        "conserva la escala de los pesos. Une exactamente dos modelos.",
    },
    diagram=(
        "two checkpoints",
        "+angle between them, one a tensor",
        "~weighted mean => weights sin((1-t)w)/sin(w) and sin(tw)/sin(w)",
        "one model of the same size",
    ),
    module="worthit.merge.slerp:slerp",
    experiment="worthit.lab.experiments.slerp:EXPERIMENT",
    parity=(
        "mergekit 0.1.5, frozen tensors of whole recipes and live where it is installed "
        "(tests/merge/test_parity.py)",
    ),
)
