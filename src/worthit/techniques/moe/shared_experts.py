"""Shared experts: one or more experts run for every token beside the routed ones.

Changes: `n_shared` of a token's k routed experts become shared. Matched: active parameters and
compute; the total grows by the shared experts, as the routed ones keep their number (and with it
their even split over devices).
Relieves: quality: common knowledge is learnt once and not in every expert.
Does nothing when: tokens have one routed expert (none could be given up), or batches are large.
Costs: training anew; a little memory; measured benefits differ between studies.
"""

from __future__ import annotations

from dataclasses import replace

from worthit.errors import NotApplicable
from worthit.spec.case import Case
from worthit.spec.model import MoE
from worthit.techniques._mixers import require_absent
from worthit.techniques._record import Evidence, Technique
from worthit.techniques.moe._experts import (
    DAI_2024,
    MUENNIGHOFF_2024,
    map_mixtures,
    mixtures,
    require_mixtures,
)


def apply(case: Case, *, n_shared: int = 1) -> Case:
    """Return `case` with `n_shared` shared experts in place of as many routed ones a token."""
    found = require_mixtures(case, "shared-experts")
    require_absent(is_present(case), "shared-experts", "some experts run for every token")
    able = [m for m in found if _can_share(m, n_shared)]
    if not able:
        counts = ", ".join(f"{m.n_experts_per_token} of {m.n_experts}" for m in found)
        raise NotApplicable(
            f"shared-experts gives up {n_shared} of each token's routed experts for shared ones, "
            f"and tokens here use {counts}; it needs token choice and more than {n_shared} a token"
        )

    def share(m: MoE) -> MoE:
        if not _can_share(m, n_shared):
            return m
        return replace(
            m,
            n_experts_per_token=m.n_experts_per_token - n_shared,
            shared=replace(m.expert, d_ff=n_shared * m.expert.d_ff),
            n_shared_experts=n_shared,
        )

    return map_mixtures(case, share)


def is_present(case: Case) -> bool:
    """Whether some mixture has experts that run for every token."""
    return any(m.shared is not None for m in mixtures(case))


def remove(case: Case) -> Case:
    """Return `case` with routed experts in place of the shared ones, as many active parameters."""

    def route(m: MoE) -> MoE:
        if m.shared is None:
            return m
        per_token = m.n_experts_per_token + max(1, round(m.shared.d_ff / m.expert.d_ff))
        return replace(
            m,
            n_experts_per_token=min(per_token, m.n_experts),
            shared=None,
            n_shared_experts=0,
            has_shared_gate=False,
        )

    return map_mixtures(case, route)


def _can_share(m: MoE, n_shared: int) -> bool:
    return m.routing == "token-choice" and 0 < n_shared < m.n_experts_per_token


TECHNIQUE = Technique(
    id="shared-experts",
    name="Shared experts",
    relieves=("quality",),
    bottleneck="Every routed expert has to learn the same common knowledge again.",
    apply=apply,
    module="worthit.nn.moe.shared_experts:SharedExperts",
    parity=(
        "transformers 5.23 blocks of Qwen2-MoE, DeepSeek-V3 and Llama 4: outputs and gradients "
        "(tests/nn/moe/test_topk_moe.py)",
    ),
    experiment="worthit.lab.experiments.shared_experts:EXPERIMENT",
    is_present=is_present,
    remove=remove,
    adoption="retrain",
    cost_of_adoption="A pretraining run; which knowledge is common is learnt from the start.",
    nothing_when=(
        "The model routes each token to a single expert, experts are few and wide, or the batch "
        "touches every expert anyway; in decoding it only spares some distinct experts."
    ),
    pitfalls=(
        "Studies disagree on the gain: fine-grained mixtures profited in one, none was found in "
        "another.",
        "With expert parallelism the shared expert is computed on every device and can be hidden "
        "behind the exchange, if the schedule is written for it.",
        "Leaving the number of routed experts a token as it was makes the comparison unfair: the "
        "model then computes more.",
    ),
    sources=(DAI_2024, MUENNIGHOFF_2024),
    evidence=(
        Evidence(
            claim="Fine-grained experts with one shared, at 2B parameters, come close to a "
            "conventional mixture with one and a half times the expert parameters and compute.",
            source=replace(DAI_2024, where="section 4"),
        ),
        Evidence(
            claim="In another ablation of a fine-grained mixture, making one expert shared did not "
            "help and was slightly worse, so the released model has none.",
            source=MUENNIGHOFF_2024,
        ),
    ),
    orientation={
        "en": "Whatever expert a token goes to, some knowledge is always needed: grammar, common "
        "words, formatting. A shared expert that runs for every token can hold it once, and the "
        "routed experts are free to specialise. Compute stays equal when a token gives up one "
        "routed expert for it. The cost side is small in either direction; whether quality gains "
        "depends on the model, and published ablations disagree.",
        "es": "Vaya un token al experto que vaya, cierto conocimiento hace falta siempre: "
        "gramática, palabras corrientes, formato. Un experto compartido que se ejecuta para todos "
        "los tokens puede guardarlo una sola vez, y los expertos enrutados quedan libres para "
        "especializarse. El cálculo no cambia si el token renuncia a un experto enrutado a cambio. "
        "El efecto en el coste es pequeño en ambos sentidos; si la calidad mejora depende del "
        "modelo, y los estudios publicados no coinciden.",
    },
    diagram=(
        "x",
        "~router: keep k => k - n_shared",
        "+shared expert: every token",
        "routed experts",
        "~sum: routed => shared + routed",
        "y",
    ),
)
