"""A linear probe: a logistic regression that reads a property off the activations of a layer.

Changes: nothing of the model; a property of its states can be read.
Relieves: opacity: what a layer makes available is not visible in the text.
Does nothing when: the property stands in the words already, as layer 0 shows.
Costs: some hundred labelled texts and one pass over them.
"""

from __future__ import annotations

from worthit.spec.case import Case
from worthit.techniques._record import Evidence, Source, Technique
from worthit.techniques.interpretability._inside import is_looked_into, left_alone, looked_into

ALAIN_2016 = Source(
    cite="Alain and Bengio 2016",
    title="Understanding intermediate layers using linear classifier probes",
    id="arXiv:1610.01644",
)
HEWITT_2019 = Source(
    cite="Hewitt and Liang 2019",
    title="Designing and Interpreting Probes with Control Tasks",
    id="arXiv:1909.03368",
    where="section 2",
)
BAILEY_2024 = Source(
    cite="Bailey et al. 2024",
    title="Obfuscated Activations Bypass LLM Latent-Space Defenses",
    id="arXiv:2412.09565",
)


def apply(case: Case) -> Case:
    """Return `case` with a probe."""
    return looked_into(case, "linear-probe", least_labels=50)


def is_present(case: Case) -> bool:
    """Whether a probe reads the model."""
    return is_looked_into(case, "linear-probe")


def remove(case: Case) -> Case:
    """Return `case` left alone."""
    return left_alone(case)


TECHNIQUE = Technique(
    id="linear-probe",
    name="Linear probe",
    relieves=("opacity",),
    bottleneck=(
        "Whether the model has a property at hand, and from which layer on, cannot be "
        "told from what it says."
    ),
    apply=apply,
    is_present=is_present,
    remove=remove,
    adoption="drop-in",
    cost_of_adoption=(
        "Fifty or more labelled texts, one pass over them, and a regression of seconds a layer."
    ),
    nothing_when=(
        "The text itself gives the label away: then a probe at layer 0 does as well, "
        "and nothing was learnt about the model."
    ),
    pitfalls=(
        "Report layer 0 and shuffled labels beside every accuracy; topic, length and a "
        "frequent word explain many a probe.",
        "Duplicates or templates on both sides of the split let the probe recognise "
        "texts: split by template.",
        "It reads what is there, not what the model uses: test that by ablating the direction.",
        "A model that is trained against a probe learns to pass it, and keeps the "
        "property where the probe does not look.",
    ),
    sources=(
        ALAIN_2016,
        HEWITT_2019,
        BAILEY_2024,
    ),
    evidence=(
        Evidence(
            claim="A probe that also fits random labels well says little about the "
            "representation: its selectivity is what counts.",
            source=HEWITT_2019,
        ),
        Evidence(
            claim="States can be moved, by inputs or by training, so that probes no longer "
            "fire while behaviour stays.",
            source=BAILEY_2024,
        ),
    ),
    orientation={
        "en": "Collect the inner states of a layer for texts whose label you know, and fit "
        "the simplest classifier to them. If it does well on new texts, the layer "
        "holds the property in plain sight, ready for the next layer to use. Do it at "
        "every layer and you see where the property appears. Before you believe it, "
        "ask the same of the raw words and of shuffled labels: a good part of "
        "published probes would not survive that.",
        "es": "Reúne los estados internos de una capa para textos cuya etiqueta conoces y "
        "ajusta el clasificador más sencillo. Si acierta en textos nuevos, la capa "
        "tiene la propiedad a la vista, lista para que la siguiente la use. Hazlo en "
        "cada capa y verás dónde aparece. Antes de creerlo, pregunta lo mismo a las "
        "palabras en bruto y a etiquetas barajadas: buena parte de las sondas "
        "publicadas no lo resistiría.",
    },
    diagram=(
        "states h of labelled texts, at every layer",
        "+probability = sigmoid(w . h + b), fitted",
        "+the same at layer 0 and with shuffled labels",
    ),
    module="worthit.interp.probe:probe_layers",
    parity=(
        "scikit-learn LogisticRegression on standardised columns: probabilities "
        "(tests/interp/test_probe.py)",
    ),
    experiment="worthit.lab.experiments.linear_probe:EXPERIMENT",
)
