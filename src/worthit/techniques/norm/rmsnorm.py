"""RMSNorm: vectors are divided by their root mean square, without centring.

Changes: the kind of every norm, without bias. Matched: everything else; parameters shrink by the
biases.
Relieves: the element-wise work of normalising: one reduction less.
Does nothing when: a fused kernel reads the vector once anyway, which compiled runtimes do.
Costs: training anew; quality stays.
"""

from __future__ import annotations

from dataclasses import replace

from worthit.spec.case import Case
from worthit.spec.model import Attention
from worthit.techniques._change import map_attention
from worthit.techniques._mixers import require_absent
from worthit.techniques._record import Evidence, Source, Technique
from worthit.techniques.norm._parts import NARANG_2021, map_norms, norms

ZHANG_2019 = Source(
    cite="Zhang and Sennrich 2019",
    title="Root Mean Square Layer Normalization",
    id="arXiv:1910.07467",
    where="section 3, equation 4",
)


def apply(case: Case) -> Case:
    """Return `case` with RMSNorm, weight and no bias, for every norm."""
    require_absent(is_present(case), "rmsnorm", "every norm divides by the root mean square")
    changed = map_norms(case, lambda n: replace(n, kind="rmsnorm", has_bias=False))
    return map_attention(changed, _without_norm_bias)


def is_present(case: Case) -> bool:
    """Whether every norm is an RMSNorm."""
    return all(n.kind == "rmsnorm" for n in norms(case))


def remove(case: Case) -> Case:
    """Return `case` with LayerNorm, weight and bias, for every norm."""
    return map_norms(
        case, lambda n: replace(n, kind="layernorm", has_bias=True, has_unit_offset=False)
    )


def _without_norm_bias(a: Attention) -> Attention:
    return replace(a, has_qk_norm_bias=False) if a.has_qk_norm_bias else a


TECHNIQUE = Technique(
    id="rmsnorm",
    name="Root mean square normalisation",
    relieves=("elementwise-traffic",),
    bottleneck="Layer normalisation spends time on a centring that training does not need.",
    apply=apply,
    module="worthit.nn.norm.rmsnorm:RMSNorm",
    parity=(
        "transformers 5.23 `LlamaRMSNorm`, `GemmaRMSNorm`; torch `nn.RMSNorm`: outputs and "
        "gradients, fp32 and bf16 (tests/nn/norm/test_norms.py)",
    ),
    experiment="worthit.lab.experiments.rmsnorm:EXPERIMENT",
    is_present=is_present,
    remove=remove,
    adoption="retrain",
    cost_of_adoption="A training run; free when one is due anyway.",
    nothing_when=(
        "Norms are fused with their neighbours, so that both kinds read and write the same bytes; "
        "what remains is a fraction of a percent."
    ),
    pitfalls=(
        "Implementations multiply the weight before or after returning to 16 bits, and some "
        "store it as an offset from one: the same numbers give different models.",
        "The default constant of a framework can be tiny; small activations then blow up.",
        "Accumulate the squares in fp32.",
    ),
    sources=(ZHANG_2019, NARANG_2021),
    evidence=(
        Evidence(
            claim="Quality on a par with LayerNorm over several models, with 7 to 64 % less "
            "running time in the unfused implementations measured.",
            source=replace(ZHANG_2019, where="abstract"),
        ),
        Evidence(
            claim="Among many changes to a T5 baseline it is one of the few that improved quality "
            "and speed together.",
            source=NARANG_2021,
        ),
    ),
    orientation={
        "en": "What keeps training stable is the scale, not the centre: divide by the root mean "
        "square and multiply by a learned weight, nothing else. Quality is unchanged, a reduction "
        "and the bias are saved. Measured speed-ups come from times when norms ran as separate "
        "operations; with fused kernels the difference is hard to see. Choose it for simplicity.",
        "es": "Lo que mantiene estable el entrenamiento es la escala, no el centro: se divide por "
        "la raíz de la media de los cuadrados y se multiplica por un peso aprendido, nada más. La "
        "calidad no cambia y se ahorran una reducción y el sesgo. Las mejoras de velocidad "
        "publicadas vienen de cuando las normas se ejecutaban como operaciones sueltas; con "
        "núcleos fusionados la diferencia apenas se aprecia. Se elige por sencillez.",
    },
    diagram=(
        "x",
        "-subtract the mean",
        "~divide by: standard deviation => root mean square",
        "times a weight",
        "-plus a bias",
    ),
)
