"""SOAP: AdamW run in the slowly turning eigenbasis of Shampoo's covariances.

Changes: the optimizer of the layers' matrices: two covariances and two bases beside AdamW's states,
for sides of at most `max_side`; tables and norms stay with AdamW.
Relieves: training compute, by the share of tokens it needs less.
Does nothing when: optimizer memory binds already, or the batch is small.
Costs: more memory than AdamW, rotations at every step; one more setting.

Held equal: model, data and batch.
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

VYAS_2024 = Source(
    cite="Vyas et al. 2024",
    title="SOAP: Improving and Stabilizing Shampoo using Adam",
    id="arXiv:2409.11321",
    where="algorithm 3",
)

# A power-iteration step (2 n^3) and a Householder QR with its factor formed (8/3 n^3).
REFRESH_FLOPS = 2 + 8 / 3
# Share of AdamW's tokens: .6 as claimed at 360M and 660M with large batches; 1.4 times faster at
# 0.1B and 1.1 at 1.2B against tuned AdamW (Wen et al. 2025).
TOKENS_TO_TARGET = Range(mid=0.85, low=0.6, high=1.0)


def rotated(rows: int, columns: int, *, max_side: int) -> tuple[int, ...]:
    """The sides of a matrix that get a basis: longer ones keep the identity."""
    return tuple(side for side in (rows, columns) if side <= max_side)


def state_bytes(rows: int, columns: int, *, max_side: int) -> float:
    """Optimizer bytes a parameter: AdamW's 12, and a covariance and a basis for each side."""
    sides = rotated(rows, columns, max_side=max_side)
    return MASTER + 2 * STATE + STATE * 2 * sum(n * n for n in sides) / (rows * columns)


def step_flops(rows: int, columns: int, *, max_side: int, interval: int) -> float:
    """FLOPs a parameter and step.

    For each side of n: covariance, gradient and momentum rotated, step rotated back, 2 n each; the
    basis is refreshed every `interval` steps.
    """
    sides = rotated(rows, columns, max_side=max_side)
    refresh = REFRESH_FLOPS * sum(n**3 for n in sides) / (rows * columns) / interval
    return 8 * sum(sides) + refresh


def apply(
    case: Case,
    *,
    interval: int = 10,
    max_side: int = 10_000,
    tokens_to_target: Range = TOKENS_TO_TARGET,
) -> Case:
    """Return `case` with SOAP on its matrices and AdamW elsewhere."""
    return with_optimizer(
        case,
        "soap",
        bytes_of=lambda rows, columns: state_bytes(rows, columns, max_side=max_side),
        flops_of=lambda rows, columns: step_flops(
            rows, columns, max_side=max_side, interval=interval
        ),
        tokens_to_target=tokens_to_target,
    )


def is_present(case: Case) -> bool:
    """Whether SOAP trains the matrices."""
    return case.runtime.optimizer == "soap"


TECHNIQUE = Technique(
    id="soap",
    name="SOAP",
    relieves=("matmul-compute",),
    bottleneck=(
        "AdamW adapts along the axes of the weights, which are not the axes along which a matrix's "
        "gradient varies."
    ),
    apply=apply,
    module="worthit.train.optim.soap:SOAP",
    parity=(
        "pytorch-optimizer 4.1 `SOAP`, with refreshes and with sides left out: weights "
        "(tests/train/optim/test_parity.py)",
        "Adam on gradients turned by hand: weights (tests/train/optim/test_equations.py)",
    ),
    experiment="worthit.lab.experiments.soap:EXPERIMENT",
    is_present=is_present,
    remove=with_adamw,
    adoption="calibrate",
    cost_of_adoption=(
        "Up to 28 bytes of optimizer state a parameter of a square matrix instead of 12 (more for "
        "narrow ones), rotations at every step; learning rates carry over from AdamW."
    ),
    nothing_when=(
        "Optimizer memory binds already, the batch is small beside the widths, or most parameters "
        "are tables."
    ),
    pitfalls=(
        "Key and value projections of grouped attention are narrow: the covariance of their long "
        "side outweighs them several times over.",
        "Sides above the limit keep the identity: in wide models that is the feed-forward's.",
        "Sharded training must bring whole matrices together for the bases.",
        "Its gain was shown with large batches and below a billion parameters, and shrinks with "
        "size against a tuned AdamW; a replication on a small GPT found none in the final loss.",
    ),
    sources=(VYAS_2024, WEN_2025),
    evidence=(
        Evidence(
            claim="Language models of 360M and 660M with large batches: over 40 % fewer steps and "
            "35 % less time than AdamW, about 20 % of both less than Shampoo.",
            source=VYAS_2024,
        ),
        Evidence(
            claim="Among the fastest of ten optimizers when all are tuned; 1.4 times AdamW at "
            "0.1B, 1.1 at 1.2B.",
            source=WEN_2025,
        ),
    ),
    orientation={
        "en": "Shampoo finds the axes along which a gradient matrix really varies; Adam knows how "
        "to adapt a step size along given axes. SOAP does both: it turns gradients into Shampoo's "
        "eigenbasis, runs Adam there, and turns the step back. Because the basis moves slowly, "
        "refreshing it every ten steps is enough. It is steadier than Shampoo and keeps Adam's "
        "settings, at the price of covariances and bases in memory.",
        "es": "Shampoo encuentra los ejes a lo largo de los cuales varía de verdad una matriz de "
        "gradientes; Adam sabe adaptar el tamaño del paso a lo largo de unos ejes dados. SOAP hace "
        "ambas cosas: gira los gradientes a la base propia de Shampoo, ejecuta Adam allí y gira el "
        "paso de vuelta. Como la base se mueve despacio, basta con refrescarla cada diez pasos. Es "
        "más estable que Shampoo y conserva los ajustes de Adam, a cambio de guardar covarianzas y "
        "bases en memoria.",
    },
    diagram=(
        "gradient of a matrix",
        "+covariances of rows and of columns, their bases every interval steps",
        "+rotate gradient and momentum into the bases",
        "Adam: first and second moment, there",
        "+rotate the step back",
        "fp32 master copy, bf16 weights",
    ),
)
