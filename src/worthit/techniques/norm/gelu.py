"""GELU: activations are weighted by how likely a normal variable is to lie below them.

Changes: the activation of every feed-forward; a gate goes away and the width grows by half.
Matched: parameters of the feed-forward.
Relieves: quality, a little, against ReLU: a smooth curve and no dead units.
Does nothing when: a gated activation is in place, which is better at equal size.
Costs: training anew.
"""

from __future__ import annotations

from worthit.spec.case import Case
from worthit.techniques._mixers import require_absent
from worthit.techniques._record import Evidence, Source, Technique
from worthit.techniques.norm._parts import (
    SHAZEER_2020,
    feedforwards,
    map_feedforwards,
    require_feedforwards,
    ungated,
)

HENDRYCKS_2016 = Source(
    cite="Hendrycks and Gimpel 2016",
    title="Gaussian Error Linear Units (GELUs)",
    id="arXiv:1606.08415",
    where="section 2",
)


def apply(case: Case) -> Case:
    """Return `case` with GELU feed-forwards of equal parameters."""
    require_feedforwards(case, "gelu")
    require_absent(is_present(case), "gelu", "the feed-forwards use it")
    return map_feedforwards(case, lambda ffn: ungated(ffn, "gelu"))


def is_present(case: Case) -> bool:
    """Whether every feed-forward is an ungated GELU, exact or approximated."""
    found = feedforwards(case)
    return bool(found) and all(
        ffn.activation in ("gelu", "gelu-tanh") and not ffn.is_gated for ffn in found
    )


def remove(case: Case) -> Case:
    """Return `case` with ReLU in its place."""
    return map_feedforwards(case, lambda ffn: ungated(ffn, "relu"))


TECHNIQUE = Technique(
    id="gelu",
    name="Gaussian error linear unit",
    relieves=("quality",),
    bottleneck="A hard threshold throws away whatever lies just below it.",
    apply=apply,
    module="worthit.nn.norm.gelu:gelu",
    parity=(
        "transformers 5.23 `ACT2FN`, exact and tanh: outputs and gradients "
        "(tests/nn/norm/test_activations.py)",
    ),
    experiment="worthit.lab.experiments.gelu:EXPERIMENT",
    is_present=is_present,
    remove=remove,
    adoption="retrain",
    cost_of_adoption="A training run; swapping it into a trained ReLU model changes every output.",
    nothing_when="The feed-forward is gated already; in speed it differs from ReLU by nothing.",
    pitfalls=(
        "The exact form and the approximation by tanh differ by about 5e-4: use the one that the "
        "checkpoint was trained with.",
        "The approximation by a sigmoid differs by forty times as much.",
    ),
    sources=(HENDRYCKS_2016, SHAZEER_2020),
    evidence=(
        Evidence(
            claim="At equal parameters the held-out log-perplexity of a T5 is 1.679, no better "
            "than 1.677 for ReLU; the gated forms reach 1.633 to 1.636.",
            source=SHAZEER_2020,
        ),
    ),
    orientation={
        "en": "Where ReLU cuts at zero, GELU bends: small negative values pass a little and every "
        "unit keeps a gradient. It became the default of a generation of models, from BERT to "
        "GPT-3. Measured at equal size the difference to ReLU is small, and gated activations "
        "have replaced both.",
        "es": "Donde ReLU corta en cero, GELU se curva: los valores negativos pequeños pasan en "
        "parte y toda unidad conserva gradiente. Fue la opción por defecto de una generación de "
        "modelos, de BERT a GPT-3. A igual tamaño, la diferencia con ReLU es pequeña, y las "
        "activaciones con compuerta han reemplazado a ambas.",
    },
    diagram=(
        "x",
        "~up: two matrices of d_ff => one of 3/2 d_ff",
        "~activation: ReLU or gated => x * P(normal < x)",
        "down",
    ),
)
