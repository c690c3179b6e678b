"""8-bit weights: matrices are stored in int8 with one scale a row, widened as they are read.

Changes: `precision.weights`; activations, embeddings and output head keep their formats.
Relieves: bytes of weights read for each decoded token, and their share of memory.
Does nothing when: compute binds (prefill, large batches) or the cache dominates.
Costs: a conversion of seconds; almost no quality.

Held equal: the arithmetic, still in 16 bits (weight-only).
"""

from __future__ import annotations

from worthit.spec.case import Case
from worthit.techniques._change import require_serving
from worthit.techniques._record import Evidence, Source, Technique
from worthit.techniques.precision._sources import GPT_FAST_2023
from worthit.techniques.precision._weights import any_weights, is_int8, widened, with_weights

DETTMERS_2022 = Source(
    cite="Dettmers et al. 2022",
    title="LLM.int8(): 8-bit Matrix Multiplication for Transformers at Scale",
    id="arXiv:2208.07339",
    where="section 3",
)
XIAO_2022 = Source(
    cite="Xiao et al. 2022",
    title="SmoothQuant: Accurate and Efficient Post-Training Quantization for Large Language "
    "Models",
    id="arXiv:2211.10438",
    where="section 4",
)


def apply(case: Case, *, format: str = "int8") -> Case:
    """Return `case` with its matrices in `format`: `int8`, or `int8-g32` (Q8_0)."""
    require_serving(case, "int8-weights")
    return with_weights(case, "int8-weights", format)


def is_present(case: Case) -> bool:
    """Whether weights, or the routed experts', are kept in an int8 format."""
    return any_weights(case, is_int8)


def remove(case: Case) -> Case:
    """Return `case` with such weights in the format of the activations."""
    return widened(case, is_int8)


TECHNIQUE = Technique(
    id="int8-weights",
    name="8-bit weights",
    relieves=("decode-weights", "weight-capacity"),
    bottleneck="Decoding one token reads every weight once, at 16 bits each.",
    apply=apply,
    module="worthit.nn.quant.grid:Grid",
    parity=(
        "a product with what the codes stand for, number by number; PyTorch's packed product "
        "against it, at every number of rows (tests/nn/quant/test_linear.py)",
        "ggml's Q8_0 blocks, and a `.gguf` of them widened by the `gguf` package "
        "(tests/nn/quant/test_grid.py, tests/nn/quant/test_ggml.py)",
        "whole models: files back to the same logits, bytes as `cost` predicts them "
        "(tests/nn/quant/test_quantize.py)",
    ),
    experiment="worthit.lab.experiments.int8_weights:EXPERIMENT",
    is_present=is_present,
    remove=remove,
    adoption="drop-in",
    cost_of_adoption="Round to nearest with one scale a row: no data, seconds to minutes.",
    nothing_when=(
        "Prefill or a large batch makes the matrix products compute-bound, the cache dominates a "
        "step, or launches bound a tiny model."
    ),
    pitfalls=(
        "Bytes halve, time does not: kernels reach about 77 % of the rate of bf16 ones, so Llama 2 "
        "7B on an A100 measures 1.48 times, not 2.",
        "One scale for a whole matrix, or for all activations, destroys quality: use one a row.",
        "Without a fused kernel, widening first moves more bytes than it saves.",
        "8-bit activations too (W8A8) is another technique: outlier channels need smoothing.",
    ),
    sources=(DETTMERS_2022, XIAO_2022, GPT_FAST_2023),
    evidence=(
        Evidence(
            claim="Models up to 175B keep their zero-shot accuracy with 8-bit products when "
            "outlier features stay in 16 bits; from 6.7B on, naive 8-bit activations break.",
            source=DETTMERS_2022,
        ),
        Evidence(
            claim="Llama 2 7B at batch 1: 104.9 tokens/s in bf16, 155.6 with int8 weights.",
            source=GPT_FAST_2023,
        ),
    ),
    orientation={
        "en": "Decoding for few users is a matter of reading weights: each token touches all of "
        "them once. Storing each in 8 bits, with one scale for every row of a matrix, halves the "
        "reading and the memory at almost no loss, because rounding errors average out over "
        "thousands of terms. The products themselves are still done in 16 bits, so nothing is "
        "gained where arithmetic, not reading, takes the time.",
        "es": "Decodificar para pocos usuarios consiste en leer pesos: cada token los recorre "
        "todos una vez. Guardarlos en 8 bits, con una escala por fila de cada matriz, reduce a la "
        "mitad la lectura y la memoria casi sin pérdida, porque los errores de redondeo se "
        "compensan entre miles de términos. Los productos se siguen haciendo en 16 bits, de modo "
        "que no se gana nada donde el tiempo se va en la aritmética y no en la lectura.",
    },
    diagram=(
        "x: 16 bits",
        "~weights in memory: 16 bits => 8 bits and a scale a row",
        "+widen to 16 bits inside the kernel",
        "x W in 16-bit arithmetic",
    ),
)
