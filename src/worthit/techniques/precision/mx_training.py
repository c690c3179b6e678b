"""MX training: products in 8-bit floats with a power-of-two scale for every 32 elements.

Changes: `precision.operands` to mxfp8; the fp32 master copy stays.
Relieves: the arithmetic of matrix products, at twice the rate of bf16, without tuned scales.
Does nothing when: the device has no block-scaled units, or products are not the bottleneck.
Costs: recent hardware, kernels that quantize along the right axis, a comparison of losses.

Held equal: tokens, batch and optimizer. As with fp8 only products change; the casts are paid for.
"""

from __future__ import annotations

from worthit.errors import NotApplicable
from worthit.spec.case import Case
from worthit.techniques._change import require_training, with_precision
from worthit.techniques._record import Evidence, Source, Technique

ROUHANI_2023 = Source(
    cite="Rouhani et al. 2023",
    title="Microscaling Data Formats for Deep Learning",
    id="arXiv:2310.10537",
    where="sections 2 and 4",
)
MISHRA_2025 = Source(
    cite="Mishra et al. 2025",
    title="Recipes for Pre-training LLMs with MXFP8",
    id="arXiv:2506.08027",
)


def apply(case: Case) -> Case:
    """Return `case` with the operands of its products in MXFP8.

    Units that scale blocks by themselves came together with fp4 arithmetic, by which they are
    recognised here.
    """
    require_training(case, "mx-training")
    device = case.hardware.device
    if not device.flops_per_s.get("fp4"):
        instead = "; fp8-training is for it" if device.flops_per_s.get("fp8") else ""
        raise NotApplicable(
            f"mx-training needs matrix units that scale blocks of 32 by themselves; {device.name} "
            f"has none{instead}; B200, MI355X and their successors have"
        )
    return with_precision(case, operands="mxfp8")


def is_present(case: Case) -> bool:
    """Whether products meet in a microscaling format."""
    return (case.model.precision.operands or "").startswith("mxfp")


def remove(case: Case) -> Case:
    """Return `case` computing in bf16."""
    return with_precision(case, operands=None)


TECHNIQUE = Technique(
    id="mx-training",
    name="Microscaling (MXFP8) training",
    relieves=("matmul-compute",),
    bottleneck=(
        "Training is bound by matrix products; one scale for a whole 8-bit tensor wastes its range."
    ),
    apply=apply,
    module="worthit.train.precision.mx:quantize",
    parity=(
        "gfloat 0.5 `quantize_block`, all five element formats: values and bytes, bit for bit "
        "(tests/train/precision/test_mx.py)",
        "torchao 0.18 `MXTensor`, scales rounded down and up: values, bit for bit "
        "(tests/train/precision/test_fp8.py)",
        "a loop over blocks, for each of the three products of a layer: outputs and gradients "
        "(tests/train/precision/test_apply.py)",
    ),
    experiment="worthit.lab.experiments.mx_training:EXPERIMENT",
    is_present=is_present,
    remove=remove,
    adoption="calibrate",
    cost_of_adoption=(
        "Hardware with block-scaled units and kernels for it, and a run beside bf16 long enough "
        "to compare losses."
    ),
    nothing_when=(
        "The device cannot scale blocks by itself, matrices are small, or attention, norms and "
        "communication take most of the step."
    ),
    pitfalls=(
        "Blocks run along the summed axis: a transposed operand must be quantized again from the "
        "original, not transposed.",
        "Rounding the scale's exponent as the standard suggests can diverge over trillions of "
        "tokens: round it up.",
        "A quarter bit of scales an element and two quantized copies of each operand eat into the "
        "saving of memory.",
        "MXFP4 is coarser than int4 in groups of 32 on bell-shaped weights: it is no drop-in.",
    ),
    sources=(ROUHANI_2023, MISHRA_2025),
    evidence=(
        Evidence(
            claim="An 8B model over 15 trillion tokens follows bf16 when everything is E4M3 and "
            "scales are rounded up; the rounding suggested by the standard may diverge.",
            source=MISHRA_2025,
        ),
    ),
    orientation={
        "en": "A single scale for an 8-bit tensor must fit its largest value, and the small ones "
        "vanish. Microscaling gives every block of 32 neighbours a scale of its own, a power of "
        "two that the matrix units apply while they multiply. So the same 8-bit format serves "
        "activations, weights and gradients without tuned scales, at the speed of plain 8-bit "
        "products, on hardware that has it.",
        "es": "Una sola escala para un tensor de 8 bits debe alcanzar su mayor valor, y los "
        "pequeños desaparecen. El microescalado da a cada bloque de 32 vecinos su propia escala, "
        "una potencia de dos que las unidades matriciales aplican mientras multiplican. Así, el "
        "mismo formato de 8 bits sirve para activaciones, pesos y gradientes sin ajustar escalas, "
        "a la velocidad de los productos de 8 bits corrientes, en el hardware que lo ofrece.",
    },
    diagram=(
        "x, weights: bf16",
        "+cast to e4m3 in blocks of 32 with a power-of-two scale, along the summed axis",
        "~x W: bf16 units => block-scaled fp8 units, twice the rate",
        "accumulate in fp32, back to bf16",
        "optimizer: fp32 master copy and moments",
    ),
)
