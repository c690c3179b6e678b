"""CCS in SmolLM2: are praise and truth found without labels, beside labels, chance and asking?

Each text is read twice, completed with `This is praise.` and with `This is blame.`, or with true
and false. What CCS finds is judged on words that it never saw.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from worthit.interp.ccs import fit_ccs, normalised
from worthit.interp.edit import sequence_log_probability
from worthit.interp.probe import fit_probe
from worthit.lab.claims import Metric, no_worse, superior
from worthit.lab.context import Context
from worthit.lab.experiment import Arm, Budget, Custom, Expectation, Experiment, Matched, Measures
from worthit.lab.experiments import _concepts as concepts
from worthit.lab.predict import unseen
from worthit.lab.tasks.concepts import FORMS, Example, examples
from worthit.techniques.interpretability.ccs import BURNS_2022

PRAISE = Metric(id="sentiment", name="accuracy on praise", better="higher", margin=0.1)
TRUTH = Metric(id="truth", name="accuracy on truth", better="higher", margin=0.1)
ENDINGS = {"sentiment": (" This is praise.", " This is blame."), "truth": (" True.", " False.")}
# Of random directions: the mean over so many.
N_RANDOM = 20


def completed(subject: concepts.Subject, rows: list[Example], concept: str) -> tuple[Tensor, ...]:
    """States after each text was called positive, and after it was called negative."""
    return tuple(
        subject.states([row.text + ending for row in rows], "last")[concepts.MIDDLE]
        for ending in ENDINGS[concept]
    )


def prepared(context: Context) -> concepts.Subject:
    """Every text read twice."""
    subject = concepts.loaded()
    for concept in context.budget.sizes["concepts"]:
        completed(subject, examples(concept, FORMS[concept][0]), concept)
    return subject


def right(kind: str, subject: concepts.Subject, concept: str, seed: int) -> float:
    """Accuracy on other words, with the sign that is right more often."""
    split = concepts.split(concept, seed)
    (yes, no), (new_yes, new_no) = (
        completed(subject, part, concept) for part in (split.fit, split.same)
    )
    labels, truth = concepts.labels(split.fit), concepts.labels(split.same).bool()
    if kind == "ccs":
        return fit_ccs(yes, no, n_restarts=10, n_steps=300, seed=seed).accuracy(
            new_yes, new_no, truth
        )
    if kind == "asked":
        said = asked(subject, split.same, concept)
        return better(said > said.median(), truth)
    apart = normalised(new_yes, "standard") - normalised(new_no, "standard")
    if kind == "labels":
        both = normalised(yes, "standard") - normalised(no, "standard")
        return better(fit_probe(both, labels, penalty=0.1).predict(apart).bool(), truth)
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(apart.shape[1], N_RANDOM, generator=generator, dtype=torch.float64)
    return concepts.mean(better(column > 0, truth) for column in (apart @ drawn).unbind(1))


def better(said: Tensor, truth: Tensor) -> float:
    """The share that is right, or that would be with the other sign."""
    share = float((said == truth).double().mean())
    return max(share, 1 - share)


def asked(subject: concepts.Subject, rows: list[Example], concept: str) -> Tensor:
    """What the model itself would add: log p of the one ending minus that of the other."""
    kept = subject.asked
    for row in rows:
        if (row.text, concept) not in kept:
            first, second = (
                sequence_log_probability(subject.model, subject.tokenizer, row.text, ending)
                for ending in ENDINGS[concept]
            )
            kept[row.text, concept] = first - second
    return torch.tensor([kept[row.text, concept] for row in rows])


def run(context: Context, arm: Arm, seed: int) -> Measures:
    """Each concept by itself."""
    return {
        concept: right(arm.id, context.shared, concept, seed)
        for concept in context.budget.sizes["concepts"]
    }


QUICK = Budget(
    n_seeds=5, sizes={"concepts": ("sentiment", "truth")}, seconds=3.0, setup_seconds=60.0
)
EXPERIMENT = Experiment(
    id="ccs-concepts",
    technique="ccs",
    question="Does CCS find praise and truth in SmolLM2 without being told any?",
    expectation=Expectation(
        statement="Without labels it classifies nearly as well as a probe with them, and far "
        "better than chance.",
        source=BURNS_2022,
        refuted_if="a random direction comes within ten points on praise or on truth, or labels do "
        "better by ten points on praise",
        worth_it=True,
    ),
    how=Custom(run=run),
    matched=Matched(
        what=("nothing",),
        because="the same states after layer 15; every arm may flip its sign, as CCS must",
    ),
    arms=(
        Arm(id="labels", label="probe with labels"),
        Arm(id="random", label="random direction"),
        Arm(id="asked", label="asked, without a probe"),
        Arm(id="ccs", label="CCS, best of 10"),
    ),
    metrics=(PRAISE, TRUTH),
    claims=(
        superior(PRAISE, "ccs", against="random"),
        no_worse(PRAISE, "ccs"),
        superior(TRUTH, "ccs", against="random"),
    ),
    budgets={
        "smoke": replace(QUICK, n_seeds=2, setup_seconds=60.0),
        "quick": QUICK,
        "full": replace(QUICK, n_seeds=20),
    },
    predicted=lambda setting: unseen(setting, "sentiment", "truth"),
    setup=prepared,
    means={
        "confirmed": "It finds both without labels, at 135M parameters too.",
        "refuted": "What two readings of a text negate most is not whether it is true, or not even "
        "whether it is praise: at 135M parameters CCS is no way to what a model knows. "
        "Fifty labels are.",
    },
)
