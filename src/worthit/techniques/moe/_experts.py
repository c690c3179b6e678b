"""Dense feed-forward to experts and back, and the papers that several records cite.

How large must each expert be for a fair comparison? A mixture knows more than its active and less
than its total parameters. As a rule of thumb it behaves like a dense model of their geometric mean;
that is an assumption (Clark et al. 2022 fit such an effective count; the square root itself is
practitioners' lore), stated wherever it is used. With E experts of width x and k active it reads
sqrt(E x * k x) = d_ff, so x = d_ff / sqrt(E k).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import sqrt

from worthit.errors import NotApplicable
from worthit.spec.case import Case
from worthit.spec.model import FeedForward, Ffn, MoE
from worthit.techniques._change import with_model
from worthit.techniques._mixers import WIDTH_MULTIPLE, layer_names, rounded
from worthit.techniques._record import Source

SHAZEER_2017 = Source(
    cite="Shazeer et al. 2017",
    title="Outrageously Large Neural Networks: The Sparsely-Gated Mixture-of-Experts Layer",
    id="arXiv:1701.06538",
    where="section 2",
)
FEDUS_2021 = Source(
    cite="Fedus, Zoph and Shazeer 2021",
    title="Switch Transformers: Scaling to Trillion Parameter Models with Simple and Efficient "
    "Sparsity",
    id="arXiv:2101.03961",
    where="section 2",
)
CLARK_2022 = Source(
    cite="Clark et al. 2022",
    title="Unified Scaling Laws for Routed Language Models",
    id="arXiv:2202.01169",
    where="effective parameter count",
)
DAI_2024 = Source(
    cite="Dai et al. 2024",
    title="DeepSeekMoE: Towards Ultimate Expert Specialization in Mixture-of-Experts Language "
    "Models",
    id="arXiv:2401.06066",
    where="section 3",
)
MUENNIGHOFF_2024 = Source(
    cite="Muennighoff et al. 2024",
    title="OLMoE: Open Mixture-of-Experts Language Models",
    id="arXiv:2409.02060",
    where="section 4.1",
)
DEEPSEEK_V3 = Source(
    cite="DeepSeek-AI 2024",
    title="DeepSeek-V3 Technical Report",
    id="arXiv:2412.19437",
    where="section 2.1.2",
)


def mixtures(case: Case) -> tuple[MoE, ...]:
    """The different mixtures of experts of the model."""
    return tuple(ffn for ffn in case.model.ffns if isinstance(ffn, MoE))


def require_mixtures(case: Case, name: str) -> tuple[MoE, ...]:
    """The model's mixtures of experts, or `NotApplicable` when it has none."""
    found = mixtures(case)
    if not found:
        raise NotApplicable(
            f"{name} changes a mixture of experts, and this model has none (its layers are "
            f"{layer_names(case.model)}); apply topk-moe first"
        )
    return found


def map_mixtures(case: Case, change: Callable[[MoE], Ffn]) -> Case:
    """`case` with `change` applied to every mixture of experts."""
    return with_model(
        case, case.model.map_ffns(lambda ffn: change(ffn) if isinstance(ffn, MoE) else ffn)
    )


def to_experts(case: Case, name: str, change: Callable[[FeedForward], MoE]) -> Case:
    """`case` with `change` applied to every dense feed-forward, or `NotApplicable`.

    A model that is a mixture somewhere keeps the dense layers that its designers left.
    """
    mixed = mixtures(case)
    if mixed:
        counts = ", ".join(f"{m.n_experts_per_token} of {m.n_experts}" for m in mixed)
        raise NotApplicable(
            f"{name} makes a mixture of a dense model, and this one is a mixture already: tokens "
            f"use {counts} experts"
        )
    dense = [ffn for ffn in case.model.ffns if isinstance(ffn, FeedForward)]
    if not dense:
        raise NotApplicable(
            f"{name} replaces dense feed-forwards, and this model has none, its layers are "
            f"{layer_names(case.model)}"
        )
    return with_model(
        case,
        case.model.map_ffns(lambda ffn: change(ffn) if isinstance(ffn, FeedForward) else ffn),
    )


def equal_capacity_expert(ffn: FeedForward, n_experts: int, per_token: int) -> FeedForward:
    """An expert of `d_ff / sqrt(n_experts * per_token)`: total and active average to the dense."""
    return replace(ffn, d_ff=max(rounded(ffn.d_ff / sqrt(n_experts * per_token)), 1))


def dense_of_equal_capacity(moe: MoE) -> FeedForward:
    """The dense feed-forward at the geometric mean of the mixture's total and active widths."""
    always = 0 if moe.shared is None else moe.shared.d_ff
    total = moe.n_experts * moe.expert.d_ff + always
    active = moe.n_experts_per_token * moe.expert.d_ff + always
    return replace(moe.expert, d_ff=max(rounded(sqrt(total * active)), WIDTH_MULTIPLE))


def check_counts(name: str, n_experts: int, per_token: int) -> None:
    """Raise `NotApplicable` unless a token uses some of the experts."""
    if not 1 <= per_token <= n_experts or n_experts < 2:
        raise NotApplicable(
            f"{name} needs at least 2 experts and between 1 and all of them a token, got "
            f"n_experts={n_experts} and {per_token} a token"
        )
