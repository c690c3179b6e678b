"""What the records of reasoning share: a need that the case states, and its price in tokens.

Cost sees the price: sequences drawn side by side and not given, tokens said before the answer. It
does not see what they buy, which depends on how often one answer is right and on how the right one
among several is known: `worthit reason --curve` measures it on a model.

Where the model verifies by itself or by an exact check, that is free here. A learned verifier reads
every text once more: about one prefill of prompt and output for each sample, not counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from worthit.errors import NotApplicable
from worthit.spec.case import AnswerCheck, Case, Reasoning
from worthit.techniques._change import require_serving, with_runtime
from worthit.techniques._record import Source

COBBE_2021 = Source(
    cite="Cobbe et al. 2021",
    title="Training Verifiers to Solve Math Word Problems",
    id="arXiv:2110.14168",
    where="section 4",
)
WANG_2022 = Source(
    cite="Wang et al. 2022",
    title="Self-Consistency Improves Chain of Thought Reasoning in Language Models",
    id="arXiv:2203.11171",
)
LIGHTMAN_2023 = Source(
    cite="Lightman et al. 2023", title="Let's Verify Step by Step", id="arXiv:2305.20050"
)
YAO_2023 = Source(
    cite="Yao et al. 2023",
    title="Tree of Thoughts: Deliberate Problem Solving with Large Language Models",
    id="arXiv:2305.10601",
    where="section 3",
)
BROWN_2024 = Source(
    cite="Brown et al. 2024",
    title="Large Language Monkeys: Scaling Inference Compute with Repeated Sampling",
    id="arXiv:2407.21787",
)
SNELL_2024 = Source(
    cite="Snell et al. 2024",
    title="Scaling LLM Test-Time Compute Optimally can be More Effective than Scaling Model "
    "Parameters",
    id="arXiv:2408.03314",
)
GAO_2022 = Source(
    cite="Gao et al. 2022",
    title="Scaling Laws for Reward Model Overoptimization",
    id="arXiv:2210.10760",
)
MUENNIGHOFF_2025 = Source(
    cite="Muennighoff et al. 2025",
    title="s1: Simple test-time scaling",
    id="arXiv:2501.19393",
    where="section 3.1",
)
HUANG_2023 = Source(
    cite="Huang et al. 2023",
    title="Large Language Models Cannot Self-Correct Reasoning Yet",
    id="arXiv:2310.01798",
)
CHECKS: dict[AnswerCheck, str] = {
    "exact": "an exact check",
    "learned": "a learned verifier",
    "short": "answers short enough to vote on",
}


def reasoned(
    case: Case,
    name: Reasoning,
    *,
    samples: int = 1,
    rounds: float = 1.0,
    checks: Sequence[AnswerCheck],
) -> Case:
    """`case` drawing `samples` answers a request, `rounds` times as long.

    Raises:
        NotApplicable: the case trains, states no way to tell answers apart, or another one than
            `checks`; or more than one answer is paid for already.
    """
    require_serving(case, name)
    check = case.data.answer_check
    needed = " or ".join(CHECKS[c] for c in checks)
    if check is None:
        raise NotApplicable(
            f"{name} is for answers that one try gets wrong too often, and needs {needed}: say "
            f"data.answer_check ({', '.join(checks)}) in a case file; worthit reason MODEL --curve "
            "measures what it buys"
        )
    if check not in checks:
        raise NotApplicable(
            f"{name} needs {needed}, and this case has {CHECKS[check]} (data.answer_check)"
        )
    if case.runtime.reasoning is not None:
        raise NotApplicable(
            f"{name} would pay for more answers where {case.runtime.reasoning} does so already "
            "(runtime.reasoning)"
        )
    return with_runtime(case, reasoning=name, samples=samples, rounds=rounds)


def is_reasoned(case: Case, name: Reasoning) -> bool:
    """Whether more than one answer is paid for in this way."""
    return case.runtime.reasoning == name


def answered_once(case: Case) -> Case:
    """`case` with the first answer given."""
    runtime = replace(case.runtime, reasoning=None, samples=1, rounds=1.0)
    return replace(case, runtime=runtime)
