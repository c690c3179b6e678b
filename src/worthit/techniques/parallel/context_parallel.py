"""Context parallelism: one sequence is cut over devices, keys and values pass round in a ring.

Changes: `layout.context`; if tensor parallelism held those devices, its degree shrinks.
Relieves: attention arithmetic, activations and cache of one long sequence.
Does nothing when: sequences are short, or there are enough of them to fill the devices.
Costs: keys and values sent at every layer; weights are held by each device.

Held equal: the devices. Exact: the attention is the same.
"""

from __future__ import annotations

from worthit.errors import NotApplicable
from worthit.spec.case import Case
from worthit.techniques._change import require_growing_cache, with_layout
from worthit.techniques._record import Evidence, Source, Technique
from worthit.techniques.parallel._devices import (
    divisors,
    fits,
    free_devices,
    require_devices,
)

LIU_2023 = Source(
    cite="Liu et al. 2023",
    title="Ring Attention with Blockwise Transformers for Near-Infinite Context",
    id="arXiv:2310.01889",
    where="section 3, algorithm 1",
)
YANG_2024 = Source(
    cite="Yang et al. 2024",
    title="Context Parallelism for Scalable Million-Token Inference",
    id="arXiv:2411.01783",
)


def apply(case: Case, *, degree: int | None = None) -> Case:
    """Return `case` with each sequence cut over `degree` devices.

    None takes all replicas within a link domain, or half of a tensor-parallel group where that
    leaves none and the rest still holds the weights.
    """
    require_growing_cache(case, "context-parallel")
    require_devices(case, "context-parallel")
    layout, device = case.hardware.layout, case.hardware.device
    tensor = layout.tensor or 1
    per_tensor = free_devices(case, layout.pipeline, tensor)
    if degree is None:
        within = divisors(per_tensor, device.link_domain)
        degree = within[-1] if within else 2
    left = min(tensor, free_devices(case, layout.pipeline, degree))
    if left < 1 or (left < tensor and not fits(case, left * layout.pipeline)):
        raise NotApplicable(
            f"context-parallel repeats the weights on each of {degree} parts of a sequence, and "
            f"what that leaves of {case.hardware.n_devices} devices of "
            f"{device.mem_bytes / 1e9:.4g} GB does not hold them; add devices or narrow the weights"
        )
    return with_layout(case, context=degree, tensor=None if layout.tensor is None else left)


def is_present(case: Case) -> bool:
    """Whether sequences are cut over devices already."""
    return case.hardware.layout.context > 1


def remove(case: Case) -> Case:
    """Return `case` with whole sequences."""
    return with_layout(case, context=1)


TECHNIQUE = Technique(
    id="context-parallel",
    name="Context (ring) parallelism",
    relieves=("attention-compute", "activation-memory", "kv-capacity", "decode-cache"),
    metric="ttft_s",
    bottleneck=(
        "One long sequence alone overflows a device's memory or keeps its attention busy too long."
    ),
    apply=apply,
    is_present=is_present,
    remove=remove,
    adoption="drop-in",
    cost_of_adoption=(
        "A framework with ring or all-gather attention, and links that carry keys and values while "
        "a block is computed."
    ),
    nothing_when=(
        "Sequences are short (projections, not attention, take the time, and sending does not hide "
        "behind it), or many sequences already fill the devices as replicas."
    ),
    pitfalls=(
        "Cut in order, the causal mask leaves early devices idle: give each a part from both ends.",
        "A block must take longer to compute than to send; on slow links short blocks do not.",
        "Merging partial results needs the log-sum-exp of each, in fp32.",
        "In decode one new token meets cut keys: queries travel, not keys.",
        "Recurrent layers pass their state along instead, in order.",
    ),
    sources=(LIU_2023, YANG_2024),
    evidence=(
        Evidence(
            claim="Llama 3 405B prefills a million tokens in 77 s on 128 H100, at 93 % parallel "
            "efficiency.",
            source=YANG_2024,
        ),
    ),
    orientation={
        "en": "When one sequence is too long for a device, its tokens can be shared out. Each "
        "device computes the queries of its own part, while keys and values travel round the ring "
        "so that every query meets every key; partial results are merged exactly. Memory and "
        "attention are divided by the number of devices, weights are not. Below some tens of "
        "thousands of tokens plain replicas do better.",
        "es": "Cuando una secuencia es demasiado larga para un dispositivo, sus tokens se pueden "
        "repartir. Cada uno calcula las consultas de su parte, mientras las claves y los valores "
        "circulan por el anillo para que cada consulta encuentre cada clave; los resultados "
        "parciales se combinan de forma exacta. La memoria y la atención se dividen por el número "
        "de dispositivos, los pesos no. Por debajo de unas decenas de miles de tokens, unas "
        "réplicas corrientes rinden más.",
    },
    diagram=(
        "~tokens of a sequence: all on one device => a part a device",
        "q, k, v of the device's own part",
        "+send k, v to the next device, receive the previous ones, round the ring",
        "+merge partial attention by log-sum-exp",
        "o_proj, feed-forward on the device's own part",
    ),
)
