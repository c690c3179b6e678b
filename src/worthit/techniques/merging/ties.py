"""TIES: trim small changes, elect a sign for every weight, average what agrees.

Changes: nothing of the model; its weights are the base plus one elected task vector.
Relieves: training one model on every task, where each task has its checkpoint.
Does nothing when: task vectors do not conflict: then it drops entries and resolves nothing.
Costs: a density and a scale to choose on held-out data; what is outvoted is lost.

Held equal: model, tasks. What cost can say is the training that is saved; quality is measured.
"""

from __future__ import annotations

from worthit.spec.case import Case
from worthit.techniques._record import Evidence, Technique
from worthit.techniques.merging._checkpoints import (
    GODDARD_2024,
    YADAV_2023,
    YADAV_2024,
    is_merged,
    merged,
    unmerged,
)


def apply(case: Case) -> Case:
    """Return `case` with its checkpoints merged by election in place of training."""
    return merged(case, "ties")


def is_present(case: Case) -> bool:
    """Whether the weights were merged by election."""
    return is_merged(case, "ties")


def remove(case: Case) -> Case:
    """Return `case` trained."""
    return unmerged(case)


TECHNIQUE = Technique(
    id="ties",
    name="TIES-Merging (trim, elect sign, merge)",
    relieves=("separate-skills",),
    bottleneck=(
        "Summed task vectors cancel where their signs differ, and many small entries drown the few "
        "that matter."
    ),
    apply=apply,
    is_present=is_present,
    remove=remove,
    adoption="calibrate",
    cost_of_adoption=(
        "Minutes of reading and writing files, and a sweep of density and scale on held-out data "
        "of every task."
    ),
    nothing_when=(
        "Two or three task vectors are nearly orthogonal, or all point one way: then their sum or "
        "their mean loses less."
    ),
    pitfalls=(
        "Compare it with task arithmetic at the best scale of each: at a scale of 1 for both, "
        "the trimmed and averaged vector is simply shorter.",
        "Implementations differ: mergekit elects on weighted vectors and divides by the agreeing "
        "weights, peft elects on unweighted ones and divides by their count.",
        "Density is a share of each tensor: norms and biases are trimmed as hard as matrices.",
        "The election is by magnitude: one long task vector outvotes several short ones.",
    ),
    sources=(YADAV_2023, YADAV_2024, GODDARD_2024),
    evidence=(
        Evidence(
            claim="Keeping the largest 20 % of each vector loses little of its task; above "
            "averages and task arithmetic on T5 and ViT, the more so the more tasks.",
            source=YADAV_2023,
        ),
        Evidence(
            claim="The difference between methods shrinks as models grow.",
            source=YADAV_2024,
        ),
    ),
    orientation={
        "en": "When task vectors are added, two things go wrong: thousands of tiny changes that "
        "mean nothing add up, and where two tasks push a weight in opposite directions, neither "
        "gets what it needs. TIES keeps the largest changes of each task, lets the tasks vote on "
        "the direction of every single weight, and averages those that agree. It pays with the "
        "votes that were lost, so it is for several tasks that do collide.",
        "es": "Al sumar vectores de tareas fallan dos cosas: miles de cambios diminutos que nada "
        "significan se acumulan, y donde dos tareas empujan un peso en direcciones opuestas, "
        "ninguna obtiene lo que necesita. TIES conserva los cambios mayores de cada tarea, hace "
        "votar a las tareas la dirección de cada peso y promedia los que coinciden. Paga con los "
        "votos perdidos: es para varias tareas que sí chocan.",
    },
    diagram=(
        "task vectors of several checkpoints",
        "+trim: keep the share `density` of largest magnitude",
        "+elect the sign of each weight by the weighted sum",
        "~sum of all => mean of those that agree",
        "base + lambda times that",
    ),
    module="worthit.merge.ties:ties",
    experiment="worthit.lab.experiments.ties:EXPERIMENT",
    parity=(
        "mergekit 0.1.5, frozen tensors of whole recipes and live where it is installed "
        "(tests/merge/test_parity.py)",
        "algorithm 1, entry by entry (tests/merge/test_methods.py)",
    ),
)
