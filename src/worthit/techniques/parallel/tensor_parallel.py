"""Tensor parallelism: every matrix is split over the devices of one fast link.

Changes: `layout.tensor`; heads and hidden channels are divided, the residual stream is not.
Relieves: reading and multiplying of weights by one device, and their memory.
Does nothing when: there is one device, or its link is slow beside the work of a layer.
Costs: two all-reduces a layer, each with a floor; efficiency a device falls.

Held equal: the devices. Without it they run replicas of the whole model.
"""

from __future__ import annotations

from worthit.errors import NotApplicable
from worthit.spec.case import Case
from worthit.spec.model import Attention, LatentAttention
from worthit.techniques._change import with_layout
from worthit.techniques._record import Evidence, Source, Technique
from worthit.techniques.parallel._devices import (
    KORTHIKANTI_2022,
    NARAYANAN_2021,
    divisors,
    fits,
    free_devices,
    require_devices,
)

SHOEYBI_2019 = Source(
    cite="Shoeybi et al. 2019",
    title="Megatron-LM: Training Multi-Billion Parameter Language Models Using Model Parallelism",
    id="arXiv:1909.08053",
    where="section 3",
)
GPT_FAST_2023 = Source(
    cite="PyTorch team 2023",
    title="gpt-fast",
    id="github.com/pytorch-labs/gpt-fast",
    where="README, tensor parallelism on A100",
)


def apply(case: Case, *, degree: int | None = None) -> Case:
    """Return `case` with its matrices split `degree` ways.

    None takes the widest split within one link domain that divides the heads; key/value heads too,
    unless what must be held then does not fit.
    """
    require_devices(case, "tensor-parallel")
    layout, device = case.hardware.layout, case.hardware.device
    free = free_devices(case, layout.pipeline, layout.context)
    chosen = _widest(case, free) if degree is None else degree
    if chosen is None or chosen > free:
        raise NotApplicable(
            f"tensor-parallel needs a degree that divides the heads {_heads(case)} and the "
            f"{free} devices it may use, within a link domain of {device.link_domain} "
            f"{device.name}; got {degree or 'none'}; change n_devices or try pipeline-parallel"
        )
    expert = min(layout.expert, max(free // chosen, 1))
    return with_layout(case, tensor=chosen, expert=expert)


def _heads(case: Case) -> tuple[int, ...]:
    mixers = case.model.mixers
    return tuple(m.n_heads for m in mixers if isinstance(m, Attention | LatentAttention))


def _widest(case: Case, free: int) -> int | None:
    heads = _heads(case)
    degrees = [
        d
        for d in divisors(free, case.hardware.device.link_domain)
        if all(n % d == 0 for n in heads)
    ]
    kv_heads = [m.n_kv_heads for m in case.model.mixers if isinstance(m, Attention)]
    # Beyond the number of key/value heads these are replicated, and the cache with them.
    whole = [d for d in degrees if all(n % d == 0 for n in kv_heads) and fits(case, d)]
    return max(whole or degrees, default=None)


def is_present(case: Case) -> bool:
    """Whether matrices are split already."""
    return (case.hardware.layout.tensor or 1) > 1


def remove(case: Case) -> Case:
    """Return `case` with whole matrices; the devices become replicas."""
    return with_layout(case, tensor=1)


TECHNIQUE = Technique(
    id="tensor-parallel",
    name="Tensor parallelism",
    relieves=("decode-weights", "weight-capacity", "matmul-compute"),
    bottleneck="One device must hold, read and multiply every matrix by itself.",
    apply=apply,
    is_present=is_present,
    remove=remove,
    adoption="drop-in",
    cost_of_adoption=(
        "Devices on one fast link and one engine flag; output per device falls (0.37 of a single "
        "one for an 8B model on 8 A100 at batch 1)."
    ),
    nothing_when=(
        "There is one device, the model is so small that all-reduce floors of 5 to 20 us a layer "
        "outweigh its work, or only throughput counts and the model fits one device: replicas "
        "yield more."
    ),
    pitfalls=(
        "With more devices than key/value heads the heads are replicated; a latent cache always "
        "is.",
        "Across nodes the link is an order of magnitude slower: pipeline stages belong there.",
        "The all-reduce has a floor whatever the size: it decides at batch 1.",
        "Norms and residuals are done in full on each device unless sequence parallelism splits "
        "them.",
    ),
    sources=(SHOEYBI_2019, NARAYANAN_2021, KORTHIKANTI_2022),
    evidence=(
        Evidence(
            claim="An 8B model in bf16 on A100 at batch 1: 8 devices cut latency 2.94 times, at "
            "0.37 of the efficiency per device.",
            source=GPT_FAST_2023,
        ),
    ),
    orientation={
        "en": "Tensor parallelism cuts each matrix into columns or rows and gives every device a "
        "slice: its own attention heads, its own part of the hidden layer. All work on the same "
        "token at once and add up their results twice a layer. It is the way to make one answer "
        "come faster, or to fit a model that one device cannot hold; the adding up is why it stops "
        "helping, and why it costs throughput.",
        "es": "El paralelismo de tensores corta cada matriz en columnas o filas y da una parte a "
        "cada dispositivo: sus propias cabezas de atención, su trozo de la capa oculta. Todos "
        "trabajan a la vez en el mismo token y suman sus resultados dos veces por capa. Es la "
        "manera de que una respuesta llegue antes, o de alojar un modelo que no cabe en un "
        "dispositivo; esas sumas son la razón de que deje de ayudar y de que cueste rendimiento "
        "total.",
    },
    diagram=(
        "x, whole on every device",
        "~q, k, v, up: whole matrices => columns of heads and channels, one slice a device",
        "attention on the device's own heads",
        "~o, down: whole matrices => rows, one slice a device",
        "+all-reduce, twice a layer",
    ),
)
