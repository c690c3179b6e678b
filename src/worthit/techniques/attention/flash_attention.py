"""Flash attention: the same attention, computed in tiles that never leave the chip.

Changes: `runtime.attention`, from `naive` to `fused`. Matched: everything; the result is the same
up to rounding.
Relieves: the traffic of the score matrix, and the memory that it takes in training.
Does nothing when: one token is decoded at a time (the matrix is a row) or no layer has a softmax.
Costs: nothing but a kernel for the device, the head width and the mask.
"""

from __future__ import annotations

from worthit.spec.case import Case
from worthit.techniques._change import with_runtime
from worthit.techniques._mixers import require_absent, require_softmax, softmax_mixers
from worthit.techniques._record import Evidence, Source, Technique

DAO_2022 = Source(
    cite="Dao et al. 2022",
    title="FlashAttention: Fast and Memory-Efficient Exact Attention with IO-Awareness",
    id="arXiv:2205.14135",
    where="algorithm 1, theorem 2",
)
DAO_2023 = Source(
    cite="Dao 2023",
    title="FlashAttention-2: Faster Attention with Better Parallelism and Work Partitioning",
    id="arXiv:2307.08691",
    where="section 3",
)
MILAKOV_2018 = Source(
    cite="Milakov and Gimelshein 2018",
    title="Online normalizer calculation for softmax",
    id="arXiv:1805.02867",
    where="algorithm 3",
)


def apply(case: Case) -> Case:
    """Return `case` with attention that never writes its score matrix to memory."""
    require_softmax(case, "flash-attention")
    require_absent(is_present(case), "flash-attention", "the runtime fuses attention")
    return with_runtime(case, attention="fused")


def is_present(case: Case) -> bool:
    """Whether the model has softmax attention and the runtime fuses it."""
    return case.runtime.attention == "fused" and bool(softmax_mixers(case))


def remove(case: Case) -> Case:
    """Return `case` with the score matrix written to memory and read back."""
    return with_runtime(case, attention="naive")


TECHNIQUE = Technique(
    id="flash-attention",
    name="Flash attention",
    relieves=("attention-traffic", "activation-memory"),
    bottleneck="Attention waits for memory: the score matrix is written and read several times.",
    apply=apply,
    module="worthit.nn.attention.flash_attention:flash_attention",
    experiment="worthit.lab.experiments.flash_attention:EXPERIMENT",
    parity=(
        "every score at once: outputs, log-sum-exp, gradients "
        "(tests/nn/attention/test_flash_attention.py)",
        "torch's fused kernel: outputs and log-sum-exp "
        "(tests/nn/attention/test_flash_attention.py)",
    ),
    is_present=is_present,
    remove=remove,
    adoption="drop-in",
    cost_of_adoption="A library call; the weights and the results stay as they are.",
    nothing_when=(
        "One token meets a cache (there is only a row of scores), the sequence is so short that "
        "the matrix fits in cache memory anyway, or no layer computes a softmax."
    ),
    pitfalls=(
        "Additive biases, soft caps and unusual head widths may silently fall back to the slow "
        "path.",
        "Rows without any visible key need care: the running maximum stays at minus infinity.",
        "The log-sum-exp is natural in some kernels and base two in others; merging partial "
        "results then goes wrong.",
        "Reductions change order: compare with a tolerance, not bit by bit.",
    ),
    sources=(DAO_2022, DAO_2023, MILAKOV_2018),
    evidence=(
        Evidence(
            claim="GPT-2 trained with it reaches the same perplexity as the reference "
            "implementations, up to three times faster.",
            source=DAO_2022,
        ),
    ),
    orientation={
        "en": "Plain attention writes a matrix of all scores to memory, reads it for the softmax, "
        "writes it again and reads it again. The arithmetic is cheap; the travelling is not. Here "
        "keys and values are taken tile by tile, with a running maximum and sum that let the "
        "softmax be corrected as it goes, so the matrix never exists as a whole. The result is the "
        "same, memory grows with the length instead of its square, and the backward pass "
        "recomputes what it needs.",
        "es": "La atención corriente escribe en memoria una matriz con todas las puntuaciones, la "
        "lee para el softmax, la escribe otra vez y la vuelve a leer. La aritmética es barata; el "
        "trayecto, no. Aquí las claves y los valores se toman por teselas, con un máximo y una "
        "suma acumulados que permiten corregir el softmax sobre la marcha, de modo que la matriz "
        "nunca existe entera. El resultado es el mismo, la memoria crece con la longitud y no con "
        "su cuadrado, y el paso hacia atrás recalcula lo que necesita.",
    },
    diagram=(
        "q, k, v",
        "-write scores n x n, read, softmax, write, read",
        "+for each tile of keys: scores, running maximum and sum, rescale the output",
        "output, the same as before",
    ),
)
