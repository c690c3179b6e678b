"""Change every norm or every feed-forward of a model; papers that records share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from worthit.errors import NotApplicable
from worthit.spec.case import Case
from worthit.spec.model import FeedForward, Ffn, MoE, Norm
from worthit.techniques._change import with_model
from worthit.techniques._mixers import WIDTH_MULTIPLE, layer_names, rounded
from worthit.techniques._record import Source

NARANG_2021 = Source(
    cite="Narang et al. 2021",
    title="Do Transformer Modifications Transfer Across Implementations and Applications?",
    id="arXiv:2102.11972",
    where="section 3, table 1",
)
SHAZEER_2020 = Source(
    cite="Shazeer 2020",
    title="GLU Variants Improve Transformer",
    id="arXiv:2002.05202",
    where="table 1",
)
# A gated feed-forward has three matrices for the other's two: 2/3 of the width is equal in size.
GATED_SHARE = 2 / 3


def map_norms(case: Case, change: Callable[[Norm], Norm]) -> Case:
    """`case` with `change` applied to the norms of every layer and the final one."""
    model = case.model.map_layers(lambda layer: replace(layer, norm=change(layer.norm)))
    return with_model(case, replace(model, norm=change(model.norm)))


def norms(case: Case) -> tuple[Norm, ...]:
    """The different norms of the model."""
    return tuple(
        dict.fromkeys([case.model.norm, *(layer.norm for layer, _ in case.model.layer_kinds)])
    )


def feedforwards(case: Case) -> tuple[FeedForward, ...]:
    """The different feed-forwards of the model, experts and shared experts included."""
    found: list[FeedForward] = []
    for ffn in case.model.ffns:
        if isinstance(ffn, FeedForward):
            found.append(ffn)
        elif isinstance(ffn, MoE):
            found += [ffn.expert] if ffn.shared is None else [ffn.expert, ffn.shared]
    return tuple(dict.fromkeys(found))


def require_feedforwards(case: Case, name: str) -> tuple[FeedForward, ...]:
    """The model's feed-forwards, or `NotApplicable` when it has none."""
    found = feedforwards(case)
    if not found:
        raise NotApplicable(
            f"{name} is the activation of a feed-forward, and this model has none: its layers are "
            f"{layer_names(case.model)}"
        )
    return found


def map_feedforwards(case: Case, change: Callable[[FeedForward], FeedForward]) -> Case:
    """`case` with `change` applied to every feed-forward, experts included."""

    def inside(ffn: Ffn) -> Ffn:
        if isinstance(ffn, FeedForward):
            return change(ffn)
        if isinstance(ffn, MoE):
            shared = None if ffn.shared is None else change(ffn.shared)
            return replace(ffn, expert=change(ffn.expert), shared=shared)
        return ffn

    return with_model(case, case.model.map_ffns(inside))


def gated(ffn: FeedForward) -> FeedForward:
    """`ffn` with SiLU and a gate, parameters equal."""
    d_ff = ffn.d_ff if ffn.is_gated else max(rounded(ffn.d_ff * GATED_SHARE), WIDTH_MULTIPLE)
    return replace(ffn, d_ff=d_ff, is_gated=True, activation="silu", activation_limit=None)


def ungated(ffn: FeedForward, activation: str) -> FeedForward:
    """`ffn` with two matrices and `activation`, parameters equal."""
    d_ff = max(rounded(ffn.d_ff / GATED_SHARE), WIDTH_MULTIPLE) if ffn.is_gated else ffn.d_ff
    return replace(
        ffn,
        d_ff=d_ff,
        is_gated=False,
        activation="relu" if activation == "relu" else "gelu",
        activation_limit=None,
    )
