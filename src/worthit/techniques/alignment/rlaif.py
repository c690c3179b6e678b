"""RLAIF: a judge model says which of two answers is better, asked in both orders.

Changes: prompts to pairs: two sampled answers, labelled by a model; then DPO, or a reward and RL.
Relieves: people's time, the slowest and dearest part of preferences.
Does nothing when: the judge agrees with people no better than chance, or no better than the policy.
Costs: two answers and two judgements a prompt; the judge's tastes become the policy's.

Held equal: model, prompts, precision. Baseline: fine-tuning; beside it, labels by people.
"""

from __future__ import annotations

from worthit.spec.case import Case
from worthit.techniques._record import Evidence, Technique
from worthit.techniques.alignment._preferences import (
    BAI_2022,
    LEE_2023,
    STIENNON_2020,
    TRAIN,
    WANG_2023,
    aligned,
    is_aligned,
    passes,
    unaligned,
)

# A token: sampled, judged in two orders by a judge of 1 (10) times the size, trained on with a
# reference.
PRICE = passes(1 + 2 + 4, low=1 + 2 + TRAIN, high=1 + 20 + 4)


def apply(case: Case) -> Case:
    """Return `case` with preferences by a judge model."""
    return aligned(
        case,
        "rlaif",
        (
            "prompt",
            "demonstration",
        ),
        PRICE,
    )


def is_present(case: Case) -> bool:
    """Whether the training is learning from a judge model."""
    return is_aligned(case, "rlaif")


def remove(case: Case) -> Case:
    """Return `case` as plain fine-tuning on the same tokens."""
    return unaligned(case)


TECHNIQUE = Technique(
    id="rlaif",
    name="Reinforcement learning from AI feedback",
    relieves=("preferences",),
    bottleneck=(
        "Comparing answers takes people minutes each, and new answers have to be compared every "
        "time the policy has changed."
    ),
    apply=apply,
    is_present=is_present,
    remove=remove,
    adoption="finetune",
    cost_of_adoption=(
        "Two sampled answers and two judgements a prompt, a few hundred labels by people to check "
        "the judge, then DPO."
    ),
    nothing_when=(
        "The judge's agreement with people, both orders averaged, is below 75 %: that is where "
        "people agree with each other."
    ),
    pitfalls=(
        "Judges prefer the first (or the last) answer: ask in both orders, and drop what changes "
        "with it.",
        "Judges prefer long answers, lists and their own family's style.",
        "A judge that is no better than the policy teaches noise: at 135M parameters it is at "
        "chance.",
        "The policy learns to please the judge: keep people's labels aside to see that.",
    ),
    sources=(
        LEE_2023,
        BAI_2022,
        WANG_2023,
    ),
    evidence=(
        Evidence(
            claim="Preferred over fine-tuning in 71 % of summaries; with people's labels, 73 %: no "
            "significant difference.",
            source=LEE_2023,
        ),
        Evidence(
            claim="Swapping the two answers can turn a judge's verdict round; averaging over both "
            "orders repairs most of it.",
            source=WANG_2023,
        ),
        Evidence(
            claim="People who label summaries agree with each other in 73 to 77 %.",
            source=STIENNON_2020,
        ),
    ),
    orientation={
        "en": "If a stronger model can tell which of two answers is better, people need not. Two "
        "answers are sampled, the judge is asked, asked again with the answers swapped, and what "
        "it says both times becomes a label. Labels are then cheap enough to be made anew for "
        "every version of the policy. They are only as good as the judge: its agreement with a "
        "few hundred judgements by people decides whether to begin.",
        "es": "Si un modelo más fuerte sabe cuál de dos respuestas es mejor, no hace falta la "
        "gente. Se generan dos respuestas, se pregunta al juez, se le pregunta otra vez con el "
        "orden cambiado, y lo que dice ambas veces se vuelve etiqueta. Así son tan baratas que "
        "pueden rehacerse para cada versión de la política. Solo valen lo que vale el juez: su "
        "acuerdo con unos cientos de juicios humanos decide si merece la pena empezar.",
    },
    diagram=(
        "prompts",
        "+two answers sampled a prompt",
        "+a judge model, asked in both orders",
        "~labels by people => labels by the judge",
        "DPO on what it says both times",
    ),
    module="worthit.align.rlaif:label",
    parity=("judges of known accuracy; the average of both orders (tests/align/test_feedback.py)",),
    experiment="worthit.lab.experiments.rlaif:EXPERIMENT",
)
