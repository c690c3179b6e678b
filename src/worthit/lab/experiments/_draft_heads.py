"""What the experiments on trained heads share: heads made from nothing, in minutes, and prompts.

SmolLM2-135M-Instruct writes conversations with itself, heads learn from them, and then it answers
prompts that were written by somebody else, in bf16, laid out for decoding, greedily: alone, with
chains, with trees. The heads are made once, for all arms, with the seed of the budget. In bf16 a
pass over several tokens rounds otherwise than one over one, so that some answers part from the
plain ones at a near tie; in fp32 they do not (`tests/decode/speculative`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from worthit.decode.speculative.drafter import Drafter
from worthit.decode.speculative.heads import Kind, load_drafter
from worthit.decode.speculative.train_heads import Job, prepare_with, run
from worthit.lab.claims import Metric
from worthit.lab.context import Context
from worthit.lab.experiment import Arm, Matched
from worthit.lab.experiments import _smollm2
from worthit.lab.experiments._drafting import (
    ACCEPTED,
    ALIKE,
    TOKEN_TIME,
    Drafting,
    per_pass,
    time_of,
)
from worthit.nn.inference import optimize

METRICS: tuple[Metric, ...] = (
    TOKEN_TIME,
    per_pass("edit"),
    per_pass("summarise"),
    per_pass("chat"),
    time_of("edit"),
    time_of("summarise"),
    time_of("chat"),
    ACCEPTED,
    ALIKE,
)
MATCHED = Matched(
    what=("nothing",),
    because="the same prompts, weights, precision and number of tokens; heads are made from the "
    "model alone and have seen none of the prompts",
)


@dataclass
class WithHeads(Drafting):
    """The model with the folder of its heads."""

    folder: Path = Path()


def setup_of(context: Context, kind: Kind) -> WithHeads:
    """Train heads with what the budget allows, unless they are there already."""
    sizes = context.budget.sizes
    wide = _smollm2.load()
    narrow = optimize(_smollm2.load("bf16").model)
    job = Job(
        source=_smollm2.MODEL,
        out=context.folder / kind,
        kind=kind,
        n_tokens=sizes["heads_tokens"],
        rows=sizes["heads_rows"],
        length=sizes["heads_length"],
        # Few texts: smaller batches make more updates of them.
        batch_rows=4,
    )
    if not job.out.is_dir():
        wide.model.requires_grad_(requires_grad=False)
        prepared = prepare_with(job, wide.model, narrow, wide.tokenizer)

        def say(what: str, done: int, of: int) -> None:
            share = done / of / 2 + (0.5 if what == "heads learn" else 0.0)
            context.tick(share, f"{what}, {done} of {of}")

        run(prepared, say)
    return WithHeads(narrow, wide.tokenizer, folder=job.out)


def drafter(shared: Drafting, arm: Arm) -> tuple[Drafter | None, int]:
    """Chains or trees of the heads, of as many tokens as the arm says; None for the plain one."""
    assert isinstance(shared, WithHeads)
    if arm.id == "plain":
        return None, 1
    where = f"tree:{shared.folder}" if arm.options.get("is_tree") else str(shared.folder)
    return load_drafter(where, shared.model), arm.options["most"]
