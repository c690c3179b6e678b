"""Where a tense can be read, beside what the words give away and what a probe fits by itself.

The question is `he stopped`, and the tense is what the tutor must say. Layer 0 has the letters, as
a bag; the trained layers have what the model made of them; shuffled labels show the probe alone.
"""

from __future__ import annotations

import torch

from worthit.interp.probe import fit_probe
from worthit.interp.texts import states
from worthit.lab.claims import Metric, at_most, superior
from worthit.lab.context import Context
from worthit.lab.experiment import Arm, Custom, Expectation, Experiment, Matched, Measures
from worthit.lab.experiments import _inside as inside
from worthit.lab.predict import unseen
from worthit.lab.tasks.grammar_tutor import encode
from worthit.techniques.interpretability.linear_probe import ALAIN_2016
from worthit.train import seeded

READ = Metric(id="read", name="accuracy of the probe", better="higher", margin=0.1)
LAST = "layers.1.resid_post"


def run(context: Context, arm: Arm, seed: int) -> Measures:
    """Fit on some verbs, judge on others: five tenses, so that chance is a fifth."""
    model = context.shared[seed]
    if arm.id == "untrained":
        model = seeded(inside.spec_of(context.budget))(seed).eval()
    parts = inside.halves(inside.asked("identify"), seed)
    point = {"words": "embed", "early": "layers.0.resid_post"}.get(arm.id, LAST)
    position = "mean" if arm.id == "words" else "last"
    x, y = (
        states(model, [encode(e.prompt) for e in part], [point], position=position, batch=128)[
            point
        ]
        for part in parts
    )
    tenses = sorted({e.tense for e in parts[0]})
    z, w = (torch.tensor([tenses.index(e.tense) for e in part]) for part in parts)
    if arm.id == "shuffled":
        z = z[torch.randperm(len(z), generator=torch.Generator().manual_seed(seed))]
    return {"read": fit_probe(x, z).accuracy(y, w)}


EXPERIMENT = Experiment(
    id="linear-probe",
    technique="linear-probe",
    question="Is a tense easier to read off the model's layers than off the words?",
    expectation=Expectation(
        statement="Linear separability rises with depth, towards the layer that must use it.",
        source=ALAIN_2016,
        refuted_if="a bag of the words' letters, or an untrained model, does as well as a layer",
        worth_it=True,
    ),
    how=Custom(run=run),
    matched=Matched(
        what=("nothing",),
        because="one tutor a seed serves all arms; probes are fitted and judged on the same verbs",
    ),
    arms=(
        Arm(id="words", label="layer 0: mean embedding"),
        Arm(id="untrained", label="layer 2, not trained"),
        Arm(id="shuffled", label="layer 2, labels shuffled"),
        Arm(id="early", label="layer 1"),
        Arm(id="late", label="layer 2"),
    ),
    metrics=(READ,),
    claims=(
        superior(READ, "late"),
        superior(READ, "late", against="untrained"),
        superior(READ, "late", against="early", by=0.0),
        at_most(READ, "shuffled", 0.35),
    ),
    budgets=inside.BUDGETS,
    predicted=lambda setting: unseen(setting, "read"),
    setup=inside.tutors,
    means={
        "confirmed": "The last layer holds the tense in plain sight, but most of it stands in "
        "the letters and even an untrained model passes it on: without those "
        "controls depth would get all the credit.",
        "refuted": "The letters, or an untrained model, give the tense away as well as the "
        "trained layer: the probe says nothing about training.",
    },
)
