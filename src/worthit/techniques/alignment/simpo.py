"""SimPO: the mean log-probability as the reward, with a margin and without a reference model.

Changes: the loss of DPO: mean log-probabilities, a margin gamma, and no reference.
Relieves: length bias, and the reference's pass and memory.
Does nothing when: answers have one length, and a reference fits beside the model.
Costs: nothing holds the policy near where it began; beta, gamma and the rate are sensitive.

Held equal: model, tokens, precision. Baseline: plain fine-tuning; beside it, DPO.
"""

from __future__ import annotations

from worthit.spec.case import Case
from worthit.techniques._record import Evidence, Technique
from worthit.techniques.alignment._preferences import (
    MENG_2024,
    RAFAILOV_2023,
    TRAIN,
    aligned,
    is_aligned,
    passes,
    unaligned,
)

# Forward and backward alone.
PRICE = passes(TRAIN, low=TRAIN, high=TRAIN)


def apply(case: Case) -> Case:
    """Return `case` with its pairs learnt by SimPO."""
    return aligned(case, "simpo", ("pair",), PRICE)


def is_present(case: Case) -> bool:
    """Whether the training is SimPO on pairs."""
    return is_aligned(case, "simpo")


def remove(case: Case) -> Case:
    """Return `case` as plain fine-tuning on the same tokens."""
    return unaligned(case)


TECHNIQUE = Technique(
    id="simpo",
    name="Simple preference optimization",
    relieves=("preferences",),
    bottleneck=(
        "DPO's reward is a sum over tokens against a reference, while answers are sampled by mean "
        "log-probability: it prefers length, and ranks pairs unlike the sampler."
    ),
    apply=apply,
    is_present=is_present,
    remove=remove,
    adoption="finetune",
    cost_of_adoption=(
        "A fine-tuning with two sequences a pair, and no reference; a search over beta (2 to 10), "
        "gamma and the learning rate."
    ),
    nothing_when=(
        "Lengths do not tell chosen from rejected, and the policy must stay near its reference."
    ),
    pitfalls=(
        "Nothing bounds the drift: a rate two or three times too high gives repeated or broken "
        "text.",
        "Implementations divide gamma by beta or do not: write down the margin itself.",
        "In TRL's CPO an alpha other than 0 makes it another method.",
        "Log-probabilities must be averaged over the answer's tokens, not over the padded row.",
    ),
    sources=(
        MENG_2024,
        RAFAILOV_2023,
    ),
    evidence=(
        Evidence(
            claim="Up to 6.4 points above DPO on AlpacaEval 2 and 7.5 on Arena-Hard, with answers "
            "hardly longer.",
            source=MENG_2024,
        ),
        Evidence(
            claim="About half of the pairs that DPO's reward orders rightly are ordered the other "
            "way by mean log-probability, which is what is sampled.",
            source=MENG_2024,
        ),
    ),
    orientation={
        "en": "DPO scores an answer by how much its whole probability rose over a reference; when "
        "text is generated, what counts is the mean per token. SimPO trains on exactly that mean, "
        "asks the better answer to lead by a margin, and throws the reference away. The incentive "
        "to ramble goes, and so does a model's worth of memory. The rope that tied the policy to "
        "its origin goes too, so small steps and an eye on the samples take its place.",
        "es": "DPO puntúa una respuesta por cuánto subió su probabilidad total frente a una "
        "referencia; al generar texto cuenta la media por token. SimPO entrena justo esa media, "
        "pide que la mejor respuesta lleve una ventaja fija y descarta la referencia. Desaparece "
        "el incentivo a divagar, y también la memoria de un modelo. Desaparece además la cuerda "
        "que ataba la política a su origen: la sustituyen pasos pequeños y mirar las muestras.",
    },
    diagram=(
        "pairs: a prompt, a better and a worse answer",
        "-log-probabilities under a frozen reference",
        "~log-probability of the answer => its mean a token",
        "+margin gamma that the better answer must lead by",
        "-log sigmoid of the difference",
    ),
    module="worthit.align.simpo:SimPO",
    parity=("trl 1.16 (tests/align/test_parity.py)",),
    experiment="worthit.lab.experiments.simpo:EXPERIMENT",
)
