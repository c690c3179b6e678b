"""4-bit weights: matrices in 4 bits with a scale for each small group, widened as they are read.

Changes: `precision.weights` to a 4-bit group format; everything else keeps its format.
Relieves: bytes of weights read for each decoded token, and their share of memory.
Does nothing when: compute binds; there, widening even costs a little.
Costs: a calibration on a few hundred samples (AWQ, GPTQ); some quality, more on small models.

Held equal: the arithmetic, still in 16 bits (weight-only).
"""

from __future__ import annotations

from worthit.spec.case import Case
from worthit.techniques._change import require_serving
from worthit.techniques._record import Evidence, Source, Technique
from worthit.techniques.precision._sources import GPT_FAST_2023
from worthit.techniques.precision._weights import any_weights, is_4_bit, widened, with_weights

LIN_2023 = Source(
    cite="Lin et al. 2023",
    title="AWQ: Activation-aware Weight Quantization for LLM Compression and Acceleration",
    id="arXiv:2306.00978",
    where="sections 3 and 4",
)
FRANTAR_2022 = Source(
    cite="Frantar et al. 2022",
    title="GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers",
    id="arXiv:2210.17323",
    where="algorithm 1",
)


def apply(case: Case, *, format: str = "int4-g128") -> Case:
    """Return `case` with its matrices in `format`: groups of 128 (AWQ, GPTQ), 64 or 32."""
    require_serving(case, "int4-weights")
    return with_weights(case, "int4-weights", format)


def is_present(case: Case) -> bool:
    """Whether weights, or the routed experts', are kept in a 4-bit format, integer or floating."""
    return any_weights(case, is_4_bit)


def remove(case: Case) -> Case:
    """Return `case` with such weights in the format of the activations."""
    return widened(case, is_4_bit)


TECHNIQUE = Technique(
    id="int4-weights",
    name="4-bit weights",
    relieves=("decode-weights", "weight-capacity"),
    bottleneck="Decoding one token reads every weight once, at 16 bits each.",
    apply=apply,
    module="worthit.nn.quant.gptq:gptq",
    parity=(
        "GPTQ: the paper's equations 2 and 3 as a loop in fp64, with and without act-order; the "
        "best of all choices on small problems (tests/nn/quant/test_methods.py)",
        "AWQ: every scale and every clipping tried on the inputs themselves; scales folded into "
        "what stands before change no logit (tests/nn/quant/test_methods.py)",
        "ggml's Q4_0 and Q4_1 blocks, and a `.gguf` of them widened by the `gguf` package "
        "(tests/nn/quant/test_grid.py, tests/nn/quant/test_ggml.py)",
        "PyTorch's packed product against the codes' own numbers; whole models, files back to the "
        "same logits, bytes as `cost` predicts them "
        "(tests/nn/quant/test_linear.py, tests/nn/quant/test_quantize.py)",
    ),
    experiment="worthit.lab.experiments.int4_weights:EXPERIMENT",
    is_present=is_present,
    remove=remove,
    adoption="calibrate",
    cost_of_adoption=(
        "Minutes to hours on one device with a few hundred samples of text like yours, and an "
        "evaluation on your own task."
    ),
    nothing_when=(
        "Prefill or a large batch makes the matrix products compute-bound, the cache dominates a "
        "step, or launches bound a small model."
    ),
    pitfalls=(
        "Bytes fall 3.6 to 3.8 times, time does not: kernels reach about 62 % of the rate of bf16 "
        "ones, so Llama 2 7B on an A100 measures 1.88 times.",
        "Small models and long reasoning lose more than averages over multiple choice show.",
        "Keep the output head and the embedding in 8 bits or more: at 4 they cost most of the "
        "quality of a small model.",
        "Round to nearest in large groups is much worse than a calibrated method; 3 bits and "
        "below break without training.",
        "At prefill a bf16 copy can be faster than widening again and again.",
    ),
    sources=(LIN_2023, FRANTAR_2022, GPT_FAST_2023),
    evidence=(
        Evidence(
            claim="OPT and BLOOM of 175B are brought to 3 or 4 bits in about four device hours "
            "with little loss of perplexity; decoding is 3.25 times faster on A100 and 4.5 on "
            "A6000 than in fp16, at 3 bits.",
            source=FRANTAR_2022,
        ),
        Evidence(
            claim="Scaling up the channels that activations make salient, about 1 %, recovers most "
            "of the loss of rounding; more than 3 times faster than Hugging Face fp16.",
            source=LIN_2023,
        ),
        Evidence(
            claim="Llama 2 7B at batch 1: 104.9 tokens/s in bf16, 196.8 with int4 in groups of 32.",
            source=GPT_FAST_2023,
        ),
    ),
    orientation={
        "en": "Four bits give sixteen values, too few for a whole row, so every 32 to 128 weights "
        "share a scale of their own. Calibration decides which weights matter, from the "
        "activations they meet, and rounds the rest around them. Memory falls almost fourfold: "
        "often the difference between fitting on the card or not. Speed gains less, because "
        "unpacking takes work, and quality should be measured on the task, not on averages.",
        "es": "Cuatro bits dan dieciséis valores, demasiado pocos para una fila entera, así que "
        "cada 32 a 128 pesos comparten una escala propia. La calibración decide qué pesos "
        "importan, según las activaciones que reciben, y redondea los demás en torno a ellos. La "
        "memoria se reduce casi a la cuarta parte: a menudo es la diferencia entre caber o no en "
        "la tarjeta. La velocidad gana menos, porque desempaquetar cuesta trabajo, y la calidad "
        "debe medirse en la tarea, no en promedios.",
    },
    diagram=(
        "x: 16 bits",
        "+calibrate: which channels matter, on sample text",
        "~weights in memory: 16 bits => 4 bits and a scale a group",
        "+unpack and widen to 16 bits inside the kernel",
        "x W in 16-bit arithmetic",
    ),
)
