"""Contrast-consistent search: a direction on which a statement and its denial sum to one.

Changes: nothing of the model; a direction is found without labels.
Relieves: opacity: what a model takes for true, where no label can be trusted.
Does nothing when: another feature that the two readings negate is stronger than truth.
Costs: two readings of each question, and a search of seconds.
"""

from __future__ import annotations

from worthit.spec.case import Case
from worthit.techniques._record import Evidence, Source, Technique
from worthit.techniques.interpretability._inside import is_looked_into, left_alone, looked_into

BURNS_2022 = Source(
    cite="Burns et al. 2022",
    title="Discovering Latent Knowledge in Language Models Without Supervision",
    id="arXiv:2212.03827",
    where="section 2.2",
)
FARQUHAR_2023 = Source(
    cite="Farquhar et al. 2023",
    title="Challenges with unsupervised LLM knowledge discovery",
    id="arXiv:2312.10029",
    where="section 4",
)


def apply(case: Case) -> Case:
    """Return `case` with a direction that was found without labels."""
    return looked_into(case, "ccs")


def is_present(case: Case) -> bool:
    """Whether such a direction is in use."""
    return is_looked_into(case, "ccs")


def remove(case: Case) -> Case:
    """Return `case` left alone."""
    return left_alone(case)


TECHNIQUE = Technique(
    id="ccs",
    name="Contrast-consistent search",
    relieves=("opacity",),
    bottleneck=(
        "What a model takes for true may differ from what it says, and there are no "
        "labels that one would trust more."
    ),
    apply=apply,
    is_present=is_present,
    remove=remove,
    adoption="drop-in",
    cost_of_adoption=(
        "Both readings of some hundred questions, and minutes to check it against a random probe."
    ),
    nothing_when=(
        "The model does not represent truth linearly, as small ones do not; or the two "
        "readings differ in another feature more than in truth."
    ),
    pitfalls=(
        "It finds any feature that both readings negate: sentiment, who is said to "
        "believe it, the last word.",
        "Normalise each side by itself, or the words yes and no are all that it finds.",
        "The sign is not identified: accuracy without labels is the better of the two "
        "signs, so that chance is above a half.",
        "Restarts differ: keep the least loss, and report the spread.",
        "A random direction on normalised contrast pairs often does nearly as well: report it.",
    ),
    sources=(
        BURNS_2022,
        FARQUHAR_2023,
    ),
    evidence=(
        Evidence(
            claim="On average four points above zero-shot answers, over six models and ten "
            "data sets.",
            source=BURNS_2022,
        ),
        Evidence(
            claim="Arbitrary features fit the loss as well as knowledge, in theory and where "
            "one was planted.",
            source=FARQUHAR_2023,
        ),
    ),
    orientation={
        "en": "Ask every question twice, once completed with yes and once with no. If the "
        "model holds some answer to be true, something inside should flip between the "
        "two. This searches for a direction in which the two readings always disagree, "
        "and with confidence, without being told a single right answer. It is elegant "
        "and fragile: whatever else flips between the two readings will do, and on "
        "small models that is usually what is found.",
        "es": "Haz cada pregunta dos veces, una completada con sí y otra con no. Si el "
        "modelo tiene alguna respuesta por cierta, algo dentro debería invertirse "
        "entre ambas. Esto busca una dirección en la que las dos lecturas siempre "
        "discrepen, y con seguridad, sin que nadie le diga una sola respuesta "
        "correcta. Es elegante y frágil: cualquier otra cosa que se invierta sirve "
        "igual, y en modelos pequeños suele ser eso lo que se halla.",
    },
    diagram=(
        "states h+ with yes, h- with no",
        "~each side => minus its own mean, at deviation 1",
        "+p(h+) = 1 - p(h-), and neither near a half",
    ),
    module="worthit.interp.ccs:fit_ccs",
    parity=("the loss by hand, planted features (tests/interp/test_ccs.py)",),
    experiment="worthit.lab.experiments.ccs:EXPERIMENT",
)
