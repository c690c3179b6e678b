"""S4: a linear state space a channel, run as a convolution in training and a recurrence in decode.

Changes: every softmax attention into S4 with `d_state` numbers a channel. Matched: parameters of
each layer, by the width of its dense feed-forward; beside a mixture of experts they shrink.
Relieves: the quadratic attention compute, the growing cache and its traffic.
Does nothing when: the task asks to look content up, which a fixed filter cannot do.
Costs: training anew; language modelling quality; transforms instead of matrix products.
"""

from __future__ import annotations

from dataclasses import replace

from worthit.spec.case import Case
from worthit.spec.model import S4, Layer
from worthit.techniques._change import with_model
from worthit.techniques._mixers import (
    Softmax,
    has_mixer,
    require_softmax,
    to_attention,
    with_ffn_of_equal_size,
)
from worthit.techniques._record import Evidence, Source, Technique

GU_2021 = Source(
    cite="Gu, Goel and Ré 2021",
    title="Efficiently Modeling Long Sequences with Structured State Spaces",
    id="arXiv:2111.00396",
    where="section 3",
)
GU_2020 = Source(
    cite="Gu et al. 2020",
    title="HiPPO: Recurrent Memory with Optimal Polynomial Projections",
    id="arXiv:2008.07669",
    where="section 2",
)
GU_2022 = Source(
    cite="Gu et al. 2022",
    title="On the Parameterization and Initialization of Diagonal State Space Models",
    id="arXiv:2206.11893",
    where="section 4",
)


def apply(case: Case, *, d_state: int = 64) -> Case:
    """Return `case` with S4 for every softmax attention."""
    require_softmax(case, "s4")
    d_model = case.model.d_model
    mixer = S4(d_state=d_state)

    def change(layer: Layer) -> Layer:
        if not any(isinstance(m, Softmax) for m in layer.mixers):
            return layer
        kept = tuple(mixer if isinstance(m, Softmax) else m for m in layer.mixers)
        return with_ffn_of_equal_size(layer, kept, d_model)

    return with_model(case, case.model.map_layers(change))


def is_present(case: Case) -> bool:
    """Whether some layer is a time-invariant state space."""
    return has_mixer(case, S4)


def remove(case: Case) -> Case:
    """Return `case` with softmax attention for S4, parameters equal."""
    return to_attention(case, lambda m: isinstance(m, S4))


TECHNIQUE = Technique(
    id="s4",
    name="Structured state space (S4)",
    relieves=("attention-compute", "decode-cache", "kv-capacity"),
    bottleneck="Attention is quadratic, and plain recurrent networks forget long before 10,000 "
    "steps.",
    apply=apply,
    module="worthit.nn.ssm.s4:S4Mixer",
    parity=(
        "the paper's dense HiPPO matrix, stepped by the bilinear rule: the kernel "
        "(tests/nn/ssm/test_s4.py)",
        "the recurrence in order, for convolution and chunks: outputs and gradients "
        "(tests/nn/ssm/test_s4.py)",
    ),
    experiment="worthit.lab.experiments.s4:EXPERIMENT",
    is_present=is_present,
    remove=remove,
    adoption="retrain",
    cost_of_adoption="A pretraining run; nothing of an attention layer carries over.",
    nothing_when=(
        "Sequences are short, or the task is language: filters that do not depend on the content "
        "cannot select or recall. Audio and other signals are where it belongs."
    ),
    pitfalls=(
        "The state matrix must start as HiPPO or its diagonal approximation: a random one does not "
        "remember.",
        "Conjugate pairs are stored once, so the output takes twice the real part.",
        "State matrix and step want a learning rate of their own and no weight decay.",
        "The convolution must be padded to twice the length, or the end wraps around to the start.",
    ),
    sources=(GU_2021, GU_2020, GU_2022),
    evidence=(
        Evidence(
            claim="WikiText-103: perplexity 20.95 against 20.51 for a transformer of its size, "
            "with generation 60 times faster.",
            source=replace(GU_2021, where="section 4.3"),
        ),
        Evidence(
            claim="It was the first model to solve the Path-X task, whose sequences have 16,384 "
            "steps, at 88 % in the first version.",
            source=replace(GU_2021, where="section 4.2"),
        ),
    ),
    orientation={
        "en": "Each channel is filtered by a small linear system whose state matrix is built to "
        "remember the past as polynomial coefficients. Because the system does not change over "
        "time, a whole sequence can be computed as one long convolution, and a single step as a "
        "recurrence of constant cost. It opened the way to very long signals. For language its "
        "weakness is the same constancy: it treats every token alike, which Mamba then changed.",
        "es": "Cada canal pasa por un pequeño sistema lineal cuya matriz de estado está construida "
        "para recordar el pasado como coeficientes de polinomios. Como el sistema no cambia con el "
        "tiempo, una secuencia entera puede calcularse como una sola convolución larga, y un paso "
        "suelto como una recurrencia de coste constante. Abrió el camino a señales larguísimas. "
        "Para el lenguaje, su punto débil es esa misma constancia: trata igual a todos los tokens, "
        "y eso es lo que Mamba cambió después.",
    },
    diagram=(
        "x",
        "-q, k, v and softmax over the past",
        "+each channel: state = A state + B x, the same A and B for every token",
        "~cache: grows with the context => d_state numbers a channel",
        "+y = C state + D x, gate, mix channels",
        "~feed-forward: d_ff => wider, so that parameters stay equal",
    ),
)
