"""ReLU: negative activations become zero.

Changes: the activation of every feed-forward; a gate goes away and the width grows by half.
Matched: parameters of the feed-forward.
Relieves: stability: gradients pass deep stacks, which saturating activations stop.
Does nothing when: any modern activation is in place.
Costs: a little quality against smooth and gated activations; training anew.
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

NAIR_2010 = Source(
    cite="Nair and Hinton 2010",
    title="Rectified Linear Units Improve Restricted Boltzmann Machines",
    id="ICML 2010",
)
MIRZADEH_2023 = Source(
    cite="Mirzadeh et al. 2023",
    title="ReLU Strikes Back: Exploiting Activation Sparsity in Large Language Models",
    id="arXiv:2310.04564",
    where="section 3",
)


def apply(case: Case) -> Case:
    """Return `case` with ReLU feed-forwards of equal parameters."""
    require_feedforwards(case, "relu")
    require_absent(is_present(case), "relu", "the feed-forwards rectify")
    return map_feedforwards(case, lambda ffn: ungated(ffn, "relu"))


def is_present(case: Case) -> bool:
    """Whether every feed-forward is an ungated ReLU, plain or squared."""
    found = feedforwards(case)
    return bool(found) and all(
        ffn.activation in ("relu", "relu2") and not ffn.is_gated for ffn in found
    )


TECHNIQUE = Technique(
    id="relu",
    name="Rectified linear activation",
    relieves=("stability",),
    bottleneck="Saturating activations pass on almost no gradient.",
    apply=apply,
    module="worthit.nn.norm.relu:relu",
    parity=(
        "transformers 5.23 `ACT2FN`, relu and its square: outputs and gradients "
        "(tests/nn/norm/test_activations.py)",
    ),
    experiment="worthit.lab.experiments.relu:EXPERIMENT",
    is_present=is_present,
    adoption="retrain",
    cost_of_adoption=(
        "A training run; turning a trained model to ReLU takes a fine-tuning on billions of tokens."
    ),
    nothing_when=(
        "The activation is GELU, SiLU or gated already: those do not saturate either. Its zeros "
        "save time only with kernels that skip them."
    ),
    pitfalls=(
        "A unit that is negative for every input never recovers.",
        "Nine in ten activations may be zero, and dense kernels still multiply all of them.",
        "The squared form has a wider range, which low precision notices.",
    ),
    sources=(NAIR_2010, MIRZADEH_2023),
    evidence=(
        Evidence(
            claim="At equal parameters the held-out log-perplexity of a T5 is 1.677, against 1.679 "
            "for GELU and 1.636 for SwiGLU.",
            source=SHAZEER_2020,
        ),
        Evidence(
            claim="Models of 6.7B parameters with ReLU keep nearly the quality of smooth "
            "activations, with zeros that can be skipped in decoding.",
            source=MIRZADEH_2023,
        ),
    ),
    orientation={
        "en": "Keep what is positive, drop the rest. It is the cheapest activation, and it was "
        "the one that let deep networks train. Smooth and gated activations have since gained a "
        "little quality. Its remaining charm is that most of its outputs are exactly zero, which "
        "special kernels can use to skip work.",
        "es": "Conserva lo positivo y descarta lo demás. Es la activación más barata y la que "
        "permitió entrenar redes profundas. Desde entonces, las activaciones suaves y las que "
        "llevan compuerta han ganado algo de calidad. Su encanto restante es que la mayoría de sus "
        "salidas son exactamente cero, cosa que unos núcleos especiales pueden aprovechar para "
        "saltarse trabajo.",
    },
    diagram=(
        "x",
        "~up: two matrices of d_ff => one of 3/2 d_ff",
        "~activation: smooth or gated => max(0, x)",
        "down",
    ),
)
