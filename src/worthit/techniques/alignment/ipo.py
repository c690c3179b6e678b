"""IPO: pull the margin of a pair to a fixed value instead of to infinity.

Changes: the loss of DPO, from -log sigmoid(beta h) to (h - 1 / (2 beta))^2, h the mean margin.
Relieves: overfitting to labels that are certain by accident, or wrong.
Does nothing when: labels of one comparison differ as a logistic model says they should.
Costs: what DPO does; a stronger pull has to be asked for by beta.

Held equal: model, tokens, precision. Baseline: plain fine-tuning; beside it, DPO.
"""

from __future__ import annotations

from worthit.spec.case import Case
from worthit.techniques._record import Evidence, Technique
from worthit.techniques.alignment._preferences import (
    AZAR_2023,
    GAO_2024,
    RAFAILOV_2023,
    TRAIN,
    aligned,
    is_aligned,
    passes,
    unaligned,
)

# As DPO: forward and backward, and the reference's forward.
PRICE = passes(4.0, low=TRAIN + 1 / 3, high=4.0)


def apply(case: Case) -> Case:
    """Return `case` with its pairs learnt by IPO."""
    return aligned(case, "ipo", ("pair",), PRICE)


def is_present(case: Case) -> bool:
    """Whether the training is IPO on pairs."""
    return is_aligned(case, "ipo")


def remove(case: Case) -> Case:
    """Return `case` as plain fine-tuning on the same tokens."""
    return unaligned(case)


TECHNIQUE = Technique(
    id="ipo",
    name="Identity preference optimization",
    relieves=("preferences",),
    bottleneck=(
        "A pair that was judged once looks certain; DPO then pushes its margin without end, and a "
        "wrong label is pushed as hard as a right one."
    ),
    apply=apply,
    is_present=is_present,
    remove=remove,
    adoption="finetune",
    cost_of_adoption=(
        "That of DPO; beta is another number than there and has to be searched anew."
    ),
    nothing_when=("Most comparisons carry several labels, whose split tells DPO how sure to be."),
    pitfalls=(
        "The paper's text sums over tokens; the authors' and TRL's code divides by the length: "
        "betas of the two are not comparable.",
        "A quadratic loss punishes a margin that is too large as much as one too small: on clean "
        "data it learns less than DPO at the same number of steps.",
        "CPO's loss of the same name has no reference and is another method.",
    ),
    sources=(
        AZAR_2023,
        RAFAILOV_2023,
    ),
    evidence=(
        Evidence(
            claim="With a preference of probability 1, DPO's optimum ignores the reference "
            "whatever beta is; that of IPO stays at a margin of 1 / (2 beta).",
            source=AZAR_2023,
        ),
        Evidence(
            claim="20 to 40 % of the labels of preference sets are noisy; ten points more cost up "
            "to thirty points of win rate.",
            source=GAO_2024,
        ),
    ),
    orientation={
        "en": "DPO reads every pair as evidence that one answer is better by as much as possible. "
        "Nearly all pairs are judged once, so nothing tells it to stop, and it trusts a slip of "
        "the mouse as fully as a considered judgement. IPO asks for a fixed margin and no more. "
        "That makes it the cautious choice where labels are noisy, or so few that they look "
        "certain, and a slow one where they are many and right.",
        "es": "DPO lee cada par como prueba de que una respuesta es mejor cuanto más, mejor. Casi "
        "todos los pares se juzgan una sola vez, así que nada le dice que pare, y confía tanto en "
        "un desliz como en un juicio meditado. IPO pide un margen fijo y nada más. Es la opción "
        "prudente cuando las etiquetas tienen ruido o son tan pocas que parecen seguras, y una "
        "lenta cuando son muchas y correctas.",
    },
    diagram=(
        "pairs: a prompt, a better and a worse answer",
        "log-probabilities under policy and reference, a token",
        "~-log sigmoid of the margin => squared distance from 1 / (2 beta)",
        "a margin that stops growing",
    ),
    module="worthit.align.ipo:IPO",
    parity=(
        "trl 1.16, losses and gradients (tests/align/test_parity.py)",
        "the finite margin where DPO has none (tests/align/test_losses.py)",
    ),
    experiment="worthit.lab.experiments.ipo:EXPERIMENT",
)
