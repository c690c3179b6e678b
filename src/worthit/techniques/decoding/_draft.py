"""What every way of drafting shares: when it acts, how it is put in and taken out, who proved it.

A record is told apart from its neighbours by the fields of `Speculation`: a second model has
`draft_scale`, self-speculation `draft_layers`, heads `head_params` (in parallel: Medusa; one after
another: EAGLE); what drafts for free does so in sequence (prompt look-up) or in parallel (Jacobi).
"""

from __future__ import annotations

from worthit.spec.case import Case, Speculation
from worthit.techniques._change import require_serving, with_runtime
from worthit.techniques._record import Source

LEVIATHAN_2022 = Source(
    cite="Leviathan et al. 2022",
    title="Fast Inference from Transformers via Speculative Decoding",
    id="arXiv:2211.17192",
    where="algorithm 1, equation 1, theorem 3.8, table 4",
)
CHEN_2023 = Source(
    cite="Chen et al. 2023",
    title="Accelerating Large Language Model Decoding with Speculative Sampling",
    id="arXiv:2302.01318",
    where="algorithm 2, theorem 1",
)

BOTTLENECK = (
    "Decoding yields one token for each reading of all the weights, while the arithmetic units "
    "mostly wait."
)


def with_draft(case: Case, name: str, speculation: Speculation) -> Case:
    """`case` drafting as `speculation` says; another drafter is replaced, one works at a time."""
    require_serving(case, name)
    return with_runtime(case, speculation=speculation)


def without_draft(case: Case) -> Case:
    """`case` decoding one token a step."""
    return with_runtime(case, speculation=None)
