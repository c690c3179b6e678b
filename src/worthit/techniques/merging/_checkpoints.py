"""What the records of merging share: a merge stands in for training one model on every task.

Cost sees what is saved: of multi-task training, all but the arithmetic of the merge itself. It does
not see whether the merged model is as good, which is what the checkpoints, read with
`worthit judge --merge`, and an experiment are for.
"""

from __future__ import annotations

from dataclasses import replace

from worthit.errors import NotApplicable
from worthit.spec.case import Case, Merge, Range, Training
from worthit.techniques._change import with_runtime
from worthit.techniques._record import Source

# FLOPs a parameter: a multiply-add a checkpoint in a merge; forward and backward in training.
MERGE_FLOPS = 2
TRAIN_FLOPS = 6

WORTSMAN_2022 = Source(
    cite="Wortsman et al. 2022",
    title="Model soups: averaging weights of multiple fine-tuned models improves accuracy without "
    "increasing inference time",
    id="arXiv:2203.05482",
)
ILHARCO_2023 = Source(
    cite="Ilharco et al. 2023",
    title="Editing Models with Task Arithmetic",
    id="arXiv:2212.04089",
)
YADAV_2023 = Source(
    cite="Yadav et al. 2023",
    title="TIES-Merging: Resolving Interference When Merging Models",
    id="arXiv:2306.01708",
    where="algorithm 1",
)
YADAV_2024 = Source(
    cite="Yadav et al. 2024",
    title="What Matters for Model Merging at Scale?",
    id="arXiv:2410.03617",
)
YU_2023 = Source(
    cite="Yu et al. 2023",
    title="Language Models are Super Mario: Absorbing Abilities from Homologous Models as a Free "
    "Lunch",
    id="arXiv:2311.03099",
)
GODDARD_2024 = Source(
    cite="Goddard et al. 2024",
    title="Arcee's MergeKit: A Toolkit for Merging Large Language Models",
    id="arXiv:2403.13257",
)


def need_checkpoints(case: Case, name: str, *, least: int = 2, most: int | None = None) -> int:
    """How many checkpoints the case has.

    Raises:
        NotApplicable: none are stated, too few or too many, or they are merged already.
    """
    n = case.data.checkpoints
    few = f"{least}" if least == most else f"{least} or more"
    if n is None:
        raise NotApplicable(
            f"{name} merges fine-tuned checkpoints, {few} of them, and this case states none: say "
            "data.checkpoints in a case file, or let worthit judge --merge recipe.yml read them"
        )
    if n < least or (most is not None and n > most):
        raise NotApplicable(
            f"{name} merges {few} checkpoints, and this case has {n} (data.checkpoints)"
        )
    if case.runtime.merge not in (None, name):
        raise NotApplicable(
            f"{name} would merge what {case.runtime.merge} has merged already (runtime.merge)"
        )
    return n


def merged(case: Case, name: Merge, *, least: int = 2, most: int | None = None) -> Case:
    """`case` with a merge of its checkpoints in place of the training that it plans."""
    n = need_checkpoints(case, name, least=least, most=most)
    if not isinstance(case.workload, Training):
        raise NotApplicable(
            f"{name} stands in for training one model on every task: give that training as the "
            "workload (--train-tokens); for the checkpoints, worthit judge --merge recipe.yml"
        )
    # The tokens whose training costs what the merge does.
    tokens = n * MERGE_FLOPS / TRAIN_FLOPS
    share = min(tokens / case.workload.tokens, 1.0)
    return with_runtime(case, merge=name, tokens_to_target=Range(mid=share, low=share, high=share))


def is_merged(case: Case, name: str) -> bool:
    """Whether the weights were merged in this way."""
    return case.runtime.merge == name


def unmerged(case: Case) -> Case:
    """`case` with its training in full."""
    return replace(case, runtime=replace(case.runtime, merge=None, tokens_to_target=None))
