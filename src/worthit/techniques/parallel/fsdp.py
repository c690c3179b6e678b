"""Fully sharded data parallelism: replicas share weights, gradients and optimizer states.

Changes: `layout.zero` to 3: each replica keeps one part and gathers a layer when it needs it.
Relieves: memory of optimizer states, gradients and weights, by the number of replicas.
Does nothing when: everything fits on each device, or there is one replica.
Costs: half as much traffic again as plain data parallelism, hidden if batches are large.

Held equal: the replicas and the batch. Exact: the update is the same.
"""

from __future__ import annotations

from worthit.errors import NotApplicable
from worthit.spec.case import Case
from worthit.techniques._change import require_training, with_layout
from worthit.techniques._record import Evidence, Source, Technique
from worthit.techniques.parallel._devices import (
    RAJBHANDARI_2019,
    free_devices,
    require_devices,
)

ZHAO_2023 = Source(
    cite="Zhao et al. 2023",
    title="PyTorch FSDP: Experiences on Scaling Fully Sharded Data Parallel",
    id="arXiv:2304.11277",
    where="section 3",
)


def apply(case: Case) -> Case:
    """Return `case` with everything that replicas hold in common divided among them."""
    require_training(case, "fsdp")
    n = require_devices(case, "fsdp")
    layout = case.hardware.layout
    taken = (layout.tensor or 1, layout.pipeline, layout.context)
    if free_devices(case, *taken) < 2:
        raise NotApplicable(
            f"fsdp shards over data-parallel replicas, and all {n} devices form one: tensor="
            f"{taken[0]}, pipeline={taken[1]}, context={taken[2]}; lower one of them or add devices"
        )
    return with_layout(case, zero=3)


def is_present(case: Case) -> bool:
    """Whether weights, gradients and states are sharded already."""
    return case.hardware.layout.zero == 3


def remove(case: Case) -> Case:
    """Return `case` with everything on each replica."""
    return with_layout(case, zero=0)


TECHNIQUE = Technique(
    id="fsdp",
    name="Fully sharded data parallelism (ZeRO-3)",
    relieves=("optimizer-memory", "weight-capacity"),
    bottleneck=(
        "Data-parallel replicas each hold the same weights, gradients and optimizer states: 16 "
        "bytes a parameter with Adam."
    ),
    apply=apply,
    is_present=is_present,
    remove=remove,
    adoption="drop-in",
    cost_of_adoption=(
        "A wrapper around the layers; checkpoints in shards; two gathers and one reduction of the "
        "weights a step for one reduction."
    ),
    nothing_when=(
        "The whole state fits on each device (then plain data parallelism sends less), or there is "
        "one replica."
    ),
    pitfalls=(
        "Small micro-batches cannot hide the gathers, least of all between nodes: shard within a "
        "node and replicate between (hybrid).",
        "With gradient accumulation weights are gathered at each micro-batch unless they are kept.",
        "Activations are not sharded: they, and the logits, are what overflows next.",
        "Optimizers that need whole matrices (Muon, Shampoo, SOAP) must gather them.",
    ),
    sources=(RAJBHANDARI_2019, ZHAO_2023),
    evidence=(
        Evidence(
            claim="7.5B parameters over 64 devices with Adam: 120 GB a device becomes 31.4 with "
            "states divided, 16.6 with gradients too, 1.9 with weights too.",
            source=RAJBHANDARI_2019,
        ),
    ),
    orientation={
        "en": "Data-parallel training repeats everything on every device, though each needs a "
        "layer's weights only for the moment it computes that layer. Full sharding leaves a part "
        "with each device, gathers a layer just before it is used and drops it after, and reduces "
        "gradients straight to their owner. Memory is divided by the number of devices; the price "
        "is half as much traffic again, hidden behind arithmetic if there is enough of it.",
        "es": "El entrenamiento con datos en paralelo repite todo en cada dispositivo, aunque "
        "cada uno solo necesita los pesos de una capa mientras la calcula. El reparto completo "
        "deja una parte en cada dispositivo, reúne una capa justo antes de usarla y la suelta "
        "después, y reduce los gradientes directamente en su dueño. La memoria se divide por el "
        "número de dispositivos; el precio es la mitad más de tráfico, oculto tras la aritmética "
        "si hay suficiente.",
    },
    diagram=(
        "batch, a part a replica",
        "~weights, gradients, states: whole on each replica => one part each",
        "+all-gather a layer's weights before forward and before backward",
        "~gradients: all-reduce => reduce-scatter to their owner",
        "optimizer step on the replica's own part",
    ),
)
