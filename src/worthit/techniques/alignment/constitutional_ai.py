"""Constitutional AI: written principles, by which the model criticises and revises its own answers.

Changes: prompts to revised answers, then to pairs labelled under the principles; two trainings.
Relieves: people labelling harmful text; rules stand in writing where labels hid them.
Does nothing when: the model cannot criticise, or the harm is not in what answers say.
Costs: three generations a prompt and round, two trainings; principles that contradict each other.

Held equal: model, prompts, precision. Baseline: fine-tuning and RLHF with labels of harmlessness.
"""

from __future__ import annotations

from worthit.spec.case import Case
from worthit.techniques._record import Evidence, Technique
from worthit.techniques.alignment._preferences import (
    BAI_2022,
    LEE_2023,
    TRAIN,
    aligned,
    is_aligned,
    passes,
    unaligned,
)

# Answer, critique and revision, each reading what came before; fine-tuning; then labels and DPO
# as RLAIF.
PRICE = passes(6 + TRAIN + 7, low=4 + TRAIN, high=12 + TRAIN + 25)


def apply(case: Case) -> Case:
    """Return `case` with principles in place of labels of harm."""
    return aligned(
        case,
        "constitutional-ai",
        (
            "prompt",
            "demonstration",
            "binary",
            "pair",
        ),
        PRICE,
    )


def is_present(case: Case) -> bool:
    """Whether the training is learning from written principles."""
    return is_aligned(case, "constitutional-ai")


def remove(case: Case) -> Case:
    """Return `case` as plain fine-tuning on the same tokens."""
    return unaligned(case)


TECHNIQUE = Technique(
    id="constitutional-ai",
    name="Constitutional AI",
    relieves=("preferences",),
    bottleneck=(
        "What must not be said takes thousands of people's labels of harmful text, out of which "
        "nobody can read the rule again."
    ),
    apply=apply,
    is_present=is_present,
    remove=remove,
    adoption="finetune",
    cost_of_adoption=(
        "A constitution in plain text; critique and revision of every answer, fine-tuning on "
        "revisions, then preference learning with labels under the principles."
    ),
    nothing_when=(
        "The model is too small to find fault with its answers, or the risk lies in what it does "
        "and not in what it says."
    ),
    pitfalls=(
        "A small model copies the critique's prompt instead of criticising: read fifty before "
        "training on ten thousand.",
        "It learns to refuse: measure help on harmless prompts beside harm.",
        "Principles overlap and conflict; draw one a revision at random.",
        "The training set holds the harmful prompts, and first answers to them: keep it as "
        "carefully as the weights.",
    ),
    sources=(
        BAI_2022,
        LEE_2023,
    ),
    evidence=(
        Evidence(
            claim="People found its answers less harmful than those of RLHF with labels by people, "
            "at equal help, and it explains its refusals instead of evading.",
            source=BAI_2022,
        ),
        Evidence(
            claim="Critiques help smaller models; for the largest, revising without one does as "
            "well.",
            source=BAI_2022,
        ),
    ),
    orientation={
        "en": "Harm is where labels are worst: people must read it, judge it thousands of times, "
        "and the rule they followed is nowhere written. Here the rule comes first, as a page of "
        "principles. The model answers, finds fault with its answer under a principle, rewrites "
        "it, and is trained on the rewritten ones; then it compares pairs under the principles, "
        "and is trained on that. What it was taught can be read and changed. A model too weak to "
        "criticise cannot teach itself.",
        "es": "El daño es donde las etiquetas son peores: alguien debe leerlo y juzgarlo miles de "
        "veces, y la regla que siguió no está escrita en ningún sitio. Aquí la regla va primero, "
        "como una página de principios. El modelo responde, critica su respuesta según un "
        "principio, la reescribe y se entrena con lo reescrito; después compara pares según los "
        "principios y se entrena con eso. Lo enseñado se puede leer y cambiar. Un modelo "
        "demasiado débil para criticar no puede enseñarse a sí mismo.",
    },
    diagram=(
        "prompts that invite harm",
        "+the model's answer, its critique under a principle, its revision",
        "fine-tuning on revisions",
        "~labels by people => labels by the model under the principles",
        "preference learning on those pairs",
    ),
    module="worthit.align.constitution:criticise",
    parity=("the conversations of critique and revision (tests/align/test_feedback.py)",),
    experiment="worthit.lab.experiments.constitutional_ai:EXPERIMENT",
)
