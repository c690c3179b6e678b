"""Linear merging: the weighted mean of checkpoints, a model soup.

Changes: nothing of the model; its weights are the mean of those of several checkpoints.
Relieves: training one model on every task, where each task has its checkpoint.
Does nothing when: the checkpoints come from different starts: their mean is noise.
Costs: choosing weights on held-out data; each task keeps its share of what was learned for it.

Held equal: model, tasks. What cost can say is the training that is saved; quality is measured.
"""

from __future__ import annotations

from worthit.spec.case import Case
from worthit.techniques._record import Evidence, Technique
from worthit.techniques.merging._checkpoints import (
    GODDARD_2024,
    WORTSMAN_2022,
    YADAV_2024,
    is_merged,
    merged,
    unmerged,
)


def apply(case: Case) -> Case:
    """Return `case` with the mean of its checkpoints in place of training."""
    return merged(case, "linear")


def is_present(case: Case) -> bool:
    """Whether the weights are a mean of checkpoints."""
    return is_merged(case, "linear")


def remove(case: Case) -> Case:
    """Return `case` trained."""
    return unmerged(case)


TECHNIQUE = Technique(
    id="linear",
    name="Linear merging (model soup)",
    relieves=("separate-skills",),
    bottleneck=(
        "Several runs of fine-tuning exist; one is picked, and what the others found is thrown "
        "away."
    ),
    apply=apply,
    is_present=is_present,
    remove=remove,
    adoption="calibrate",
    cost_of_adoption=(
        "Minutes of reading and writing files, and an evaluation for each choice of weights."
    ),
    nothing_when=(
        "The checkpoints have different starts, architectures or tokenizers, or were fine-tuned so "
        "far apart that no low loss lies between them."
    ),
    pitfalls=(
        "For different tasks the mean keeps 1 / n of each task vector: that is often too little of "
        "each; task arithmetic sets the amount.",
        "Weights that do not sum to 1 change the scale of every layer, unless they are normalized.",
        "Rows of embeddings must stand for the same tokens in all checkpoints.",
        "A bad ingredient spoils the soup: add them one by one, best first, and keep what helps.",
    ),
    sources=(WORTSMAN_2022, YADAV_2024, GODDARD_2024),
    evidence=(
        Evidence(
            claim="Soups of many runs over hyperparameters are better than the best run, also "
            "under shifts of distribution: ViT-G reaches 90.94 % on ImageNet.",
            source=WORTSMAN_2022,
        ),
        Evidence(
            claim="With large instruction-tuned models, averaging does about as well as the "
            "methods that resolve interference, and larger models merge more easily.",
            source=YADAV_2024,
        ),
    ),
    orientation={
        "en": "Fine-tune one model several times from the same start, and the results lie in one "
        "valley of the loss: their mean is in it too, often lower than any of them. A soup costs "
        "nothing at inference, unlike an ensemble. For runs on the same task it is the first thing "
        "to try; for different tasks the mean dilutes each of them, and the differences from the "
        "base are worth handling one by one.",
        "es": "Si un modelo se ajusta varias veces desde el mismo punto de partida, los "
        "resultados quedan en un mismo valle de la pérdida, y su media también, a menudo más "
        "abajo que cualquiera. Una sopa no cuesta nada en inferencia, al contrario que un "
        "conjunto de modelos. Para varias ejecuciones de la misma tarea es lo primero que "
        "conviene probar; para tareas distintas la media diluye cada una.",
    },
    diagram=(
        "checkpoints of one base",
        "-pick the best run",
        "+weighted mean of every tensor",
        "one model of the same size",
    ),
    module="worthit.merge.linear:linear",
    experiment="worthit.lab.experiments.linear:EXPERIMENT",
    parity=(
        "mergekit 0.1.5, frozen tensors of whole recipes and live where it is installed "
        "(tests/merge/test_parity.py)",
    ),
)
