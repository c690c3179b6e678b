"""Difference in means: the direction from the mean of one kind of text to that of the other.

Changes: nothing of the model; a direction of its stream is known.
Relieves: control: what to add or take away so that behaviour moves.
Does nothing when: the two kinds of text differ in more than what is meant, or not linearly.
Costs: two passes over some dozens of contrast pairs.
"""

from __future__ import annotations

from worthit.spec.case import Case
from worthit.techniques._record import Evidence, Source, Technique
from worthit.techniques.interpretability._inside import is_looked_into, left_alone, looked_into

MARKS_2023 = Source(
    cite="Marks and Tegmark 2023",
    title="The Geometry of Truth: Emergent Linear Structure in Large Language Model "
    "Representations of True/False Datasets",
    id="arXiv:2310.06824",
    where="section 5",
)
RIMSKY_2023 = Source(
    cite="Rimsky et al. 2023",
    title="Steering Llama 2 via Contrastive Activation Addition",
    id="arXiv:2312.06681",
    where="section 3",
)
WU_2025 = Source(
    cite="Wu et al. 2025",
    title="AxBench: Steering LLMs? Even Simple Baselines Outperform Sparse Autoencoders",
    id="arXiv:2501.17148",
)


def apply(case: Case) -> Case:
    """Return `case` with a direction from contrast pairs."""
    return looked_into(case, "difference-in-means", least_labels=16)


def is_present(case: Case) -> bool:
    """Whether a difference of means is in use."""
    return is_looked_into(case, "difference-in-means")


def remove(case: Case) -> Case:
    """Return `case` left alone."""
    return left_alone(case)


TECHNIQUE = Technique(
    id="difference-in-means",
    name="Difference in means",
    relieves=(
        "control",
        "opacity",
    ),
    bottleneck=(
        "A behaviour is wanted or unwanted, examples of both exist, and training is "
        "too much for it."
    ),
    apply=apply,
    is_present=is_present,
    remove=remove,
    adoption="drop-in",
    cost_of_adoption=(
        "Sixteen or more contrast pairs, two passes over them, and a layer to choose."
    ),
    nothing_when=(
        "The pairs differ in length, topic or wording too: then the direction is "
        "mostly that. Or the property is not one direction, as the days of the week "
        "are a circle."
    ),
    pitfalls=(
        "The first token is an attention sink with a norm twenty times that of the "
        "others: leave it out of the mean, or the mean is it.",
        "As a classifier the threshold at the middle of the means is poor where "
        "variances differ; fit a threshold, or a probe.",
        "Take means at the position at which behaviour is decided, the last of the "
        "prompt, and choose the layer on held-out pairs.",
        "A random direction of the same length is the least that it must beat.",
    ),
    sources=(
        MARKS_2023,
        RIMSKY_2023,
        WU_2025,
    ),
    evidence=(
        Evidence(
            claim="Directions of mean differences move a model's judgement of truth more "
            "than the normal of a logistic probe that classifies as well.",
            source=MARKS_2023,
        ),
        Evidence(
            claim="For detecting concepts it is the best of the methods compared, sparse "
            "autoencoders included.",
            source=WU_2025,
        ),
    ),
    orientation={
        "en": "Write some pairs of texts that differ in one thing: polite and rude, true and "
        "false. Average the model's inner state over each side and subtract. The arrow "
        "between the two averages is often all that is needed: added, it makes the "
        "model more polite; taken away, less. It costs minutes, and is hard to beat. "
        "What it cannot know is what else your pairs differ in, so that is where to be "
        "careful.",
        "es": "Escribe pares de textos que difieran en una sola cosa: cortés y grosero, "
        "verdadero y falso. Promedia el estado interno del modelo en cada lado y "
        "resta. La flecha entre los dos promedios suele bastar: sumada, el modelo es "
        "más cortés; restada, menos. Cuesta minutos y es difícil de superar. Lo que no "
        "puede saber es en qué más difieren tus pares: ahí hay que tener cuidado.",
    },
    diagram=(
        "states h+ of one kind of text, h- of the other, at one layer and position",
        "+v = mean(h+) - mean(h-)",
        "h, read by v or moved along it",
    ),
    module="worthit.interp.directions:difference_in_means",
    parity=("sums by hand (tests/interp/test_directions.py)",),
    experiment="worthit.lab.experiments.difference_in_means:EXPERIMENT",
)
