"""Best of n: several answers are drawn, and the one that a verifier likes best is given.

Changes: `runtime.samples`: n sequences a request, which share their prompt.
Relieves: one answer that is wrong too often, where a right one can be told.
Does nothing when: no answer of n is right, or nothing tells which.
Costs: n times the output's tokens; side by side, they read the weights once.

Held equal: the model and the answer's length. The verifier's own passes are not counted.
"""

from __future__ import annotations

from dataclasses import replace

from worthit.spec.case import Case
from worthit.techniques._record import Evidence, Source, Technique
from worthit.techniques.reasoning._answers import (
    BROWN_2024,
    COBBE_2021,
    GAO_2022,
    answered_once,
    is_reasoned,
    reasoned,
)

CHEN_2021 = Source(
    cite="Chen et al. 2021",
    title="Evaluating Large Language Models Trained on Code",
    id="arXiv:2107.03374",
    where="equation 1",
)


def apply(case: Case, *, n: int = 8) -> Case:
    """Return `case` drawing `n` answers to each request."""
    return reasoned(case, "best-of-n", samples=n, checks=("exact", "learned"))


def is_present(case: Case) -> bool:
    """Whether a verifier picks among several answers."""
    return is_reasoned(case, "best-of-n")


def remove(case: Case) -> Case:
    """Return `case` giving its first answer."""
    return answered_once(case)


TECHNIQUE = Technique(
    id="best-of-n",
    name="Best of n",
    relieves=("single-answer",),
    bottleneck=(
        "A model that can find the right answer gives the first one that it draws, right or not."
    ),
    apply=apply,
    is_present=is_present,
    remove=remove,
    adoption="drop-in",
    cost_of_adoption=(
        "A verifier: tests, a proof checker or arithmetic cost nothing to ask; a learned one is a "
        "model to train, and reads every answer."
    ),
    nothing_when=(
        "Answers cannot be told apart (chance picks), the model is never right (nothing to pick), "
        "or nearly always right (nothing to gain)."
    ),
    pitfalls=(
        "The share of questions with a right answer among n (pass@n) is a ceiling that only an "
        "exact check reaches: never report it as what users get.",
        "A learned verifier is over-optimised: beyond some n its favourite gets worse.",
        "Estimate from n samples with 1 - C(n-c, k) / C(n, k); 1 - (1 - c/n)^k is biased.",
        "At temperature 0 all n are one answer; far above 1 each is worse.",
        "The model's own probability prefers what greedy decoding says anyway.",
    ),
    module="worthit.reason.choose:best_of_n",
    experiment="worthit.lab.experiments.best_of_n:EXPERIMENT",
    parity=(
        "pass@k and best-of-k against the mean over all subsets (tests/reason/test_estimate.py)",
        "log-probabilities against one forward pass (tests/reason/test_choose.py)",
    ),
    sources=(COBBE_2021, CHEN_2021, BROWN_2024, GAO_2022),
    evidence=(
        Evidence(
            claim="With a verifier over 100 samples, a 6B model solves a little more of GSM8K than "
            "a fine-tuned 175B: about thirty times the size.",
            source=replace(COBBE_2021, where="section 1"),
        ),
        Evidence(
            claim="Coverage grows with the logarithm of the samples over four orders of magnitude: "
            "SWE-bench Lite from 15.9 % with one to 56 % with 250. Without an exact check, votes "
            "and reward models level off at a few hundred.",
            source=replace(BROWN_2024, where="abstract"),
        ),
        Evidence(
            claim="The true reward of the best of n by a learned one rises and then falls with n.",
            source=GAO_2022,
        ),
    ),
    orientation={
        "en": "A model that is right half of the time is right at least once in eight tries nearly "
        "always. If something can tell, such as unit tests, a proof checker or plain arithmetic, "
        "drawing eight answers and keeping one that passes turns a mediocre model into a good one, "
        "with nothing trained. Side by side the eight read the weights together, so that one user "
        "at a memory-bound device pays little for them; a full server pays eightfold. Without a "
        "way to tell, it buys next to nothing.",
        "es": "Un modelo que acierta la mitad de las veces acierta casi siempre al menos una en "
        "ocho intentos. Si algo puede comprobarlo, como pruebas unitarias, un verificador de "
        "demostraciones o simple aritmética, sacar ocho respuestas y quedarse con una que pase "
        "convierte un modelo mediocre en uno bueno sin entrenar nada. Las ocho leen juntas los "
        "pesos, así que un solo usuario limitado por la memoria paga poco; un servidor lleno paga "
        "ocho veces. Si nada distingue las respuestas, apenas compra algo.",
    },
    diagram=(
        "prompt, computed once",
        "~sample: one answer => n answers side by side",
        "+verifier: a score for each",
        "~given: the first answer => the answer with the highest score",
    ),
)
