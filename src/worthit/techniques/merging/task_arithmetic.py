"""Task arithmetic: add to the base what fine-tuning changed, task by task.

Changes: nothing of the model; its weights are the base plus scaled differences from it.
Relieves: training one model on every task, where each task has its checkpoint.
Does nothing when: the checkpoints were not fine-tuned from the base, or their changes collide.
Costs: one scale to choose on held-out data, and some of each task.

Held equal: model, tasks. What cost can say is the training that is saved; quality is measured.
"""

from __future__ import annotations

from worthit.spec.case import Case
from worthit.techniques._record import Evidence, Technique
from worthit.techniques.merging._checkpoints import (
    GODDARD_2024,
    ILHARCO_2023,
    YADAV_2024,
    is_merged,
    merged,
    unmerged,
)


def apply(case: Case) -> Case:
    """Return `case` with a sum of task vectors in place of training."""
    return merged(case, "task-arithmetic", least=1)


def is_present(case: Case) -> bool:
    """Whether the weights are the base and a sum of task vectors."""
    return is_merged(case, "task-arithmetic")


def remove(case: Case) -> Case:
    """Return `case` trained."""
    return unmerged(case)


TECHNIQUE = Technique(
    id="task-arithmetic",
    name="Task arithmetic",
    relieves=("separate-skills",),
    bottleneck=(
        "Each task has its own fine-tuned model; one model for all would need all their data again."
    ),
    apply=apply,
    is_present=is_present,
    remove=remove,
    adoption="calibrate",
    cost_of_adoption=(
        "Minutes of reading and writing files, and a sweep of one scale (about ten evaluations) on "
        "held-out data of every task."
    ),
    nothing_when=(
        "The checkpoints share no base, or task vectors are long and conflict: then the sum moves "
        "far from where any of them was trained."
    ),
    pitfalls=(
        "The scale decides: at 1, the sum of several vectors overshoots; sweep it per merge, as "
        "every comparison of methods must.",
        "A difference taken from another version of the base is not a task vector.",
        "A negative weight takes a skill away, and some of its neighbours with it.",
        "In 16 bits a small difference of large weights has few digits left: subtract in fp32.",
    ),
    sources=(ILHARCO_2023, YADAV_2024, GODDARD_2024),
    evidence=(
        Evidence(
            claim="Vectors of different tasks are close to orthogonal; their sum makes one model "
            "for all of them, and a negated one makes the model forget.",
            source=ILHARCO_2023,
        ),
        Evidence(
            claim="Merging works better the larger the model and the better its base.",
            source=YADAV_2024,
        ),
    ),
    orientation={
        "en": "What fine-tuning changed is a vector: the tuned weights minus those before. Vectors "
        "of different tasks hardly touch, so adding several to the base gives one model with "
        "several skills, and subtracting one takes a skill away. One number, the scale of the sum, "
        "has to be found on held-out data. It is the baseline that every cleverer method has to "
        "beat at its own best scale.",
        "es": "Lo que cambió el ajuste fino es un vector: los pesos ajustados menos los de antes. "
        "Los vectores de tareas distintas apenas se tocan, así que sumar varios a la base da un "
        "solo modelo con varias capacidades, y restar uno quita una capacidad. Hay un número que "
        "buscar con datos apartados: la escala de la suma. Es la referencia que todo método más "
        "ingenioso debe superar con su mejor escala.",
    },
    diagram=(
        "base and its fine-tuned checkpoints",
        "+task vector of each: its weights minus the base's",
        "+weighted sum of them, times lambda",
        "~base => base + sum",
    ),
    module="worthit.merge.task_arithmetic:task_arithmetic",
    experiment="worthit.lab.experiments.task_arithmetic:EXPERIMENT",
    parity=(
        "mergekit 0.1.5, frozen tensors of whole recipes and live where it is installed "
        "(tests/merge/test_parity.py)",
        "peft, live where it is installed (tests/merge/test_methods.py)",
    ),
)
