"""Mamba: a state space whose input, output and step depend on the token.

Changes: each layer of softmax attention and dense feed-forward into two (as many as fit) bare Mamba
blocks, of inner width about `2 * d_model`. Matched: parameters of each replaced layer, by that
width. Beside a mixture of experts the mixer alone is swapped, at `2 * d_model`.
Relieves: the quadratic attention compute, the growing cache and its traffic.
Does nothing when: sequences are short: the state then holds more than the cache would.
Costs: training anew; copying and recall; a scan that matrix units cannot run.
"""

from __future__ import annotations

from math import ceil

from worthit.spec.case import Case
from worthit.spec.model import Mamba
from worthit.techniques._mixers import (
    WIDTH_MULTIPLE,
    has_mixer,
    require_softmax,
    rounded,
    to_attention,
    to_blocks,
)
from worthit.techniques._record import Evidence, Technique
from worthit.techniques.ssm._sources import GU_2023, JELASSI_2024, WALEFFE_2024

# The step is computed through a rank of a sixteenth of the stream.
DT_DIVISOR = 16


def apply(case: Case, *, d_state: int = 16, d_conv: int = 4) -> Case:
    """Return `case` with Mamba blocks for attention and the dense feed-forward beside it."""
    require_softmax(case, "mamba")
    dt_rank = ceil(case.model.d_model / DT_DIVISOR)

    def make(width: float) -> Mamba:
        return Mamba(
            d_inner=max(rounded(width), WIDTH_MULTIPLE),
            d_state=d_state,
            d_conv=d_conv,
            dt_rank=dt_rank,
        )

    return to_blocks(case, make)


def is_present(case: Case) -> bool:
    """Whether some layer is Mamba's first form."""
    return has_mixer(case, Mamba)


def remove(case: Case) -> Case:
    """Return `case` with softmax attention for Mamba: two bare blocks make one full layer."""
    return to_attention(case, lambda m: isinstance(m, Mamba))


TECHNIQUE = Technique(
    id="mamba",
    name="Mamba (selective state space)",
    relieves=("attention-compute", "decode-cache", "kv-capacity"),
    bottleneck="Attention keeps and compares the whole past; state spaces that do not look at the "
    "content cannot choose what to keep of it.",
    apply=apply,
    module="worthit.nn.ssm.mamba:MambaMixer",
    experiment="worthit.lab.experiments.mamba:EXPERIMENT",
    parity=(
        "transformers 5.23 mixers of Mamba, Falcon-Mamba and Jamba: outputs and gradients "
        "(tests/nn/ssm/test_mamba.py)",
        "the recurrence in order, for both scans: outputs, states, gradients "
        "(tests/nn/ssm/test_mamba.py)",
    ),
    is_present=is_present,
    remove=remove,
    adoption="retrain",
    cost_of_adoption="A pretraining run, with the fused scan kernel on the target device.",
    nothing_when=(
        "Contexts are shorter than the state is large (about d_state * d_inner numbers a block, "
        "read and written every token), or weights dominate what decoding reads."
    ),
    pitfalls=(
        "The scan is element-wise: it runs outside the matrix units, several times slower than its "
        "FLOPs suggest, and far slower as a plain loop.",
        "Copying long strings, phone-book look-up and many-shot prompts suffer: what the state "
        "dropped is gone.",
        "The state matrix and the step's bias stay in fp32, and the bias's initial value must "
        "survive the framework's own initialisation.",
        "Left padding has to be zeroed before the convolution, or it enters the state.",
    ),
    sources=(GU_2023, JELASSI_2024, WALEFFE_2024),
    evidence=(
        Evidence(
            claim="Up to 2.8B parameters on the Pile it matches transformers of twice its size on "
            "common-sense tasks, with about five times their generation throughput.",
            source=GU_2023,
        ),
        Evidence(
            claim="At 8B parameters and the same data, pure state-space models match attention on "
            "many tasks and lag on copying, in-context learning and five-shot MMLU.",
            source=WALEFFE_2024,
        ),
        Evidence(
            claim="Transformers copy strings that state-space models of equal size cannot, in "
            "theory and when trained or pretrained.",
            source=JELASSI_2024,
        ),
    ),
    orientation={
        "en": "The state space now looks at the token: how much to take in, how fast to forget and "
        "what to read out are computed from the input. Time stays linear and the memory of a "
        "sequence is a fixed state, so long generations neither slow down nor grow. The price is "
        "paid in recall, since a fixed state cannot hold every detail, and in hardware, since the "
        "scan is not a matrix product. Short contexts gain nothing.",
        "es": "Ahora el espacio de estados mira el token: cuánto admite, con qué rapidez olvida y "
        "qué lee se calculan a partir de la entrada. El tiempo sigue siendo lineal y la memoria de "
        "una secuencia es un estado fijo, así que las generaciones largas ni se frenan ni crecen. "
        "El precio se paga en memoria exacta, porque un estado fijo no puede guardar todos los "
        "detalles, y en hardware, porque el recorrido no es un producto de matrices. Los contextos "
        "cortos no ganan nada.",
    },
    diagram=(
        "x",
        "-attention and feed-forward, one layer",
        "+two blocks: in_proj to about 2 d_model, and a gate",
        "+short convolution; step, B and C from x",
        "+selective scan: state = exp(step A) state + step B x",
        "~cache: grows with the context => d_inner * d_state numbers",
        "+times the gate, out_proj",
    ),
)
