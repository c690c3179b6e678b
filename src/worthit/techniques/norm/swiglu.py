"""SwiGLU: one projection gates another before the feed-forward comes back down.

Changes: every feed-forward to three matrices of two thirds of the width, with SiLU on the gate.
Matched: parameters of the feed-forward, and so its FLOPs.
Relieves: quality at equal size and compute.
Does nothing when: the feed-forward is gated already.
Costs: training anew; a third more activation memory a unit, and outliers that int8 dislikes.
"""

from __future__ import annotations

from worthit.spec.case import Case
from worthit.techniques._mixers import require_absent
from worthit.techniques._record import Evidence, Technique
from worthit.techniques.norm._parts import (
    NARANG_2021,
    SHAZEER_2020,
    feedforwards,
    gated,
    map_feedforwards,
    require_feedforwards,
    ungated,
)


def apply(case: Case) -> Case:
    """Return `case` with SwiGLU feed-forwards of equal parameters."""
    require_feedforwards(case, "swiglu")
    require_absent(is_present(case), "swiglu", "the feed-forwards are gated by SiLU")
    return map_feedforwards(case, gated)


def is_present(case: Case) -> bool:
    """Whether every feed-forward is gated by SiLU, clamped or not."""
    found = feedforwards(case)
    return bool(found) and all(
        ffn.is_gated and ffn.activation in ("silu", "clamped-swish") for ffn in found
    )


def remove(case: Case) -> Case:
    """Return `case` with ungated GELU of equal parameters."""
    return map_feedforwards(case, lambda ffn: ungated(ffn, "gelu"))


TECHNIQUE = Technique(
    id="swiglu",
    name="SwiGLU (gated feed-forward)",
    relieves=("quality",),
    bottleneck="A feed-forward with a fixed curve cannot let one feature switch another.",
    apply=apply,
    module="worthit.nn.norm.swiglu:silu",
    parity=(
        "transformers 5.23 `ACT2FN`, silu: outputs and gradients "
        "(tests/nn/norm/test_activations.py)",
        "transformers 5.23 `LlamaMLP`: outputs and gradients (tests/nn/norm/test_activations.py)",
        "transformers 5.23 `GptOssExperts`: the clamped gate (tests/nn/norm/test_activations.py)",
    ),
    experiment="worthit.lab.experiments.swiglu:EXPERIMENT",
    is_present=is_present,
    remove=remove,
    adoption="retrain",
    cost_of_adoption="A training run; a third matrix comes in and the width shrinks to two thirds.",
    nothing_when=(
        "The feed-forward is gated already, by SiLU or by GELU: the two are equally good. Speed "
        "and memory for weights do not change."
    ),
    pitfalls=(
        "Leaving the width as it was makes the layer half as large again and the comparison "
        "unfair.",
        "Products of two projections produce large outliers, which weight-and-activation "
        "quantization must handle.",
        "Fused weights store gate and up one after the other, or interleaved; mistaking them is "
        "silent.",
    ),
    sources=(SHAZEER_2020, NARANG_2021),
    evidence=(
        Evidence(
            claim="At equal parameters and compute the held-out log-perplexity of a T5 falls from "
            "1.677 with ReLU to 1.636, and to 1.633 with a GELU gate.",
            source=SHAZEER_2020,
        ),
        Evidence(
            claim="Gated activations are among the few changes that improved a T5 baseline in an "
            "independent comparison.",
            source=NARANG_2021,
        ),
    ),
    orientation={
        "en": "The feed-forward gets a second projection of the input, which multiplies the "
        "first, so that features can switch each other on and off. With three matrices the width "
        "drops to two thirds, so size and compute stay the same. Quality improves a little at no "
        "running cost; nobody quite knows why. There is nothing to gain in speed.",
        "es": "La capa densa recibe una segunda proyección de la entrada que multiplica a la "
        "primera, de modo que unas características pueden activar o apagar a otras. Con tres "
        "matrices el ancho baja a dos tercios, así que el tamaño y el cálculo no cambian. La "
        "calidad mejora un poco sin coste al ejecutar; nadie sabe muy bien por qué. En velocidad "
        "no hay nada que ganar.",
    },
    diagram=(
        "x",
        "~up: one matrix of d_ff => two of 2/3 d_ff, gate and up",
        "~activation: ReLU or GELU => SiLU(gate) * up",
        "down",
    ),
)
