"""Self-consistency: several chains of thought are drawn, and their commonest answer is given.

Changes: `runtime.samples`: n sequences a request, which share their prompt.
Relieves: one answer that is wrong too often, where answers are short enough to vote on.
Does nothing when: the model's commonest answer is the wrong one: more votes make it surer.
Costs: n times the output's tokens; side by side, they read the weights once.

Held equal: the model and the answer's length. No verifier is needed.
"""

from __future__ import annotations

from dataclasses import replace

from worthit.spec.case import Case
from worthit.techniques._record import Evidence, Technique
from worthit.techniques.reasoning._answers import (
    BROWN_2024,
    WANG_2022,
    answered_once,
    is_reasoned,
    reasoned,
)


def apply(case: Case, *, n: int = 8) -> Case:
    """Return `case` drawing `n` answers to each request and counting votes."""
    return reasoned(case, "self-consistency", samples=n, checks=("short", "exact", "learned"))


def is_present(case: Case) -> bool:
    """Whether several answers vote."""
    return is_reasoned(case, "self-consistency")


def remove(case: Case) -> Case:
    """Return `case` giving its first answer."""
    return answered_once(case)


TECHNIQUE = Technique(
    id="self-consistency",
    name="Self-consistency (majority vote)",
    relieves=("single-answer",),
    bottleneck=(
        "Greedy decoding follows one chain of thought, and one slip in it is a wrong answer; right "
        "chains meet in one answer, slips scatter."
    ),
    apply=apply,
    is_present=is_present,
    remove=remove,
    adoption="drop-in",
    cost_of_adoption="A rule that reads the answer out of a text; nothing is trained.",
    nothing_when=(
        "Errors are systematic (the same wrong answer each time), the answer is free text that no "
        "two samples share, or there is no chain of thought whose ways could differ."
    ),
    pitfalls=(
        "The vote goes to the commonest answer, not to the likeliest right one: where that is "
        "wrong, accuracy falls as n grows.",
        "Samples whose answer cannot be read must not vote; report how many there were.",
        "The same answer written in two ways splits its votes: normalise before counting.",
        "It levels off early: most of the gain is there by eight to sixteen samples.",
    ),
    module="worthit.reason.choose:self_consistency",
    experiment="worthit.lab.experiments.self_consistency:EXPERIMENT",
    parity=(
        "votes of all small ballots by hand (tests/reason/test_choose.py)",
        "majority of k against the mean over all subsets (tests/reason/test_estimate.py)",
    ),
    sources=(WANG_2022, BROWN_2024),
    evidence=(
        Evidence(
            claim="Over one greedy chain of thought: GSM8K +17.9 points, SVAMP +11.0, AQuA +12.2, "
            "StrategyQA +6.4, ARC-challenge +3.9.",
            source=replace(WANG_2022, where="abstract"),
        ),
        Evidence(
            claim="Votes level off at about a hundred samples while coverage keeps growing.",
            source=replace(BROWN_2024, where="section 4"),
        ),
    ),
    orientation={
        "en": "Ask a model the same question several times, let it think aloud differently each "
        "time, and give the answer that most of these ways lead to. Chains of thought that are "
        "right end in the same place, while mistakes end in many, so the vote filters them out "
        "without any verifier. That also says when it fails: a model that has learned something "
        "wrong makes the same mistake every time, and a vote only makes it more certain of it.",
        "es": "Pregunte lo mismo varias veces a un modelo, deje que razone en voz alta de forma "
        "distinta cada vez y dé la respuesta a la que llega la mayoría. Los que son correctos "
        "terminan en el mismo sitio y los errores en muchos, así que el voto los filtra sin "
        "verificador alguno. Eso dice también cuándo falla: un modelo que aprendió algo mal comete "
        "siempre el mismo error, y el voto solo lo vuelve más seguro de él.",
    },
    diagram=(
        "prompt, computed once",
        "~sample: one chain of thought => n chains side by side",
        "+read the answer out of each",
        "~given: the answer of one chain => the answer of most",
    ),
)
