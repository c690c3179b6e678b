"""BitNet b1.58: weights are -1, 0 or 1 times a scale, activations 8 bits, trained that way.

Changes: `precision.weights` to packed ternary, `precision.operands` to int8.
Relieves: bytes of weights read for each decoded token, and their share of memory.
Does nothing when: the device has no kernel that reads packed ternary weights.
Costs: training from scratch with quantization in the loop.

Held equal: the shape of the model. Embeddings and output head keep their format; training itself
computes in 16 bits with a full-precision copy, so nothing is gained there.
"""

from __future__ import annotations

from worthit.spec.case import Case
from worthit.techniques._change import require_narrower, require_serving, with_precision
from worthit.techniques._record import Evidence, Source, Technique

MA_2024 = Source(
    cite="Ma et al. 2024",
    title="The Era of 1-bit LLMs: All Large Language Models are in 1.58 Bits",
    id="arXiv:2402.17764",
    where="section 2, equations 1 to 3, tables 1 and 2",
)
WANG_2023 = Source(
    cite="Wang et al. 2023",
    title="BitNet: Scaling 1-bit Transformers for Large Language Models",
    id="arXiv:2310.11453",
    where="section 2",
)


def apply(case: Case) -> Case:
    """Return `case` as a BitNet b1.58 of the same shape."""
    require_serving(case, "bitnet")
    require_narrower("bitnet", "weights", case.model.precision.weights, "ternary")
    return with_precision(case, weights="ternary", experts=None, operands="int8")


def is_present(case: Case) -> bool:
    """Whether weights are ternary already."""
    return case.model.precision.weights == "ternary"


def remove(case: Case) -> Case:
    """Return `case` as the bf16 model of the same shape."""
    return with_precision(case, weights="bf16", operands=None)


TECHNIQUE = Technique(
    id="bitnet",
    name="Ternary weights (BitNet b1.58)",
    relieves=("decode-weights", "weight-capacity", "matmul-compute"),
    bottleneck="Decoding reads 16 bits for each weight, and multiplies where it could add.",
    apply=apply,
    module="worthit.train.precision.bitnet:quantize_weights",
    parity=(
        "transformers 5.24 `WeightQuant` and `ActQuant`: values, bit for bit "
        "(tests/train/precision/test_bitnet.py)",
        "transformers 5.24 `AutoBitLinear`, with its norm and without: outputs and gradients "
        "(tests/train/precision/test_bitnet.py)",
        "transformers 5.24 `BitLinear` and `WeightQuant`, on two packed bits a weight: a layer's "
        "outputs (tests/nn/quant/test_ternary.py)",
        "stored after training: the logits that were trained, saved and loaded "
        "(tests/train/precision/test_store.py)",
    ),
    experiment="worthit.lab.experiments.bitnet:EXPERIMENT",
    is_present=is_present,
    remove=remove,
    adoption="retrain",
    cost_of_adoption=(
        "Pretraining from scratch with ternary weights in the forward pass and a full-precision "
        "copy behind them; rounding an existing model does not work."
    ),
    nothing_when=(
        "The cache or launches dominate a step, or kernels widen to 16 bits before they multiply."
    ),
    pitfalls=(
        "Rounding a trained model to ternary destroys it (perplexity 5 becomes 13 on a small byte "
        "model); training with it does not.",
        "Training gets no faster and no smaller: the weights that learn are in full precision.",
        "Published parity begins at about 3B parameters; small models lose.",
        "Embedding and output head stay wide: in small models with large vocabularies they are "
        "most of what is left.",
        "No accelerator multiplies ternary numbers: they run as int8, so compute gains twice at "
        "most.",
    ),
    sources=(MA_2024, WANG_2023),
    evidence=(
        Evidence(
            claim="At 3B parameters, trained on the same tokens, perplexity matches the 16-bit "
            "Llama of that size with 3.55 times less memory and 2.71 times lower latency.",
            source=MA_2024,
        ),
    ),
    orientation={
        "en": "BitNet asks how few values a weight needs if the model is trained with so few from "
        "the start: three. Each is -1, 0 or 1 times one scale per matrix, in the forward pass; a "
        "precise copy learns behind it. Two packed bits instead of sixteen cut the reading of "
        "weights eightfold. The price is that no existing model can be converted: it is a decision "
        "taken before pretraining.",
        "es": "BitNet pregunta cuántos valores necesita un peso si el modelo se entrena así desde "
        "el principio: tres. Cada uno es -1, 0 o 1 por una escala de su matriz, en la pasada hacia "
        "delante; detrás aprende una copia precisa. Dos bits empaquetados en lugar de dieciséis "
        "dividen por ocho la lectura de pesos. El precio es que ningún modelo existente se puede "
        "convertir: es una decisión que se toma antes del preentrenamiento.",
    },
    diagram=(
        "x",
        "+normalise, quantize x to 8 bits a token",
        "~weights: 16 bits => -1, 0, 1 in 2 packed bits, and one scale",
        "~x W: multiply and add => add and subtract (int8 units)",
        "rescale to 16 bits",
    ),
)
