"""Uncertainty features: what the logits and states say about whether an answer will be wrong.

Changes: nothing; every answer comes with a calibrated chance of being wrong.
Relieves: opacity: whether the model knew.
Does nothing when: the model is confidently wrong, or answers are nearly all right.
Costs: labelled questions to calibrate on; several samples an answer for agreement.
"""

from __future__ import annotations

from worthit.spec.case import Case
from worthit.techniques._record import Evidence, Source, Technique
from worthit.techniques.interpretability._inside import is_looked_into, left_alone, looked_into

KADAVATH_2022 = Source(
    cite="Kadavath et al. 2022",
    title="Language Models (Mostly) Know What They Know",
    id="arXiv:2207.05221",
)
KUHN_2023 = Source(
    cite="Kuhn et al. 2023",
    title="Semantic Uncertainty: Linguistic Invariances for Uncertainty Estimation in "
    "Natural Language Generation",
    id="arXiv:2302.09664",
    where="equation 8",
)
AZARIA_2023 = Source(
    cite="Azaria and Mitchell 2023",
    title="The Internal State of an LLM Knows When It's Lying",
    id="arXiv:2304.13734",
)
LEVINSTEIN_2023 = Source(
    cite="Levinstein and Herrmann 2023",
    title="Still No Lie Detector for Language Models: Probing Empirical and Conceptual Roadblocks",
    id="arXiv:2307.00175",
)


def apply(case: Case) -> Case:
    """Return `case` with every answer scored for being wrong."""
    return looked_into(case, "uncertainty-features", least_labels=50)


def is_present(case: Case) -> bool:
    """Whether answers are scored for being wrong."""
    return is_looked_into(case, "uncertainty-features")


def remove(case: Case) -> Case:
    """Return `case` left alone."""
    return left_alone(case)


TECHNIQUE = Technique(
    id="uncertainty-features",
    name="Uncertainty features",
    relieves=("opacity",),
    bottleneck=("Wrong answers read like right ones, and someone has to decide which to pass on."),
    apply=apply,
    is_present=is_present,
    remove=remove,
    adoption="drop-in",
    cost_of_adoption=(
        "Fifty or more questions with known answers; agreement takes five or more answers to each."
    ),
    nothing_when=(
        "Errors are of things that the model believes: it is as sure of them as of the rest."
    ),
    pitfalls=(
        "A score that ranks well may still be no probability: calibrate it on other "
        "questions, and give its error.",
        "Give the AUROC an interval; on fifty questions it is wide, and beating "
        "entropy is rarely shown.",
        "Entropy of the first token counts ways to begin, not answers: cluster what is said.",
        "Probes of truth learn the data set: test on another one, and against layer 0 "
        "and shuffled labels.",
    ),
    sources=(
        KADAVATH_2022,
        KUHN_2023,
        AZARIA_2023,
        LEVINSTEIN_2023,
    ),
    evidence=(
        Evidence(
            claim="Larger models are well calibrated on multiple choice, and can say whether "
            "they know.",
            source=KADAVATH_2022,
        ),
        Evidence(
            claim="Entropy over meanings tells errors better than entropy over words.",
            source=KUHN_2023,
        ),
        Evidence(
            claim="Probes of truth fail to generalise to negated statements.",
            source=LEVINSTEIN_2023,
        ),
    ),
    orientation={
        "en": "Before it errs, a model often wavers: several next words are nearly as "
        "likely, or it answers differently when asked again. Such signs can be turned "
        "into a chance of being wrong, and questions above a threshold handed to "
        "someone else. The cheapest sign, how sure it was of its first word, is hard "
        "to beat. What it cannot catch is what the model firmly believes, so the "
        "honest product is a curve: how many errors are left at which share of "
        "answers.",
        "es": "Antes de errar, un modelo suele dudar: varias palabras siguientes son casi "
        "igual de probables, o responde distinto al preguntarle otra vez. Esas señales "
        "pueden convertirse en una probabilidad de error, y las preguntas sobre un "
        "umbral pasarse a otro. La más barata, lo seguro que estaba de su primera "
        "palabra, es difícil de superar. No atrapa lo que el modelo cree con firmeza, "
        "así que lo honesto es una curva: cuántos errores quedan con qué parte de "
        "respuestas.",
    },
    diagram=(
        "question, answer, logits and states",
        "+entropy, margin, agreement of samples, a probe",
        "+chance of being wrong, calibrated on other questions",
        "answer, or abstain",
    ),
    module="worthit.interp.detect:detect",
    parity=(
        "scikit-learn AUROC and Brier score (tests/interp/test_calibration.py)",
        "calibration error, risk by coverage and Wilson intervals by hand "
        "(tests/interp/test_calibration.py)",
    ),
    experiment="worthit.lab.experiments.uncertainty_features:EXPERIMENT",
)
