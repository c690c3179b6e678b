"""DARE with the election of TIES: drop entries at random, then vote on signs.

Changes: nothing of the model; its weights are the base plus thinned task vectors, elected by sign.
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
    YADAV_2023,
    YADAV_2024,
    YU_2023,
    is_merged,
    merged,
    unmerged,
)


def apply(case: Case) -> Case:
    """Return `case` with thinned task vectors, elected by sign in place of training."""
    return merged(case, "dare-ties")


def is_present(case: Case) -> bool:
    """Whether the weights were merged of thinned task vectors, elected by sign."""
    return is_merged(case, "dare-ties")


def remove(case: Case) -> Case:
    """Return `case` trained."""
    return unmerged(case)


TECHNIQUE = Technique(
    id="dare-ties",
    name="DARE with the election of TIES",
    relieves=("separate-skills",),
    bottleneck=(
        "Task vectors are dense, though most of their entries are redundant: where several are "
        "voted on, noise votes too."
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
        "An enlarged entry has a loud vote: at low densities few entries decide, and chance chose "
        "them.",
    ),
    sources=(YU_2023, YADAV_2023, YADAV_2024, GODDARD_2024),
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
        "en": "TIES trims a task vector by size; DARE thins it at random and enlarges what stays, "
        "so that its expectation is kept. Together, random thinning makes room and the vote on "
        "signs decides what remains in conflict. It is the default of many recipes for three "
        "models and more. Its premise is DARE's: small steps in a large model. Judge it over "
        "several seeds and against plain TIES at the same effort of tuning.",
        "es": "TIES recorta un vector de tarea por tamaño; DARE lo aclara al azar y agranda lo "
        "que queda, de modo que la esperanza se conserva. Juntos, el aclarado deja sitio y la "
        "votación de signos decide lo que aún está en conflicto. Es la opción por defecto de "
        "muchas recetas para tres o más modelos. Su premisa es la de DARE: pasos pequeños en un "
        "modelo grande. Conviene juzgarlo con varias semillas y frente a TIES con el mismo "
        "esfuerzo de ajuste.",
    },
    diagram=(
        "task vectors of several checkpoints",
        "+drop each entry with chance 1 - density, by seed",
        "+enlarge what stays, so that the expectation is kept",
        "~sum of all => mean of those with the elected sign",
        "base + lambda times that",
    ),
    module="worthit.merge.dare:dare_ties",
    experiment="worthit.lab.experiments.dare_ties:EXPERIMENT",
    parity=(
        "mergekit 0.1.5 drawing from the same chance, frozen tensors of whole recipes and live "
        "where it is installed (tests/merge/test_parity.py)",
    ),
)
