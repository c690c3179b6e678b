"""Muon: momentum whose matrices are orthogonalised before each step.

Changes: the optimizer of the layers' matrices: 8 bytes a parameter (fp32 master and momentum) for
AdamW's 12, and five Newton-Schulz iterations a step; tables and norms stay with AdamW.
Relieves: optimizer memory, and training compute by the share of tokens it needs less.
Does nothing when: the model is tiny, or most parameters are tables.
Costs: new learning rates; whole matrices gathered on one device where they are sharded.

Held equal: model, data and batch. Tokens to the same loss are a range, from published claims to
tuned baselines.
"""

from __future__ import annotations

from worthit.spec.case import Case, Range
from worthit.techniques._record import Evidence, Source, Technique
from worthit.techniques.optimizer._shapes import (
    MASTER,
    STATE,
    WEN_2025,
    with_adamw,
    with_optimizer,
)

ITERATIONS = 5

JORDAN_2024 = Source(
    cite="Jordan et al. 2024",
    title="Muon: An optimizer for hidden layers in neural networks",
    id="kellerjordan.github.io/posts/muon",
    where="Newton-Schulz iteration; runtime analysis",
)
LIU_2025 = Source(
    cite="Liu et al. 2025",
    title="Muon is Scalable for LLM Training",
    id="arXiv:2502.16982",
    where="sections 2.2 and 3",
)

# Share of AdamW's tokens to the same loss: .52 as claimed (Liu et al. 2025); against tuned AdamW
# 1.4 times faster at 0.1B, 1.1 at 1.2B (Wen et al. 2025), so .71 to .91 and nearer 1 beyond.
TOKENS_TO_TARGET = Range(mid=0.85, low=0.52, high=1.0)


def newton_schulz_flops(rows: int, columns: int) -> float:
    """FLOPs a parameter and step of orthogonalising a matrix.

    One iteration, with k the shorter side and l the longer: X X^T (2 k^2 l), its square (2 k^3),
    and their combination times X (2 k^2 l).
    """
    short, long = sorted((rows, columns))
    return ITERATIONS * (4 * short**2 * long + 2 * short**3) / (rows * columns)


def apply(case: Case, *, tokens_to_target: Range = TOKENS_TO_TARGET) -> Case:
    """Return `case` with Muon on its matrices and AdamW elsewhere."""
    return with_optimizer(
        case,
        "muon",
        bytes_of=lambda rows, columns: MASTER + STATE,
        flops_of=newton_schulz_flops,
        tokens_to_target=tokens_to_target,
    )


def is_present(case: Case) -> bool:
    """Whether Muon trains the matrices."""
    return case.runtime.optimizer == "muon"


TECHNIQUE = Technique(
    id="muon",
    name="Muon",
    relieves=("matmul-compute", "optimizer-memory"),
    bottleneck=(
        "AdamW scales every weight alone: a few directions dominate a matrix's update, and a "
        "second moment must be stored for each weight."
    ),
    apply=apply,
    module="worthit.train.optim.muon:Muon",
    parity=(
        "torch 2.13 `torch.optim.Muon`, both scales, with and without Nesterov: weights, bit for "
        "bit (tests/train/optim/test_parity.py)",
        "pytorch-optimizer 4.1 `Muon`: weights, bit for bit (tests/train/optim/test_parity.py)",
        "its polynomial on the singular values of a decomposition "
        "(tests/train/optim/test_equations.py)",
    ),
    experiment="worthit.lab.experiments.muon:EXPERIMENT",
    is_present=is_present,
    remove=with_adamw,
    adoption="calibrate",
    cost_of_adoption=(
        "Learning rates and weight decay tuned anew for two groups of parameters, and gathers of "
        "whole matrices where they are sharded."
    ),
    nothing_when=(
        "Most parameters are embeddings, the batch is so small that five iterations cost as much "
        "as the step, or the run is short and fine-tunes a model trained with AdamW."
    ),
    pitfalls=(
        "Embeddings, output head, norms and biases belong to AdamW: Muon on them hurts.",
        "Its iteration yields singular values between about 0.7 and 1.2, not exactly 1: that is "
        "enough, and not an orthogonal factor.",
        "Query, key and value in one fused matrix are orthogonalised together: split them.",
        "Without weight decay and a scale by shape, large models let their weights grow.",
        "Fine-tuning an AdamW-trained model with it shows little of the gain.",
        "Compare only against an AdamW whose learning rate was tuned as well, at the end of decay.",
    ),
    sources=(JORDAN_2024, LIU_2025, WEN_2025),
    evidence=(
        Evidence(
            claim="Scaling-law runs reach AdamW's loss with about 52 % of its training FLOPs; a "
            "16B mixture of experts is trained on 5.7 trillion tokens.",
            source=LIU_2025,
        ),
        Evidence(
            claim="Against tuned AdamW the speed-up of matrix optimizers is 1.4 times at 0.1B and "
            "shrinks to 1.1 at 1.2B; much of what is claimed comes from weak baselines.",
            source=WEN_2025,
        ),
    ),
    orientation={
        "en": "A momentum matrix usually has a few strong directions and many faint ones; a step "
        "along it moves mostly the strong. Muon makes all directions equally strong, with five "
        "cheap matrix iterations instead of a decomposition, and so learns from rare directions "
        "too. It keeps one state per weight instead of two. How many tokens that saves is "
        "disputed: nearly half by its users' account, a tenth at a billion parameters by the most "
        "careful comparison.",
        "es": "Una matriz de momento suele tener unas pocas direcciones fuertes y muchas débiles, "
        "y un paso en esa dirección mueve sobre todo las fuertes. Muon las iguala todas con cinco "
        "iteraciones matriciales baratas, en lugar de una descomposición, y así aprende también de "
        "las direcciones raras. Guarda un estado por peso en lugar de dos. Cuántos tokens ahorra "
        "es motivo de disputa: casi la mitad según quienes lo usan, una décima parte con mil "
        "millones de parámetros según la comparación más cuidadosa.",
    },
    diagram=(
        "gradient of a matrix",
        "momentum",
        "-second moment a weight",
        "+five Newton-Schulz iterations: momentum => nearly orthogonal",
        "+scale by shape, weight decay",
        "fp32 master copy, bf16 weights",
    ),
)
