"""KTO: learn from single answers that are good or bad, without pairs.

Changes: the loss of fine-tuning, to a utility of the reward over a reference point, one label each.
Relieves: collecting pairs, where thumbs up and down are there already.
Does nothing when: the same prompts have good and bad answers and labels are clean: pairs say more.
Costs: four forward passes beside the step; batches large enough to estimate the reference point.

Held equal: model, tokens, precision. Baseline: plain fine-tuning on the good answers.
"""

from __future__ import annotations

from worthit.spec.case import Case
from worthit.techniques._record import Evidence, Technique
from worthit.techniques.alignment._preferences import (
    ETHAYARAJH_2024,
    TRAIN,
    aligned,
    is_aligned,
    passes,
    unaligned,
)

# Forward and backward; forwards of the reference, and of policy and reference on mismatched
# answers.
PRICE = passes(6.0, low=TRAIN + 1 + 2 / 3, high=6.0)


def apply(case: Case) -> Case:
    """Return `case` with its labels learnt by KTO."""
    return aligned(
        case,
        "kto",
        (
            "binary",
            "pair",
        ),
        PRICE,
    )


def is_present(case: Case) -> bool:
    """Whether the training is KTO on binary labels."""
    return is_aligned(case, "kto")


def remove(case: Case) -> Case:
    """Return `case` as plain fine-tuning on the same tokens."""
    return unaligned(case)


TECHNIQUE = Technique(
    id="kto",
    name="Kahneman-Tversky optimization",
    relieves=("preferences",),
    bottleneck=(
        "Users press thumbs up or down on one answer; hardly anybody compares two, and methods "
        "for pairs cannot read what there is."
    ),
    apply=apply,
    is_present=is_present,
    remove=remove,
    adoption="finetune",
    cost_of_adoption=(
        "A fine-tuning with one sequence a label, and passes over mismatched prompts and answers "
        "for the reference point."
    ),
    nothing_when=("Each prompt has a good and a bad answer and the labels are clean."),
    pitfalls=(
        "The reference point is the batch mean over mismatched answers, clamped at zero: a batch "
        "of one has none, and small ones diverge.",
        "Weights: keep n_good x w_good over n_bad x w_bad between 1 and 4/3; without that, the "
        "larger class decides.",
        "Labels of one kind alone teach nothing about the difference.",
        "Its data hold one answer a row: two rows of a pair must not be told apart by length or "
        "source instead of quality.",
    ),
    sources=(ETHAYARAJH_2024,),
    evidence=(
        Evidence(
            claim="At 1B to 30B parameters it matches or exceeds DPO from the same pairs taken "
            "apart.",
            source=ETHAYARAJH_2024,
        ),
        Evidence(
            claim="With 90 % of the desirable answers dropped it still beats DPO on the whole "
            "(Llama 7B).",
            source=ETHAYARAJH_2024,
        ),
        Evidence(
            claim="Large models do without fine-tuning first, where DPO then rambles.",
            source=ETHAYARAJH_2024,
        ),
    ),
    orientation={
        "en": "A product collects thumbs, not comparisons: this answer was good, that one was not. "
        "KTO borrows from prospect theory how people value gains and losses against a reference "
        "point, and makes every single label a small push up or down, flattening where an answer "
        "is already far from the point. It reads data that exist, stands lopsided ones with two "
        "weights, and gives up the finer grain of a direct comparison.",
        "es": "Un producto recoge pulgares, no comparaciones: esta respuesta fue buena, aquella "
        "no. KTO toma de la teoría prospectiva cómo valora la gente ganancias y pérdidas frente a "
        "un punto de referencia, y convierte cada etiqueta en un pequeño empujón hacia arriba o "
        "hacia abajo, que se aplana cuando la respuesta ya está lejos. Lee datos que existen, "
        "soporta los desequilibrados con dos pesos y renuncia al grano fino de la comparación "
        "directa.",
    },
    diagram=(
        "answers, each with a label: good or bad",
        "~a better and a worse answer of one prompt => one answer and its label",
        "+reference point: mean reward of mismatched prompts and answers",
        "+weights for good and bad, by their numbers",
        "utility of the reward over that point",
    ),
    module="worthit.align.kto:KTO",
    parity=(
        "trl 1.16, loss and KL estimate on an odd batch (tests/align/test_parity.py)",
        "the paper's cases (tests/align/test_losses.py)",
    ),
    experiment="worthit.lab.experiments.kto:EXPERIMENT",
)
