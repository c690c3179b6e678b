"""SPIN: demonstrations as the better answers, the model's own as the worse, round after round.

Changes: demonstrations to pairs, sampled anew from the model of the last round; then DPO's loss.
Relieves: collecting preferences, where only demonstrations exist.
Does nothing when: the model's answers cannot be told from the demonstrations any more.
Costs: an answer sampled a prompt and a training a round; what demonstrations lack stays lacking.

Held equal: model, demonstrations, precision. Baseline: fine-tuning on the demonstrations.
"""

from __future__ import annotations

from worthit.spec.case import Case
from worthit.techniques._record import Evidence, Technique
from worthit.techniques.alignment._preferences import (
    CHEN_2024,
    RAFAILOV_2023,
    aligned,
    is_aligned,
    passes,
    unaligned,
)

# A round: sampling a forward a token, then two sequences, each with its reference. Three rounds,
# one to four.
PRICE = passes(27.0, low=9.0, high=36.0)


def apply(case: Case) -> Case:
    """Return `case` with its demonstrations learnt by self-play."""
    return aligned(case, "spin", ("demonstration",), PRICE)


def is_present(case: Case) -> bool:
    """Whether the training is self-play on demonstrations."""
    return is_aligned(case, "spin")


def remove(case: Case) -> Case:
    """Return `case` as plain fine-tuning on the same tokens."""
    return unaligned(case)


TECHNIQUE = Technique(
    id="spin",
    name="Self-play fine-tuning",
    relieves=("preferences",),
    bottleneck=(
        "More epochs on the same demonstrations stop helping, and there is nobody to say which of "
        "two answers is better."
    ),
    apply=apply,
    is_present=is_present,
    remove=remove,
    adoption="finetune",
    cost_of_adoption=(
        "Per round, one answer sampled a prompt and a DPO run on them; three rounds or fewer."
    ),
    nothing_when=(
        "Fine-tuning has not been done yet, or has brought the model's answers to the "
        "demonstrations' level: pairs that are alike teach nothing."
    ),
    pitfalls=(
        "The worse answers must be sampled again every round; old ones are off the policy at once.",
        "Most of the gain is in the first one or two rounds.",
        "A demonstration that is worse than the model's own answer is still called the better one.",
        "One known package gathers logits that are not shifted: its log-probabilities are of the "
        "wrong tokens.",
    ),
    sources=(
        CHEN_2024,
        RAFAILOV_2023,
    ),
    evidence=(
        Evidence(
            claim="Zephyr 7B after fine-tuning rises from 58.14 to 63.16 on the Open LLM "
            "Leaderboard, from its own demonstrations.",
            source=CHEN_2024,
        ),
        Evidence(
            claim="Its fixed point is the data's distribution: beyond the demonstrations there is "
            "nothing to win.",
            source=CHEN_2024,
        ),
    ),
    orientation={
        "en": "When there are demonstrations and nobody to compare answers, the model can be its "
        "own opponent. It answers every prompt itself; the demonstration is called better, its own "
        "answer worse, and preference learning does the rest. Next round it plays against what it "
        "has become. The game ends when its answers cannot be told from the demonstrations: that "
        "is also the most it can reach.",
        "es": "Cuando hay demostraciones y nadie que compare respuestas, el modelo puede ser su "
        "propio rival. Responde él mismo a cada pregunta; la demostración se llama mejor, su "
        "respuesta peor, y el aprendizaje por preferencias hace el resto. En la ronda siguiente "
        "juega contra aquello en que se ha convertido. El juego acaba cuando sus respuestas no se "
        "distinguen de las demostraciones: eso es también lo máximo que puede alcanzar.",
    },
    diagram=(
        "demonstrations: prompts with good answers",
        "+answers sampled from the model of the last round",
        "+pairs: the demonstration over the model's own",
        "DPO, the last round's model as its reference",
        "~one training => rounds until nothing tells them apart",
    ),
    module="worthit.align.spin:self_play",
    parity=("its loss is DPO's: trl 1.16 (tests/align/test_parity.py)",),
    experiment="worthit.lab.experiments.spin:EXPERIMENT",
)
