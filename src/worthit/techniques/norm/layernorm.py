"""LayerNorm: every vector is centred and divided by its standard deviation.

Changes: the kind of every norm, with a bias. Matched: everything else; parameters grow by the
biases.
Relieves: stability: activations keep their scale however deep the stack.
Does nothing when: the model normalises by the root mean square, which is as stable.
Costs: nothing that counts; one reduction more than RMSNorm.
"""

from __future__ import annotations

from dataclasses import replace

from worthit.spec.case import Case
from worthit.techniques._mixers import require_absent
from worthit.techniques._record import Evidence, Source, Technique
from worthit.techniques.norm._parts import NARANG_2021, map_norms, norms

BA_2016 = Source(
    cite="Ba, Kiros and Hinton 2016",
    title="Layer Normalization",
    id="arXiv:1607.06450",
    where="section 3",
)


def apply(case: Case) -> Case:
    """Return `case` with LayerNorm, weight and bias, for every norm."""
    require_absent(is_present(case), "layernorm", "every norm centres its input")
    return map_norms(
        case, lambda n: replace(n, kind="layernorm", has_bias=True, has_unit_offset=False)
    )


def is_present(case: Case) -> bool:
    """Whether every norm is a LayerNorm."""
    return all(n.kind == "layernorm" for n in norms(case))


TECHNIQUE = Technique(
    id="layernorm",
    name="Layer normalisation",
    relieves=("stability",),
    bottleneck="Activations drift in scale from layer to layer, and deep stacks stop training.",
    apply=apply,
    module="worthit.nn.norm.layernorm:LayerNorm",
    parity=(
        "torch `nn.LayerNorm`: outputs and gradients, fp32 and bf16 (tests/nn/norm/test_norms.py)",
    ),
    experiment="worthit.lab.experiments.layernorm:EXPERIMENT",
    is_present=is_present,
    adoption="retrain",
    cost_of_adoption="A training run; from RMSNorm it would be a step back in time.",
    nothing_when="The model has RMSNorm, which gives the same stability with less work.",
    pitfalls=(
        "The small constant stands inside the square root, and its value matters in 16 bits.",
        "Mean and variance need fp32 in one pass with care, or two passes.",
        "Variants without a bias or without any weight are other models, not other settings.",
    ),
    sources=(BA_2016,),
    evidence=(
        Evidence(
            claim="Replacing it by RMSNorm in a T5 baseline improved quality a little and trained "
            "faster, so centring is not what matters.",
            source=NARANG_2021,
        ),
    ),
    orientation={
        "en": "Each token's vector is shifted to mean zero and scaled to unit variance, then "
        "stretched and moved by learned numbers. Unlike statistics over a batch this works for a "
        "single token, in decoding as in training. It made deep transformers trainable. Newer "
        "models drop the centring, because the scale is what had to be controlled.",
        "es": "El vector de cada token se desplaza a media cero y se escala a varianza uno, y "
        "luego se estira y se mueve con números aprendidos. A diferencia de las estadísticas de "
        "lote, esto sirve para un solo token, al decodificar igual que al entrenar. Hizo "
        "entrenables los transformadores profundos. Los modelos nuevos prescinden del centrado, "
        "porque lo que había que controlar era la escala.",
    },
    diagram=(
        "x",
        "+subtract the mean",
        "~divide by: root mean square => standard deviation",
        "times a weight",
        "+plus a bias",
    ),
)
