"""FP8 training: matrix products read their operands in 8-bit floating point.

Changes: `precision.operands` to fp8: both factors are cast before they meet.
Relieves: the arithmetic of matrix products, which run at twice the rate of bf16.
Does nothing when: the device has no fp8 units, or attention, norms and traffic take the time.
Costs: scaling recipes, and a comparison of loss curves.

Held equal: tokens, batch and optimizer. Weights, the residual stream, norms and what is kept for
the backward pass stay in bf16; the casts are paid for.
"""

from __future__ import annotations

from worthit.errors import NotApplicable
from worthit.spec.case import Case
from worthit.techniques._change import require_training, with_precision
from worthit.techniques._record import Evidence, Source, Technique
from worthit.techniques.precision._sources import DEEPSEEK_2024, MICIKEVICIUS_2022

PENG_2023 = Source(
    cite="Peng et al. 2023",
    title="FP8-LM: Training FP8 Large Language Models",
    id="arXiv:2310.18313",
    where="sections 2 and 3",
)
TORCHTITAN_2024 = Source(
    cite="PyTorch team 2024",
    title="torchtitan",
    id="github.com/pytorch/torchtitan",
    where="performance of December 2024, Llama 3.1 8B on 8 H100 (96 GB, 500 W)",
)


def apply(case: Case) -> Case:
    """Return `case` with the operands of its products in fp8."""
    require_training(case, "fp8-training")
    device = case.hardware.device
    if not device.flops_per_s.get("fp8"):
        raise NotApplicable(
            f"fp8-training needs matrix units that compute in fp8; {device.name} has none; "
            "H100, MI300X and their successors have"
        )
    return with_precision(case, operands="fp8")


def is_present(case: Case) -> bool:
    """Whether products meet in fp8."""
    return (case.model.precision.operands or "").startswith("fp8")


def remove(case: Case) -> Case:
    """Return `case` computing in bf16."""
    return with_precision(case, operands=None)


TECHNIQUE = Technique(
    id="fp8-training",
    name="FP8 mixed-precision training",
    relieves=("matmul-compute",),
    bottleneck="Training is bound by matrix products, which 16-bit operands run at half rate.",
    apply=apply,
    module="worthit.train.precision.fp8:quantize",
    parity=(
        "torch 2.13's casts, ml_dtypes 0.6 and gfloat 0.5: every code, ties, subnormals and what "
        "is out of range, bit for bit (tests/train/precision/test_floats.py)",
        "torchao 0.18 `convert_to_float8_training`, emulated, one scale a tensor and one a row: "
        "outputs and gradients (tests/train/precision/test_fp8.py)",
    ),
    experiment="worthit.lab.experiments.fp8_training:EXPERIMENT",
    is_present=is_present,
    remove=remove,
    adoption="calibrate",
    cost_of_adoption=(
        "A scaling recipe (per tensor, row or block) and a run beside bf16 long enough to compare "
        "losses; checkpoints and optimizer stay as they are."
    ),
    nothing_when=(
        "The device has no fp8 units, matrices are too small to be compute-bound, or attention, "
        "norms, communication and the optimizer take most of the step."
    ),
    pitfalls=(
        "Twice the peak is not twice the speed: only the large products gain. Llama 3.1 8B on H100 "
        "measures 1.28 times over compiled bf16, with no memory saved.",
        "Gradients need more range than activations: e5m2 for them, or finer scales and e4m3.",
        "Hopper accumulates fp8 products with too few bits: long sums need promotion to fp32.",
        "One outlier in a tensor flattens everything else to zero: scale rows or blocks.",
        "Clamp before the cast: values beyond 448 saturate or become NaN, library by library.",
    ),
    sources=(MICIKEVICIUS_2022, PENG_2023, DEEPSEEK_2024),
    evidence=(
        Evidence(
            claim="DeepSeek's fine-grained recipe keeps the loss within 0.25 % of bf16 on models "
            "of 16B and 230B parameters over about a trillion tokens.",
            source=DEEPSEEK_2024,
        ),
        Evidence(
            claim="GPT-175B on H100: 75 % faster than bf16 Megatron-LM and 39 % less memory; "
            "gradients and one moment are in 8 bits too.",
            source=PENG_2023,
        ),
        Evidence(
            claim="Llama 3.1 8B, 8 H100: 6,667 tokens/s a device compiled in bf16, 8,532 with "
            "float8, at 77.0 and 76.8 GiB.",
            source=TORCHTITAN_2024,
        ),
    ),
    orientation={
        "en": "Recent accelerators multiply 8-bit floating-point numbers twice as fast as 16-bit "
        "ones. FP8 training rounds both operands of the large matrix products to 8 bits, each with "
        "a scale that keeps its values in range, while sums, norms and the master copy of the "
        "weights stay precise. The step gets faster by less than two, because not everything is a "
        "large product, and the recipe must be shown to follow the bf16 loss.",
        "es": "Los aceleradores recientes multiplican números de coma flotante de 8 bits al doble "
        "de velocidad que los de 16. El entrenamiento en FP8 redondea a 8 bits los dos operandos "
        "de los productos grandes, cada uno con una escala que mantiene sus valores en rango, "
        "mientras las sumas, las normalizaciones y la copia maestra de los pesos siguen siendo "
        "precisas. El paso se acelera menos de dos veces, porque no todo son productos grandes, y "
        "hay que comprobar que la pérdida sigue a la de bf16.",
    },
    diagram=(
        "x, weights: bf16",
        "+scale and cast to fp8 (e4m3 forward, e5m2 or e4m3 for gradients)",
        "~x W: bf16 units => fp8 units, twice the rate",
        "accumulate in fp32, back to bf16",
        "optimizer: fp32 master copy and moments",
    ),
)
