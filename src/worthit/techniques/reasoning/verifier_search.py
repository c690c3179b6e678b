"""Search under a verifier: texts are scored step by step, and only the better ones go on.

Changes: `runtime.samples`: width times branch sequences a request.
Relieves: one answer that is wrong too often, where a mistake can be told before the end.
Does nothing when: answers have no steps, or the verifier cannot judge them half-way.
Costs: as many tokens as best-of-n of that n, and a verifier asked at every step.

Held equal: the model and the answer's length. The verifier's own passes are not counted.
"""

from __future__ import annotations

from dataclasses import replace

from worthit.spec.case import Case
from worthit.techniques._record import Evidence, Technique
from worthit.techniques.reasoning._answers import (
    LIGHTMAN_2023,
    SNELL_2024,
    YAO_2023,
    answered_once,
    is_reasoned,
    reasoned,
)


def apply(case: Case, *, width: int = 4, branch: int = 4) -> Case:
    """Return `case` keeping `width` texts of each request and trying `branch` steps for each."""
    n = width * branch
    return reasoned(case, "verifier-search", samples=n, checks=("exact", "learned"))


def is_present(case: Case) -> bool:
    """Whether answers are searched for under a verifier."""
    return is_reasoned(case, "verifier-search")


def remove(case: Case) -> Case:
    """Return `case` giving its first answer."""
    return answered_once(case)


TECHNIQUE = Technique(
    id="verifier-search",
    name="Beam and tree search under a verifier",
    relieves=("single-answer",),
    bottleneck=(
        "The longer a chain, the likelier one of its steps is wrong, and best-of-n pays for every "
        "wrong chain to its end."
    ),
    apply=apply,
    is_present=is_present,
    remove=remove,
    adoption="finetune",
    cost_of_adoption=(
        "A verifier of unfinished texts: seldom exact, mostly a model trained on labelled steps; "
        "and a place for it between steps, where the batch waits for the slowest."
    ),
    nothing_when=(
        "Answers are short, steps cannot be told apart, or the verifier is as good as blind before "
        "the end."
    ),
    pitfalls=(
        "Search finds the verifier's mistakes: with many beams best-of-n under the same verifier "
        "can be better.",
        "Beams grow alike: keep branches of different parents, or diversity is lost early.",
        "A score of the last step and the product over all steps rank texts differently: use what "
        "the verifier was trained for.",
        "Count the verifier's passes: asked at every step, it can cost more than the texts.",
        "Exact checks of half an answer are rare: the step verifier of our experiment is one that "
        "practice does not have.",
    ),
    module="worthit.reason.search:beam_search",
    experiment="worthit.lab.experiments.verifier_search:EXPERIMENT",
    parity=(
        "a beam of width 1 is greedy, a full one exhaustive, a tree with tokens enough exhaustive, "
        "against every text of a tiny vocabulary (tests/reason/test_search.py)",
    ),
    sources=(LIGHTMAN_2023, YAO_2023, SNELL_2024),
    evidence=(
        Evidence(
            claim="A verifier of steps solves 78 % of a part of MATH as best of 1860, above one of "
            "outcomes (72 %) and the majority (70 %).",
            source=replace(LIGHTMAN_2023, where="figure 3"),
        ),
        Evidence(
            claim="Beam search is above best-of-n at few samples and on hard questions, and falls "
            "behind it at many, where it exploits the verifier; choosing by difficulty saves up to "
            "four times the compute.",
            source=replace(SNELL_2024, where="section 5"),
        ),
        Evidence(
            claim="Searching over thoughts solves 74 % of Game of 24 where one chain solves 4 %.",
            source=replace(YAO_2023, where="table 2"),
        ),
    ),
    orientation={
        "en": "Instead of writing eight whole answers and looking at them afterwards, look after "
        "every step: drop the attempts that have gone wrong and let the good ones branch. With "
        "five steps that are each right two times in three, a whole answer is right one time in "
        "eight, but a search that repairs each step is nearly always right, for the same number of "
        "tokens. Everything rests on a verifier that can judge half an answer; a poor one is "
        "searched for its mistakes.",
        "es": "En vez de escribir ocho respuestas enteras y mirarlas al final, mire tras cada "
        "paso: descarte los intentos que ya fallaron y deje ramificarse a los buenos. Con cinco "
        "pasos que aciertan dos de cada tres veces, una respuesta entera acierta una de cada ocho, "
        "pero una búsqueda que repara cada paso acierta casi siempre con los mismos tokens. Todo "
        "depende de un verificador capaz de juzgar media respuesta; si es malo, la búsqueda "
        "encuentra sus errores.",
    },
    diagram=(
        "prompt",
        "~draw: a whole answer => one step of width * branch texts",
        "+verifier: a score for every text so far",
        "+keep the best width, drop the rest",
        "again, step by step, until texts end",
        "~given: the first answer => the best whole text",
    ),
)
