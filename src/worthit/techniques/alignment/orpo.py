"""ORPO: fine-tuning and preference in one loss, by the odds of both answers.

Changes: the loss of fine-tuning, plus -lambda log sigmoid(log odds(chosen) - log odds(rejected)).
Relieves: a second stage and a reference model, where nothing was fine-tuned yet.
Does nothing when: the model is fine-tuned on such answers already.
Costs: one weight, lambda; the likelihood term goes on teaching what the chosen answers say.

Held equal: model, tokens, precision. Baseline: plain fine-tuning, then DPO.
"""

from __future__ import annotations

from worthit.spec.case import Case
from worthit.techniques._record import Evidence, Technique
from worthit.techniques.alignment._preferences import (
    HONG_2024,
    TRAIN,
    aligned,
    is_aligned,
    passes,
    unaligned,
)

# Forward and backward alone, for both stages at once.
PRICE = passes(TRAIN, low=TRAIN, high=TRAIN)


def apply(case: Case) -> Case:
    """Return `case` with its pairs learnt by ORPO."""
    return aligned(case, "orpo", ("pair",), PRICE)


def is_present(case: Case) -> bool:
    """Whether the training is ORPO on pairs."""
    return is_aligned(case, "orpo")


def remove(case: Case) -> Case:
    """Return `case` as plain fine-tuning on the same tokens."""
    return unaligned(case)


TECHNIQUE = Technique(
    id="orpo",
    name="Odds ratio preference optimization",
    relieves=("preferences",),
    bottleneck=(
        "Fine-tuning on good answers raises bad ones with them, and undoing that takes a second "
        "stage with a reference of the first."
    ),
    apply=apply,
    is_present=is_present,
    remove=remove,
    adoption="finetune",
    cost_of_adoption=(
        "One fine-tuning from the base model with two sequences a pair; lambda of 0.1 to 1."
    ),
    nothing_when=(
        "The model follows instructions already: there is no first stage to save, and the "
        "likelihood term pulls it to the data's style."
    ),
    pitfalls=(
        "The term log(1 - p) overflows where the mean probability nears 1: clamp it.",
        "Trained on an instruction-tuned model it is mostly fine-tuning on the chosen answers.",
        "The odds use the mean log-probability a token: with the sum they vanish.",
        "The penalty is small beside the likelihood: watch both terms.",
    ),
    sources=(HONG_2024,),
    evidence=(
        Evidence(
            claim="Fine-tuning on chosen answers alone raises the probability of rejected ones as "
            "well.",
            source=HONG_2024,
        ),
        Evidence(
            claim="Mistral 7B from the base model with 61 thousand pairs reaches 12.2 % on "
            "AlpacaEval 2.0, in one stage.",
            source=HONG_2024,
        ),
    ),
    orientation={
        "en": "The usual road has two stages: imitate good answers, then prefer them over bad "
        "ones, with a frozen copy from between the stages to measure against. ORPO does both in "
        "one: it imitates the chosen answer and, in the same step, pushes the odds of the rejected "
        "one down. Half the memory, one run, no reference. It starts from a base model; on a model "
        "that answers well already there is little left for it to do.",
        "es": "El camino habitual tiene dos etapas: imitar buenas respuestas y después preferirlas "
        "a las malas, con una copia congelada entre ambas para medir. ORPO hace las dos a la vez: "
        "imita la respuesta elegida y, en el mismo paso, baja las probabilidades de la rechazada. "
        "La mitad de memoria, una sola pasada, sin referencia. Parte de un modelo base; en un "
        "modelo que ya responde bien le queda poco por hacer.",
    },
    diagram=(
        "a base model, and pairs",
        "~fine-tuning, then preference against its copy => one loss",
        "negative log-likelihood of the chosen answer",
        "+lambda times -log sigmoid of the log odds ratio",
        "-reference model",
    ),
    module="worthit.align.orpo:ORPO",
    parity=(
        "trl 1.16 (tests/align/test_parity.py)",
        "finite near certainty (tests/align/test_losses.py)",
    ),
    experiment="worthit.lab.experiments.orpo:EXPERIMENT",
)
