"""Sinusoidal positions: fixed waves of many lengths are added to the embedding.

Changes: the position scheme; learned tables and biases go away. Matched: everything else.
Relieves: quality: attention without positions sees a set of words. No parameters, no length limit.
Does nothing when: the layers read in order anyway (recurrent mixers).
Costs: training anew; lengths that were not trained break at once.
"""

from __future__ import annotations

from dataclasses import replace

from worthit.spec.case import Case
from worthit.spec.model import Position
from worthit.techniques._record import Evidence, Technique
from worthit.techniques.position._positions import (
    PRESS_2021,
    VASWANI_2017,
    is_kind,
    set_position,
    without_position,
)


def apply(case: Case) -> Case:
    """Return `case` with sinusoids added to the embedded tokens."""
    return set_position(case, "sinusoidal", Position(kind="sinusoidal"))


def is_present(case: Case) -> bool:
    """Whether positions are sinusoids added to the embedding."""
    return is_kind(case, "sinusoidal")


def remove(case: Case) -> Case:
    """Return `case` with a model that is told nothing about order."""
    return without_position(case)


TECHNIQUE = Technique(
    id="sinusoidal",
    name="Sinusoidal positions",
    relieves=("quality",),
    bottleneck="Attention treats its input as a set: without positions word order is lost.",
    apply=apply,
    module="worthit.nn.position.sinusoidal:table",
    experiment="worthit.lab.experiments.sinusoidal:EXPERIMENT",
    parity=(
        "transformers 5.23 `MarianSinusoidalPositionalEmbedding` (tests/nn/position/test_added.py)",
        "the paper's formula, term by term (tests/nn/position/test_added.py)",
    ),
    is_present=is_present,
    remove=remove,
    adoption="retrain",
    cost_of_adoption="A training run; every weight was learnt against the old scheme.",
    nothing_when=(
        "The model has a relative scheme already, which is as cheap and generalises better, or "
        "its layers are recurrent."
    ),
    pitfalls=(
        "Two conventions divide the exponent by d/2 or by d/2 - 1, and interleave sines and "
        "cosines or stack them: weights do not carry over between the two.",
        "The embedding is usually scaled by the root of its width, or the waves drown it.",
        "Being defined at any position is not the same as working there.",
    ),
    sources=(VASWANI_2017, PRESS_2021),
    evidence=(
        Evidence(
            claim="In translation, sinusoids and learned positions gave nearly identical quality.",
            source=replace(VASWANI_2017, where="section 3.5, table 3 row E"),
        ),
        Evidence(
            claim="Perplexity rises soon after the trained length is passed by a few dozen tokens.",
            source=replace(PRESS_2021, where="section 2"),
        ),
    ),
    orientation={
        "en": "Each position gets a vector of sines and cosines from fast to slow, added once to "
        "the embedded token. It needs no parameters and has a value for every position, which was "
        "hoped to let models read longer texts than they were trained on. That hope failed; "
        "schemes that act on the distance inside attention have replaced it.",
        "es": "Cada posición recibe un vector de senos y cosenos, de rápidos a lentos, que se suma "
        "una sola vez al token incrustado. No necesita parámetros y tiene un valor para cualquier "
        "posición, con la esperanza de leer textos más largos que los del entrenamiento. Esa "
        "esperanza no se cumplió; la han sustituido los esquemas que actúan sobre la distancia "
        "dentro de la atención.",
    },
    diagram=(
        "tokens",
        "embedding",
        "+add sines and cosines of the position",
        "layers",
    ),
)
