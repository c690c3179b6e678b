"""Activation checkpointing: some activations are dropped and computed again in the backward pass.

Changes: `runtime.recompute`.
Relieves: memory of activations in training.
Does nothing when: training fits without it; it then only costs time.
Costs: a few per cent of time where what is cheap is recomputed, about a third for everything.

Held equal: the batch and the micro-batch. Exact: gradients are the same.
"""

from __future__ import annotations

from typing import Literal

from worthit.spec.case import Case
from worthit.techniques._change import require_training, with_runtime
from worthit.techniques._record import Evidence, Source, Technique
from worthit.techniques.parallel._devices import KORTHIKANTI_2022

CHEN_2016 = Source(
    cite="Chen et al. 2016",
    title="Training Deep Nets with Sublinear Memory Cost",
    id="arXiv:1604.06174",
    where="section 4",
)


def apply(case: Case, *, mode: Literal["selective", "full"] = "selective") -> Case:
    """Return `case` recomputing what is cheap (`selective`) or each layer (`full`)."""
    require_training(case, "activation-checkpointing")
    return with_runtime(case, recompute=mode)


def is_present(case: Case) -> bool:
    """Whether activations are recomputed already."""
    return case.runtime.recompute != "none"


def remove(case: Case) -> Case:
    """Return `case` keeping every activation."""
    return with_runtime(case, recompute="none")


TECHNIQUE = Technique(
    id="activation-checkpointing",
    name="Activation checkpointing",
    relieves=("activation-memory",),
    bottleneck=(
        "The backward pass needs the activations of every layer, and they wait in memory until "
        "then."
    ),
    apply=apply,
    is_present=is_present,
    remove=remove,
    adoption="drop-in",
    cost_of_adoption=(
        "One flag; 2 to 7 % of a step for what is cheap, 30 to 40 % for whole layers."
    ),
    nothing_when=(
        "Training fits without it, or what overflows is weights, optimizer states or logits."
    ),
    pitfalls=(
        "Recompute everything only when it does not fit otherwise: going from full to selective "
        "gives back 29 to 32 % of throughput.",
        "Fused attention recomputes its scores already: there selective saves activations of "
        "feed-forward and norms, not score matrices.",
        "Dropout and routing must repeat their random choices, or gradients are wrong.",
        "The freed memory pays only if it is used: a larger micro-batch or a longer sequence.",
    ),
    sources=(CHEN_2016, KORTHIKANTI_2022),
    evidence=(
        Evidence(
            claim="Up to a trillion parameters: with sequence parallelism, selective recomputation "
            "cuts activations five times and over 90 % of the time that full recomputation costs.",
            source=KORTHIKANTI_2022,
        ),
    ),
    orientation={
        "en": "To go backward through a network one needs what was computed going forward, and "
        "keeping it fills memory in proportion to depth and batch. Checkpointing keeps little, "
        "such as each layer's input, and computes the rest again when its turn comes. Recomputing "
        "whole layers costs about a third more time; recomputing only what is large and cheap "
        "costs a few per cent, and is often enough.",
        "es": "Para recorrer una red hacia atrás hace falta lo que se calculó hacia delante, y "
        "guardarlo llena la memoria en proporción a la profundidad y al lote. Esta técnica guarda "
        "poco, por ejemplo la entrada de cada capa, y vuelve a calcular el resto cuando le llega "
        "el turno. Recalcular capas enteras cuesta alrededor de un tercio más de tiempo; "
        "recalcular solo lo que es grande y barato cuesta un pequeño porcentaje, y a menudo basta.",
    },
    diagram=(
        "forward: layer inputs",
        "-activations inside the layer, until the backward pass",
        "loss",
        "+backward: compute the layer again from its input",
        "gradients",
    ),
)
