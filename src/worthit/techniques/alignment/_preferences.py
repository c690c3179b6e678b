"""What the records of alignment share: a set of preferences, and what each method adds to training.

Cost sees the price over plain fine-tuning on the same tokens, in passes over them: with N
parameters a token takes 2 N FLOPs forward and 4 N backward. It does not see whether people like the
answers better, for which the data are read (`worthit judge --data`) and an experiment is run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from worthit.errors import NotApplicable
from worthit.spec.case import Alignment, Case, Range, Training
from worthit.spec.preference_facts import Shape
from worthit.techniques._change import with_runtime
from worthit.techniques._record import Source

# Passes of the size of one forward: a step of training is three, forward and twice that back.
TRAIN = 3.0

NAMES: dict[Shape, str] = {
    "pair": "pairs (chosen and rejected)",
    "binary": "binary labels (prompt, completion, label)",
    "demonstration": "demonstrations (prompt and completion)",
    "prompt": "prompts alone",
}

RAFAILOV_2023 = Source(
    cite="Rafailov et al. 2023",
    title="Direct Preference Optimization: Your Language Model is Secretly a Reward Model",
    id="arXiv:2305.18290",
    where="equation 7",
)
AZAR_2023 = Source(
    cite="Azar et al. 2023",
    title="A General Theoretical Paradigm to Understand Learning from Human Preferences",
    id="arXiv:2310.12036",
    where="equation 17",
)
CHOWDHURY_2024 = Source(
    cite="Chowdhury et al. 2024",
    title="Provably Robust DPO: Aligning Language Models with Noisy Feedback",
    id="arXiv:2403.00409",
)
ETHAYARAJH_2024 = Source(
    cite="Ethayarajh et al. 2024",
    title="KTO: Model Alignment as Prospect Theoretic Optimization",
    id="arXiv:2402.01306",
    where="equations 7 and 8",
)
MENG_2024 = Source(
    cite="Meng et al. 2024",
    title="SimPO: Simple Preference Optimization with a Reference-Free Reward",
    id="arXiv:2405.14734",
    where="equation 6",
)
HONG_2024 = Source(
    cite="Hong et al. 2024",
    title="ORPO: Monolithic Preference Optimization without Reference Model",
    id="arXiv:2403.07691",
    where="equations 6 and 7",
)
CHEN_2024 = Source(
    cite="Chen et al. 2024",
    title="Self-Play Fine-Tuning Converts Weak Language Models to Strong Language Models",
    id="arXiv:2401.01335",
    where="algorithm 1",
)
LEE_2023 = Source(
    cite="Lee et al. 2023",
    title="RLAIF vs. RLHF: Scaling Reinforcement Learning from Human Feedback with AI Feedback",
    id="arXiv:2309.00267",
)
BAI_2022 = Source(
    cite="Bai et al. 2022",
    title="Constitutional AI: Harmlessness from AI Feedback",
    id="arXiv:2212.08073",
)
RAZIN_2024 = Source(
    cite="Razin et al. 2024",
    title="Unintentional Unalignment: Likelihood Displacement in Direct Preference Optimization",
    id="arXiv:2410.08847",
)
PARK_2024 = Source(
    cite="Park et al. 2024",
    title="Disentangling Length from Quality in Direct Preference Optimization",
    id="arXiv:2403.19159",
)
XU_2024 = Source(
    cite="Xu et al. 2024",
    title="Is DPO Superior to PPO for LLM Alignment? A Comprehensive Study",
    id="arXiv:2404.10719",
)
GAO_2024 = Source(
    cite="Gao et al. 2024",
    title="Impact of Preference Noise on the Alignment Performance of Generative Language Models",
    id="arXiv:2404.09824",
)
WANG_2023 = Source(
    cite="Wang et al. 2023",
    title="Large Language Models are not Fair Evaluators",
    id="arXiv:2305.17926",
)
STIENNON_2020 = Source(
    cite="Stiennon et al. 2020",
    title="Learning to summarize from human feedback",
    id="arXiv:2009.01325",
)
OUYANG_2022 = Source(
    cite="Ouyang et al. 2022",
    title="Training language models to follow instructions with human feedback",
    id="arXiv:2203.02155",
)


def passes(mid: float, low: float, high: float) -> Range:
    """Passes of one forward each, over those of a plain step of fine-tuning."""
    return Range(mid=mid / TRAIN, low=low / TRAIN, high=high / TRAIN)


def aligned(case: Case, name: Alignment, shapes: Sequence[Shape], price: Range) -> Case:
    """`case` with its training learning from preferences by the method `name`.

    Raises:
        NotApplicable: there are no preferences, or none of a shape that the method learns from; the
            case trains nothing; or it learns by another method already.
    """
    facts = case.data.preferences
    wants = " or ".join(NAMES[shape] for shape in shapes)
    if facts is None:
        raise NotApplicable(
            f"{name} learns from {wants}, and this case states none: worthit judge MODEL --data "
            "prefs.jsonl, or data.preferences in a case file"
        )
    if facts.shape not in shapes:
        raise NotApplicable(f"{name} learns from {wants}; these are {NAMES[facts.shape]}")
    if not isinstance(case.workload, Training):
        raise NotApplicable(
            f"{name} is a way to train, and this case serves: leave the sizes of serving out, or "
            "say --train-tokens"
        )
    if case.runtime.alignment not in (None, name):
        raise NotApplicable(
            f"{name} would stand in for {case.runtime.alignment}, by which this case learns "
            "already (runtime.alignment)"
        )
    return with_runtime(case, alignment=name, tokens_to_target=price)


def is_aligned(case: Case, name: str) -> bool:
    """Whether the training learns from preferences in this way."""
    return case.runtime.alignment == name


def unaligned(case: Case) -> Case:
    """`case` as plain fine-tuning."""
    return replace(case, runtime=replace(case.runtime, alignment=None, tokens_to_target=None))
