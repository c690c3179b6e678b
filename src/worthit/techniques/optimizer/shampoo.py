"""Shampoo: each matrix gradient is preconditioned on both sides by roots of its covariances.

Changes: the optimizer of the layers' matrices, in blocks: two covariances and two inverse roots
beside master copy, momentum and the grafted step size; tables and norms stay with AdamW.
Relieves: training compute, by the share of tokens it needs less.
Does nothing when: memory is short already, or the batch is small beside the blocks.
Costs: more optimizer memory than AdamW, inverse roots every so often, many settings.

Held equal: model, data and batch.
"""

from __future__ import annotations

from collections.abc import Iterator

from worthit.spec.case import Case, Range
from worthit.techniques._record import Evidence, Source, Technique
from worthit.techniques.optimizer._shapes import (
    MASTER,
    STATE,
    WEN_2025,
    with_adamw,
    with_optimizer,
)

GUPTA_2018 = Source(
    cite="Gupta et al. 2018",
    title="Shampoo: Preconditioned Stochastic Tensor Optimization",
    id="arXiv:1802.09568",
    where="algorithm 1",
)
SHI_2023 = Source(
    cite="Shi et al. 2023",
    title="A Distributed Data-Parallel PyTorch Implementation of the Distributed Shampoo Optimizer "
    "for Training Neural Networks At-Scale",
    id="arXiv:2309.06497",
    where="sections 3 and 4",
)
KASIMBEG_2025 = Source(
    cite="Kasimbeg et al. 2025",
    title="Accelerating Neural Network Training: An Analysis of the AlgoPerf Competition",
    id="arXiv:2502.15015",
)

# Symmetric eigendecomposition with vectors takes about 9 n^3 FLOPs (Golub & Van Loan, Matrix
# Computations, section 8.3), rebuilding the root from it 2 n^3.
ROOT_FLOPS = 11
# Share of AdamW's tokens: .72 from AlgoPerf's 28 % (wall clock, small tasks); SOAP's authors place
# Shampoo a fifth behind SOAP; language models of a billion parameters show about a tenth at best.
TOKENS_TO_TARGET = Range(mid=0.9, low=0.72, high=1.05)


def blocks(rows: int, columns: int, *, block: int) -> Iterator[tuple[int, int, int]]:
    """Sides and number of the blocks of a matrix: whole ones, and what remains at its ends."""
    for a, n_rows in ((block, rows // block), (rows % block, 1)):
        for b, n_columns in ((block, columns // block), (columns % block, 1)):
            if a and b and n_rows * n_columns:
                yield a, b, n_rows * n_columns


def state_bytes(rows: int, columns: int, *, block: int) -> float:
    """Optimizer bytes a parameter of a matrix cut into blocks of at most `block` on each side.

    Master copy, momentum and the grafted second moment; for each block a x b two covariances and
    two inverse roots: 2 (a^2 + b^2) numbers.
    """
    each = (2 * (a * a + b * b) * n for a, b, n in blocks(rows, columns, block=block))
    return MASTER + 2 * STATE + STATE * sum(each) / (rows * columns)


def step_flops(rows: int, columns: int, *, block: int, interval: int) -> float:
    """FLOPs a parameter and step: covariances and both products; roots every `interval` steps."""
    each = (
        n * (4 * (a + b) * a * b + ROOT_FLOPS * (a**3 + b**3) / interval)
        for a, b, n in blocks(rows, columns, block=block)
    )
    return sum(each) / (rows * columns)


def apply(
    case: Case,
    *,
    block: int = 1024,
    interval: int = 50,
    tokens_to_target: Range = TOKENS_TO_TARGET,
) -> Case:
    """Return `case` with blocked Shampoo on its matrices and AdamW elsewhere."""
    return with_optimizer(
        case,
        "shampoo",
        bytes_of=lambda rows, columns: state_bytes(rows, columns, block=block),
        flops_of=lambda rows, columns: step_flops(rows, columns, block=block, interval=interval),
        tokens_to_target=tokens_to_target,
    )


def is_present(case: Case) -> bool:
    """Whether Shampoo trains the matrices."""
    return case.runtime.optimizer == "shampoo"


TECHNIQUE = Technique(
    id="shampoo",
    name="Shampoo",
    relieves=("matmul-compute",),
    bottleneck=(
        "AdamW scales every weight alone and ignores how rows and columns of a gradient vary "
        "together, so it needs more steps."
    ),
    apply=apply,
    module="worthit.train.optim.shampoo:Shampoo",
    parity=(
        "pytorch-optimizer 4.1 `Shampoo`, the algorithm of 2018: weights "
        "(tests/train/optim/test_parity.py)",
        "a loop over blocks with fractional powers by scipy, grafted: weights "
        "(tests/train/optim/test_equations.py)",
    ),
    experiment="worthit.lab.experiments.shampoo:EXPERIMENT",
    is_present=is_present,
    remove=with_adamw,
    adoption="calibrate",
    cost_of_adoption=(
        "Up to 28 bytes of optimizer state a parameter instead of 12, an implementation that "
        "spreads roots over devices, and tuning of grafting, block size and interval."
    ),
    nothing_when=(
        "Optimizer memory binds already, the batch is small (roots and products then cost as much "
        "as the step), or most parameters are tables."
    ),
    pitfalls=(
        "Inverse roots run far below the peak of an accelerator: count their time, not their "
        "FLOPs.",
        "Without grafting the step size is wrong; with it, the gain depends on what is grafted.",
        "Stale preconditioners (a long interval) lose stability; short ones lose time.",
        "Roots need fp32 or better, and a floor on tiny eigenvalues.",
        "Blocks keep memory in bounds and lose the covariance between blocks.",
    ),
    sources=(GUPTA_2018, SHI_2023, WEN_2025),
    evidence=(
        Evidence(
            claim="Winner of the first AlgoPerf contest with tuning: about 28 % less wall-clock "
            "time than a tuned AdamW-like baseline over eight tasks.",
            source=KASIMBEG_2025,
        ),
        Evidence(
            claim="Spread over devices, it adds at most 10 % to the time of a step.",
            source=SHI_2023,
        ),
    ),
    orientation={
        "en": "Shampoo looks at a gradient as the matrix it is. It accumulates how its rows vary "
        "together and how its columns do, and multiplies the gradient by inverse roots of both, so "
        "that steep directions are shortened and flat ones stretched. The roots are dear, "
        "therefore matrices are cut into blocks and the roots renewed only now and then. It needs "
        "fewer steps than AdamW and roughly twice its memory.",
        "es": "Shampoo trata el gradiente como la matriz que es. Acumula cómo varían juntas sus "
        "filas y cómo lo hacen sus columnas, y multiplica el gradiente por raíces inversas de "
        "ambas, de modo que las direcciones empinadas se acortan y las planas se alargan. Las "
        "raíces son caras, por eso las matrices se cortan en bloques y las raíces se renuevan solo "
        "de vez en cuando. Necesita menos pasos que AdamW y aproximadamente el doble de memoria.",
    },
    diagram=(
        "gradient of a matrix, in blocks",
        "+covariances of rows and of columns",
        "+inverse fourth roots, every interval steps",
        "~step: gradient / sqrt(second moment) => root x gradient x root, grafted size",
        "fp32 master copy, bf16 weights",
    ),
)
