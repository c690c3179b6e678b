"""Which devices a technique may split over, and by how much it must."""

from __future__ import annotations

from math import prod

from worthit.cost.params import count_layer, count_params, ffn_params
from worthit.errors import NotApplicable
from worthit.spec.case import Case, Training
from worthit.spec.formats import format_of
from worthit.spec.model import MoE
from worthit.techniques._record import Source

# Share of a device's memory that weights and states may fill; the rest is cache or activations.
FILLED = 0.75
# Beside weights and optimizer states, training holds gradients of this many bytes a parameter.
GRADIENT_BYTES = 2.0

NARAYANAN_2021 = Source(
    cite="Narayanan et al. 2021",
    title="Efficient Large-Scale Language Model Training on GPU Clusters Using Megatron-LM",
    id="arXiv:2104.04473",
    where="sections 2.2, 2.3 and 3",
)
KORTHIKANTI_2022 = Source(
    cite="Korthikanti et al. 2022",
    title="Reducing Activation Recomputation in Large Transformer Models",
    id="arXiv:2205.05198",
    where="sections 4 and 5, tables 2 and 4",
)
RAJBHANDARI_2019 = Source(
    cite="Rajbhandari et al. 2019",
    title="ZeRO: Memory Optimizations Toward Training Trillion Parameter Models",
    id="arXiv:1910.02054",
    where="section 5, figure 1",
)


def require_devices(case: Case, name: str) -> int:
    """How many devices the case has, or `NotApplicable` when it is one."""
    n = case.hardware.n_devices
    if n < 2:
        device = case.hardware.device
        raise NotApplicable(
            f"{name} splits one model over several devices; this case has one {device.name}; it "
            f"acts from --on {device.id}:2"
        )
    return n


def free_devices(case: Case, *others: int) -> int:
    """Devices of one replica when the degrees `others` are kept."""
    return case.hardware.n_devices // prod(others)


def divisors(n: int, most: int) -> list[int]:
    """Divisors of `n` between 2 and `most`, in increasing order."""
    return [d for d in range(2, min(n, most) + 1) if n % d == 0]


def held_bytes(case: Case) -> float:
    """Weights in memory, with gradients and optimizer states in training, over all devices."""
    model = case.model
    inside = sum(count_layer(layer, model.d_model).total * n for layer, n in model.layer_kinds)
    total = count_params(model).total
    experts = sum(
        layer.ffn.n_experts * ffn_params(layer.ffn.expert, model.d_model).total * n
        for layer, n in model.layer_kinds
        if isinstance(layer.ffn, MoE)
    )
    p = model.precision
    held = (
        (inside - experts) * format_of(p.weights).bytes
        + experts * format_of(p.of_experts).bytes
        + (total - inside) * format_of(p.embeddings).bytes
    )
    if isinstance(case.workload, Training):
        held += total * (GRADIENT_BYTES + case.runtime.optimizer_bytes_per_param)
    return held


def fits(case: Case, n_devices: int) -> bool:
    """Whether what must be held fits on `n_devices` that share it evenly."""
    return held_bytes(case) / n_devices <= FILLED * case.hardware.device.mem_bytes
