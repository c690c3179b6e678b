"""Soft gating: every expert runs and a learned gate weighs their outputs.

Changes: every dense feed-forward into `n_experts` experts of `d_ff / n_experts`, all of them
active. Matched: parameters and compute, but for the gate.
Relieves: quality, by letting parts of the layer specialise; nothing that cost can see.
Does nothing when: speed or memory is what is wanted: no expert is ever skipped.
Costs: narrow matrices instead of one wide one, and a gate.
"""

from __future__ import annotations

from dataclasses import replace

from worthit.spec.case import Case
from worthit.spec.model import MoE
from worthit.techniques._mixers import WIDTH_MULTIPLE, rounded
from worthit.techniques._record import Evidence, Source, Technique
from worthit.techniques.moe._experts import (
    SHAZEER_2017,
    check_counts,
    map_mixtures,
    mixtures,
    to_experts,
)

JACOBS_1991 = Source(
    cite="Jacobs et al. 1991",
    title="Adaptive Mixtures of Local Experts",
    id="Neural Computation 3(1), pages 79 to 87",
)
JORDAN_1994 = Source(
    cite="Jordan and Jacobs 1994",
    title="Hierarchical Mixtures of Experts and the EM Algorithm",
    id="Neural Computation 6(2), pages 181 to 214",
)


def apply(case: Case, *, n_experts: int = 8) -> Case:
    """Return `case` with `n_experts` experts that all run for every token."""
    check_counts("soft-gating", n_experts, n_experts)
    return to_experts(
        case,
        "soft-gating",
        lambda ffn: MoE(
            n_experts=n_experts,
            n_experts_per_token=n_experts,
            expert=replace(ffn, d_ff=max(rounded(ffn.d_ff / n_experts), 1)),
            routing="soft",
            balance="none",
        ),
    )


def is_present(case: Case) -> bool:
    """Whether some mixture runs all of its experts."""
    return any(m.routing == "soft" for m in mixtures(case))


def remove(case: Case) -> Case:
    """Return `case` with one dense feed-forward as wide as all experts together."""
    return map_mixtures(
        case,
        lambda m: (
            replace(m.expert, d_ff=max(m.n_experts * m.expert.d_ff, WIDTH_MULTIPLE))
            if m.routing == "soft"
            else m
        ),
    )


TECHNIQUE = Technique(
    id="soft-gating",
    name="Soft gating (dense mixture of experts)",
    relieves=("quality",),
    bottleneck="One network trained on unlike cases suffers interference between them.",
    apply=apply,
    module="worthit.nn.moe.soft_gating:SoftGating",
    parity=(
        "the sum over all experts, as the paper writes it: outputs and gradients "
        "(tests/nn/moe/test_soft_gating.py)",
    ),
    experiment="worthit.lab.experiments.soft_gating:EXPERIMENT",
    is_present=is_present,
    remove=remove,
    adoption="retrain",
    cost_of_adoption="A training run; gate and experts learn together by plain gradient descent.",
    nothing_when=(
        "Speed, memory or capacity is the problem: all experts run for every token, so that "
        "parameters and compute stay those of the dense layer."
    ),
    pitfalls=(
        "The gate can settle on one expert early; the others then receive no gradient.",
        "Many narrow products use the hardware worse than one wide product.",
        "A gated feed-forward gates its channels already: expect little from gating blocks of "
        "them.",
    ),
    sources=(JACOBS_1991, JORDAN_1994, SHAZEER_2017),
    evidence=(
        Evidence(
            claim="Vowel discrimination: mixtures reached the same accuracy as a single network in "
            "about half of the epochs, each expert on a part of the classes.",
            source=JACOBS_1991,
        ),
    ),
    orientation={
        "en": "The original mixture of experts: several small networks answer, a gate decides how "
        "much each counts, and everything is differentiable. It shows that experts specialise by "
        "themselves. Since all of them run, nothing is saved; the sparse mixtures of today keep "
        "the gate and drop the experts with little weight. Here it is the control that tells how "
        "much of a mixture's effect is gating and how much is sparsity.",
        "es": "La mezcla de expertos original: responden varias redes pequeñas, una compuerta "
        "decide cuánto cuenta cada una y todo es derivable. Muestra que los expertos se "
        "especializan por sí solos. Como todos se ejecutan, no se ahorra nada; las mezclas "
        "dispersas de hoy conservan la compuerta y descartan a los expertos de poco peso. Aquí "
        "sirve de control: dice qué parte del efecto de una mezcla se debe a la compuerta y cuál a "
        "la dispersión.",
    },
    diagram=(
        "x",
        "+gate: softmax over n_experts",
        "~feed-forward: one of d_ff => n_experts of d_ff / n_experts, all of them",
        "+sum of outputs, each times its gate",
        "y",
    ),
)
