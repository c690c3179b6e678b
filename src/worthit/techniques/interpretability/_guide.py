"""Which technique looks inside a model for what: the decision guide, in the order to try.

A need comes first, then what is at hand: labels, contrast pairs, or neither.
"""

from __future__ import annotations

from collections.abc import Iterator

from worthit._record import record
from worthit.errors import unknown_name
from worthit.spec.case import Inside


@record
class Option:
    """A technique, and when it is the one, by language."""

    technique: str
    when: dict[str, str]


@record
class Need:
    """What is wanted of a model's activations, as a question, and what answers it, best first."""

    id: Inside
    question: dict[str, str]
    options: tuple[Option, ...]
    caution: dict[str, str]


def _option(technique: str, en: str, es: str) -> Option:
    return Option(technique=technique, when={"en": en, "es": es})


GUIDE: dict[Inside, Need] = {
    "represent": Need(
        id="represent",
        question={
            "en": "What does the model represent?",
            "es": "¿Qué representa el modelo?",
        },
        options=(
            _option(
                "linear-probe",
                "You can name the property and label a few hundred texts.",
                "Sabes nombrar la propiedad y etiquetar unos cientos de textos.",
            ),
            _option(
                "sae",
                "You cannot name it: you want a vocabulary, and have millions of tokens.",
                "No sabes nombrarla: quieres un vocabulario y tienes millones de tokens.",
            ),
            _option(
                "ccs",
                "There are two readings of each text and no labels; count on failing.",
                "Cada texto tiene dos lecturas y no hay etiquetas; cuenta con que falle.",
            ),
        ),
        caution={
            "en": "That a probe reads a property does not mean that the model uses it.",
            "es": "Que una sonda lea una propiedad no significa que el modelo la use.",
        },
    ),
    "control": Need(
        id="control",
        question={
            "en": "How do I change behaviour without training?",
            "es": "¿Cómo cambio el comportamiento sin entrenar?",
        },
        options=(
            _option(
                "difference-in-means",
                "Contrast pairs exist: this is the direction; the rows below apply it.",
                "Hay pares de contraste: esta es la dirección; las filas siguientes la aplican.",
            ),
            _option(
                "activation-addition",
                "More or less of one behaviour, with a strength to turn.",
                "Más o menos de un comportamiento, con una intensidad que se ajusta.",
            ),
            _option(
                "directional-ablation",
                "One behaviour must go, everywhere, at no cost at run time.",
                "Un comportamiento debe desaparecer, en todas partes, sin coste al ejecutar.",
            ),
            _option(
                "nullspace-projection",
                "No linear reader may find the concept any more, at the smallest change.",
                "Ningún lector lineal debe hallar ya el concepto, con el menor cambio.",
            ),
            _option(
                "conceptor",
                "Several behaviours at once, combined by and, or, not.",
                "Varios comportamientos a la vez, combinados con y, o, no.",
            ),
            _option(
                "sae-steering",
                "No pairs, but a latent whose examples show the behaviour.",
                "Sin pares, pero con un latente cuyos ejemplos muestran el comportamiento.",
            ),
            _option(
                "knowledge-editing",
                "One fact, not a behaviour.",
                "Un hecho, no un comportamiento.",
            ),
        ),
        caution={
            "en": "Report a random direction of the same length and the perplexity of what is "
            "said beside every strength.",
            "es": "Junto a cada intensidad, informa de una dirección al azar de igual longitud y "
            "de la perplejidad de lo dicho.",
        },
    ),
    "circuit": Need(
        id="circuit",
        question={
            "en": "Which parts compute this answer?",
            "es": "¿Qué partes calculan esta respuesta?",
        },
        options=(
            _option(
                "activation-patching",
                "Pairs of prompts differ in one thing and in the answer.",
                "Hay pares de textos que difieren en una cosa y en la respuesta.",
            ),
            _option(
                "sae",
                "The parts are found, and you want to know what they carry.",
                "Las partes están halladas y quieres saber qué llevan.",
            ),
        ),
        caution={
            "en": "A circuit explains the contrast of its prompts, not the task: try others.",
            "es": "Un circuito explica el contraste de sus textos, no la tarea: pruébalo en otros.",
        },
    ),
    "debug": Need(
        id="debug",
        question={
            "en": "Why did it say this?",
            "es": "¿Por qué dijo esto?",
        },
        options=(
            _option(
                "linear-probe",
                "Ask at every layer where the right answer is still readable.",
                "Pregunta en cada capa hasta dónde se lee aún la respuesta correcta.",
            ),
            _option(
                "activation-patching",
                "You know the layer, and want to know which position or head did it.",
                "Conoces la capa y quieres saber qué posición o cabeza lo hizo.",
            ),
            _option(
                "uncertainty-features",
                "The question is only whether it knew.",
                "La pregunta es solo si lo sabía.",
            ),
        ),
        caution={
            "en": "What is readable at layer 0 was in the text, not in the model.",
            "es": "Lo que se lee en la capa 0 estaba en el texto, no en el modelo.",
        },
    ),
    "detect": Need(
        id="detect",
        question={
            "en": "Can its states show what its text hides?",
            "es": "¿Muestran sus estados lo que su texto oculta?",
        },
        options=(
            _option(
                "uncertainty-features",
                "Errors that the model is unsure of: the cheapest signals come first.",
                "Errores de los que el modelo duda: primero las señales más baratas.",
            ),
            _option(
                "linear-probe",
                "Labelled examples exist of what is to be detected.",
                "Hay ejemplos etiquetados de lo que se quiere detectar.",
            ),
            _option(
                "ccs",
                "No labels can be trusted; check it against a random probe.",
                "No hay etiquetas fiables; compárala con una sonda al azar.",
            ),
        ),
        caution={
            "en": "A model that is trained against a probe learns to pass it: never train on the "
            "detector that you rely on.",
            "es": "Un modelo entrenado contra una sonda aprende a pasarla: nunca entrenes con el "
            "detector del que te fías.",
        },
    ),
}


def needs_of(technique: str) -> Iterator[Inside]:
    """The needs that a technique answers; its kind does where it is a kind of autoencoder."""
    name = "sae" if technique.endswith("-sae") else technique
    for need in GUIDE.values():
        if name in {option.technique for option in need.options}:
            yield need.id


def guide(need: str) -> Need:
    """What answers `need`.

    Raises:
        UnknownName: nobody needs that.
    """
    for known in GUIDE.values():
        if known.id == need:
            return known
    raise unknown_name("need", need, GUIDE)
