"""DPO: the policy is its own reward model; one loss on pairs instead of reward model and RL.

Changes: the loss of fine-tuning, -log sigmoid(beta (log pi/ref (chosen) - log pi/ref (rejected))).
Relieves: training a reward model and sampling against it, where pairs exist already.
Does nothing when: there are no pairs, or they say the same of every answer.
Costs: one more forward pass a token, of the reference; the answers drift where no pair looks.

Held equal: model, tokens, precision. Baseline: plain fine-tuning; beside it, reward model and PPO.
"""

from __future__ import annotations

from worthit.spec.case import Case
from worthit.techniques._record import Evidence, Technique
from worthit.techniques.alignment._preferences import (
    CHOWDHURY_2024,
    PARK_2024,
    RAFAILOV_2023,
    RAZIN_2024,
    TRAIN,
    XU_2024,
    aligned,
    is_aligned,
    passes,
    unaligned,
)

# Forward and backward, and the reference's forward: once, if it is kept over three epochs.
PRICE = passes(4.0, low=TRAIN + 1 / 3, high=4.0)


def apply(case: Case) -> Case:
    """Return `case` with its pairs learnt by DPO."""
    return aligned(case, "dpo", ("pair",), PRICE)


def is_present(case: Case) -> bool:
    """Whether the training is DPO on pairs."""
    return is_aligned(case, "dpo")


def remove(case: Case) -> Case:
    """Return `case` as plain fine-tuning on the same tokens."""
    return unaligned(case)


TECHNIQUE = Technique(
    id="dpo",
    name="Direct preference optimization",
    relieves=("preferences",),
    bottleneck=(
        "RLHF trains a reward model, then samples from the policy and trains it by RL with four "
        "models in memory, to use pairs that were there from the start."
    ),
    apply=apply,
    is_present=is_present,
    remove=remove,
    adoption="finetune",
    cost_of_adoption=(
        "A fine-tuning with two sequences a pair; the reference's log-probabilities are one "
        "forward pass, computed once and kept."
    ),
    nothing_when=(
        "Answers are rated one by one, a checker can verify them (then GRPO sees more), or the "
        "pairs come from a model whose answers the policy would never give."
    ),
    pitfalls=(
        "Both log-probabilities fall while the margin grows: chosen answers become less likely, "
        "and what becomes likelier is neither (likelihood displacement); watch log pi(chosen), "
        "not the margin.",
        "Longer answers win more pairs, and the loss sums over tokens: answers grow longer than "
        "any chosen one.",
        "On labels that never contradict the margin grows without bound: beta no longer holds the "
        "policy near the reference; stop early, or take IPO.",
        "Without fine-tuning on the chosen answers first, it learns to avoid rather than to "
        "answer.",
        "AdamW in pure bf16 at a rate of 1e-6 does not move the weights: keep an fp32 master "
        "copy, or adapters.",
    ),
    sources=(
        RAFAILOV_2023,
        CHOWDHURY_2024,
    ),
    evidence=(
        Evidence(
            claim="On summaries of Reddit posts judged by GPT-4, its best win rate against the "
            "reference is about 61 %, that of PPO about 57 %.",
            source=RAFAILOV_2023,
        ),
        Evidence(
            claim="Flipped labels bias the loss; with their share known, a weighted difference of "
            "the loss and its mirror image is unbiased again (robust DPO).",
            source=CHOWDHURY_2024,
        ),
        Evidence(
            claim="Displacement is not harmless: on pairs of refusals, Llama-3-8B-Instruct refused "
            "33.4 % of harmful requests after training and 74.4 % before.",
            source=RAZIN_2024,
        ),
        Evidence(
            claim="Trained with DPO, answers become far longer than either answer of the data; a "
            "penalty on length removes that at little cost.",
            source=PARK_2024,
        ),
        Evidence(
            claim="It can favour answers that are in no pair, which PPO with a reward model on "
            "fresh samples does not.",
            source=XU_2024,
        ),
    ),
    orientation={
        "en": "RLHF first teaches a second model which answers people prefer, and then lets the "
        "first chase its scores. DPO notices that the best policy for a reward is known in closed "
        "form, so the reward can be written with the policy itself, and the pairs train it "
        "directly, as a classifier. That saves a model, the sampling and most of the tuning. What "
        "is lost is fresh answers: only what stands in the pairs is judged, and everything else "
        "drifts.",
        "es": "RLHF enseña primero a un segundo modelo qué respuestas prefiere la gente y luego "
        "deja que el primero persiga esas notas. DPO observa que la mejor política para una "
        "recompensa se conoce en forma cerrada: la recompensa se escribe con la propia política y "
        "los pares la entrenan directamente, como a un clasificador. Ahorra un modelo, el muestreo "
        "y casi todo el ajuste. Se pierden las respuestas nuevas: solo se juzga lo que está en los "
        "pares, y lo demás va a la deriva.",
    },
    diagram=(
        "pairs: a prompt, a better and a worse answer",
        "~reward model, then RL against it => one loss on the pairs",
        "+log-probabilities of both under a frozen reference",
        "+margin: how much more the policy has moved to the better answer",
        "-log sigmoid of beta times the margin",
    ),
    module="worthit.align.dpo:DPO",
    parity=(
        "trl 1.16, losses and gradients (tests/align/test_parity.py)",
        "robust DPO unbiased over flips, displacement by hand (tests/align/test_losses.py)",
    ),
    experiment="worthit.lab.experiments.dpo:EXPERIMENT",
)
