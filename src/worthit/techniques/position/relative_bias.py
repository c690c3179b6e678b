"""Relative bias: each head adds a learned number to the score for each range of distances.

Changes: the position scheme; 32 distance buckets a head, shared by all layers (T5). Matched:
everything else; parameters grow by 32 a head.
Relieves: quality: attention without positions sees a set of words, and absolute ones do not shift.
Does nothing when: the layers read in order anyway (recurrent mixers).
Costs: training anew; a bias matrix that fast attention kernels may not take.
"""

from __future__ import annotations

from worthit.spec.case import Case
from worthit.spec.model import Position
from worthit.techniques._record import Evidence, Source, Technique
from worthit.techniques.position._positions import (
    KAZEMNEJAD_2023,
    is_kind,
    set_position,
    without_position,
)

RAFFEL_2019 = Source(
    cite="Raffel et al. 2019",
    title="Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer",
    id="arXiv:1910.10683",
    where="section 2.1",
)
SHAW_2018 = Source(
    cite="Shaw, Uszkoreit and Vaswani 2018",
    title="Self-Attention with Relative Position Representations",
    id="arXiv:1803.02155",
    where="section 3",
)


def apply(case: Case) -> Case:
    """Return `case` with a learned bias for each head and range of distances."""
    return set_position(case, "relative-bias", Position(kind="relative-bias"))


def is_present(case: Case) -> bool:
    """Whether scores carry a learned bias by distance."""
    return is_kind(case, "relative-bias")


def remove(case: Case) -> Case:
    """Return `case` without the bias, told nothing about order."""
    return without_position(case)


TECHNIQUE = Technique(
    id="relative-bias",
    name="Relative position bias (T5)",
    relieves=("quality",),
    bottleneck="What matters is how far apart two words are, and absolute positions do not say so.",
    apply=apply,
    module="worthit.nn.position.relative_bias:RelativeBias",
    experiment="worthit.lab.experiments.relative_bias:EXPERIMENT",
    parity=(
        "transformers 5.23 `T5Attention`: the bucket of every distance "
        "(tests/nn/position/test_relative_bias.py)",
        "a loop over queries and heads: attention with the bias "
        "(tests/nn/position/test_relative_bias.py)",
    ),
    is_present=is_present,
    remove=remove,
    adoption="retrain",
    cost_of_adoption="A training run; 32 numbers a head are all that is added.",
    nothing_when=(
        "Rotary positions are in place, which are relative as well and need no bias, or the "
        "layers are recurrent."
    ),
    pitfalls=(
        "Fused attention must support an additive bias, or the score matrix comes back to memory.",
        "Beyond 128 tokens all distances share one bucket: far and farther look the same.",
        "T5 does not scale its scores by the root of the head width; mixing conventions breaks it.",
        "Cached decoding must build the bias over the length of the cache, not of the query.",
    ),
    sources=(RAFFEL_2019, SHAW_2018),
    evidence=(
        Evidence(
            claim="On synthetic reasoning tasks it generalises to longer inputs better than "
            "rotary, linear-bias and absolute positions, and a little less well than none at all.",
            source=KAZEMNEJAD_2023,
        ),
    ),
    orientation={
        "en": "Before the softmax, every head adds a number that depends only on how far the key "
        "lies behind the query: one for each small distance and one for each range of larger ones. "
        "Order then shifts with the text. It is cheap in parameters and costs speed wherever a "
        "kernel cannot add a bias on the fly.",
        "es": "Antes del softmax, cada cabeza suma un número que depende solo de cuánto queda la "
        "clave por detrás de la consulta: uno por cada distancia pequeña y uno por cada intervalo "
        "de distancias mayores. Así el orden se desplaza con el texto. Es barato en parámetros y "
        "cuesta velocidad allí donde el núcleo de cálculo no puede sumar un sesgo al vuelo.",
    },
    diagram=(
        "q, k",
        "scores q k",
        "+add a learned bias for the bucket of i - j, one a head",
        "softmax, times v",
    ),
)
