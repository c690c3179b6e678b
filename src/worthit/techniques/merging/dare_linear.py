"""DARE with addition: drop most of each task vector at random, enlarge the rest, add.

Changes: nothing of the model; its weights are the base plus thinned task vectors.
Relieves: training one model on every task, where each task has its checkpoint.
Does nothing when: entries are large, as after long training: dropping them drops the task.
Costs: a density to choose on held-out data, and a spread over seeds that must be measured.

Held equal: model, tasks. What cost can say is the training that is saved; quality is measured.
"""

from __future__ import annotations

from worthit.spec.case import Case
from worthit.techniques._record import Evidence, Technique
from worthit.techniques.merging._checkpoints import (
    GODDARD_2024,
    YADAV_2024,
    YU_2023,
    is_merged,
    merged,
    unmerged,
)


def apply(case: Case) -> Case:
    """Return `case` with thinned task vectors in place of training."""
    return merged(case, "dare-linear")


def is_present(case: Case) -> bool:
    """Whether the weights were merged of thinned task vectors."""
    return is_merged(case, "dare-linear")


def remove(case: Case) -> Case:
    """Return `case` trained."""
    return unmerged(case)


TECHNIQUE = Technique(
    id="dare-linear",
    name="DARE with addition",
    relieves=("separate-skills",),
    bottleneck=(
        "Task vectors are dense, though most of their entries are redundant: where several are "
        "added, they disturb one another."
    ),
    apply=apply,
    is_present=is_present,
    remove=remove,
    adoption="calibrate",
    cost_of_adoption=(
        "Minutes of reading and writing files, and a sweep of density with several seeds on "
        "held-out data of every task."
    ),
    nothing_when=(
        "Steps of fine-tuning are large (around 0.03, as after further pre-training), or the "
        "models are small: then little is redundant."
    ),
    pitfalls=(
        "Run several seeds: which entries drop changes the result; users report differences of up "
        "to 15 %.",
        "Rescaling differs: the paper divides by the density, mergekit restores the L1 norm.",
        "That 90 % can go was shown for small steps in large models; on small ones it fails early.",
        "Thinning lowers interference and raises variance: with few tasks only the second is felt.",
    ),
    sources=(YU_2023, YADAV_2024, GODDARD_2024),
    evidence=(
        Evidence(
            claim="After supervised fine-tuning entries stay within 0.002 to 0.005, and 90 % or "
            "even 99 % of them can be dropped; larger models allow more.",
            source=YU_2023,
        ),
        Evidence(
            claim="The difference between methods shrinks as models grow.",
            source=YADAV_2024,
        ),
    ),
    orientation={
        "en": "Most of what fine-tuning changes is redundant: drop nine entries of ten at random, "
        "multiply the rest by ten, and the fine-tuned model answers as before. Thinned vectors of "
        "several tasks rarely meet in the same weight, so their sum disturbs each of them less. "
        "It holds where steps of fine-tuning were small and the model is large; after long "
        "training, or in a small model, the entries that drop are missed.",
        "es": "Casi todo lo que cambia el ajuste fino es redundante: se descartan al azar nueve "
        "de cada diez entradas, se multiplican las demás por diez y el modelo ajustado responde "
        "como antes. Los vectores aclarados de varias tareas rara vez coinciden en un mismo peso, "
        "así que su suma molesta menos a cada una. Vale cuando los pasos del ajuste fueron "
        "pequeños y el modelo es grande; tras un entrenamiento largo, o en un modelo pequeño, lo "
        "descartado se echa en falta.",
    },
    diagram=(
        "task vectors of several checkpoints",
        "+drop each entry with chance 1 - density, by seed",
        "+enlarge what stays, so that the expectation is kept",
        "weighted sum",
        "base + lambda times that",
    ),
    module="worthit.merge.dare:dare_linear",
    experiment="worthit.lab.experiments.dare_linear:EXPERIMENT",
    parity=(
        "mergekit 0.1.5 drawing from the same chance, frozen tensors of whole recipes and live "
        "where it is installed (tests/merge/test_parity.py)",
        "peft drawing from the same chance, live where it is installed "
        "(tests/merge/test_methods.py)",
    ),
)
