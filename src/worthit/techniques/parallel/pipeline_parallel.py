"""Pipeline parallelism: consecutive layers stand on different devices, micro-batches flow through.

Changes: `layout.pipeline`; if tensor parallelism held those devices, its degree shrinks.
Relieves: memory of weights and states by one device, and traffic: stages pass activations only.
Does nothing when: the model fits, or there are too few micro-batches to fill the stages.
Costs: a bubble of (p - 1) / (m + p - 1) of the time; nothing gained for a single answer.

Held equal: the devices.
"""

from __future__ import annotations

from worthit.errors import NotApplicable
from worthit.spec.case import Case
from worthit.techniques._change import with_layout
from worthit.techniques._record import Evidence, Source, Technique
from worthit.techniques.parallel._devices import (
    NARAYANAN_2021,
    divisors,
    fits,
    free_devices,
    require_devices,
)

HUANG_2018 = Source(
    cite="Huang et al. 2018",
    title="GPipe: Efficient Training of Giant Neural Networks using Pipeline Parallelism",
    id="arXiv:1811.06965",
    where="section 2.3",
)


def apply(case: Case, *, degree: int | None = None) -> Case:
    """Return `case` in `degree` stages.

    None takes the fewest that hold the model together with what tensor parallelism divides.
    """
    require_devices(case, "pipeline-parallel")
    layout = case.hardware.layout
    free = free_devices(case, layout.context)
    stages = divisors(free, case.model.n_layers)
    if degree is not None:
        stages = [degree] if degree in stages else []
    if not stages:
        raise NotApplicable(
            f"pipeline-parallel cuts between layers into stages that divide the {free} devices it "
            f"may use, got {case.model.n_layers} layers{f' and {degree} stages' if degree else ''}"
            "; it needs a layer or more a stage"
        )
    tensor = layout.tensor or 1
    # Where replicas share their states (ZeRO), holding them is no reason for more stages.
    enough = [d for d in stages if layout.zero == 3 or fits(case, d * min(tensor, free // d))]
    chosen = enough[0] if enough else stages[-1]
    if layout.tensor is None:
        return with_layout(case, pipeline=chosen)
    return with_layout(
        case,
        pipeline=chosen,
        tensor=min(tensor, free // chosen),
        expert=min(layout.expert, free // chosen),
    )


def is_present(case: Case) -> bool:
    """Whether layers stand on several devices already."""
    return case.hardware.layout.pipeline > 1


def remove(case: Case) -> Case:
    """Return `case` with all layers on each replica's devices."""
    return with_layout(case, pipeline=1)


TECHNIQUE = Technique(
    id="pipeline-parallel",
    name="Pipeline parallelism",
    relieves=("weight-capacity", "communication"),
    bottleneck=(
        "The model does not fit the devices that one fast link joins, and splitting matrices over "
        "a slow link would wait for it twice a layer."
    ),
    apply=apply,
    is_present=is_present,
    remove=remove,
    adoption="drop-in",
    cost_of_adoption=(
        "A framework with a schedule (1F1B, interleaved), balanced stages, and enough "
        "micro-batches to keep the bubble small."
    ),
    nothing_when=(
        "The model fits without it, one sequence is decoded (each stage waits for the one before), "
        "or micro-batches are fewer than stages."
    ),
    pitfalls=(
        "Embedding and output head make the first and last stage heavier: balance layers by time.",
        "The first stage keeps activations of as many micro-batches as there are stages.",
        "Tied embeddings live on two stages and must be kept equal.",
        "Latency of one answer never falls: all layers are still passed in turn.",
    ),
    sources=(HUANG_2018, NARAYANAN_2021),
    evidence=(
        Evidence(
            claim="Together with tensor and data parallelism, GPT models up to a trillion "
            "parameters train on 3,072 A100 at 52 % of their peak.",
            source=NARAYANAN_2021,
        ),
    ),
    orientation={
        "en": "Pipeline parallelism puts the first layers on one device, the next on another, and "
        "hands activations along. That is little to send, so it works over slow links. With one "
        "batch only one device would be busy at a time; cut into micro-batches, several stages "
        "work at once, and what stays idle at the beginning and end is the bubble: "
        "(stages - 1) of (micro-batches + stages - 1).",
        "es": "El paralelismo en cadena coloca las primeras capas en un dispositivo, las "
        "siguientes en otro, y va pasando las activaciones. Es poco lo que se envía, así que "
        "funciona con enlaces lentos. Con un solo lote trabajaría un dispositivo cada vez; "
        "dividido en microlotes, varias etapas trabajan a la vez, y lo que queda ocioso al "
        "principio y al final es la burbuja: (etapas - 1) de cada (microlotes + etapas - 1).",
    },
    diagram=(
        "micro-batches",
        "~layers: all on each device => a stage of them a device",
        "+send activations to the next stage",
        "+bubble: stages idle while the pipeline fills and drains",
        "last stage: norm, head, loss",
    ),
)
