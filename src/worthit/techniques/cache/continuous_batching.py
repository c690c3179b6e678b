"""Continuous batching: a finished sequence leaves the batch at once and another takes its slot.

Changes: `runtime.has_continuous_batching`.
Relieves: slots of a batch that wait, idle, for its longest output.
Does nothing when: outputs are equally long, or one sequence runs at a time.
Costs: an engine with a scheduler that decides at every step.

Held equal: the sequences in flight. The baseline is a static batch that ends with its longest
output.
"""

from __future__ import annotations

from worthit.spec.case import Case
from worthit.techniques._change import require_serving, with_runtime
from worthit.techniques._record import Evidence, Technique
from worthit.techniques.cache._sources import YU_2022


def apply(case: Case) -> Case:
    """Return `case` scheduling at every step."""
    require_serving(case, "continuous-batching")
    return with_runtime(case, has_continuous_batching=True)


def is_present(case: Case) -> bool:
    """Whether the scheduler refills slots at every step already."""
    return case.runtime.has_continuous_batching


def remove(case: Case) -> Case:
    """Return `case` with static batches."""
    return with_runtime(case, has_continuous_batching=False)


TECHNIQUE = Technique(
    id="continuous-batching",
    name="Continuous batching",
    relieves=("batch-idle",),
    bottleneck=(
        "A static batch runs until its longest output ends, while finished sequences keep their "
        "slots and new requests wait."
    ),
    apply=apply,
    experiment="worthit.lab.experiments.continuous_batching:EXPERIMENT",
    is_present=is_present,
    remove=remove,
    adoption="drop-in",
    cost_of_adoption="A serving engine with iteration-level scheduling; nothing to train.",
    nothing_when=(
        "One sequence is in flight, all outputs are equally long, or there is no next request "
        "waiting for the slot."
    ),
    pitfalls=(
        "Joining sequences bring their prefill into everybody's step: without chunked prefill the "
        "others stall.",
        "Without paging, slots of different lengths fragment the memory that joining needs.",
        "Results may change in the last bits as the batch changes; exact repeatability needs "
        "batch-invariant kernels.",
        "A preempted request must not emit its tokens twice and must keep its random state.",
    ),
    module="worthit.decode.engine.scheduler:Scheduler",
    parity=(
        "random arrivals and aborts, each request as if it were alone; budget, counts and an "
        "empty end "
        "(tests/decode/engine/test_properties.py)",
        "greedy tokens of each sequence alone, on every kind of layer "
        "(tests/decode/engine/test_engine.py)",
    ),
    sources=(YU_2022,),
    evidence=(
        Evidence(
            claim="On GPT-3 175B, 36.9 times the throughput of FasterTransformer at the same "
            "latency; selective batching and pipelining are part of that number.",
            source=YU_2022,
        ),
    ),
    orientation={
        "en": "Answers differ in length. A static batch keeps every slot until the longest answer "
        "ends, so the device computes for fewer and fewer sequences. Continuous batching decides "
        "anew at every step: whoever has finished leaves, whoever waits joins. The more lengths "
        "differ and the larger the batch, the more it gains; for one user it gains nothing.",
        "es": "Las respuestas tienen longitudes distintas. Un lote estático conserva cada puesto "
        "hasta que acaba la respuesta más larga, de modo que el dispositivo calcula cada vez para "
        "menos secuencias. El procesamiento continuo decide de nuevo en cada paso: quien ha "
        "terminado sale y quien espera entra. Cuanto más varían las longitudes y mayor es el lote, "
        "más se gana; con un solo usuario no se gana nada.",
    },
    diagram=(
        "waiting requests",
        "~scheduler: once a batch => once a step",
        "-slots that idle until the longest output ends",
        "forward pass of the running sequences",
        "+finished sequences leave, waiting ones take their slots",
    ),
)
