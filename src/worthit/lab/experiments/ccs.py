"""Which of two answers is right, found without labels: CCS beside chance and beside labels.

Each question, `he stopped`, is completed with the past and with the future. Does a direction on
which the two always disagree say which is right?
"""

from __future__ import annotations

import torch
from torch import Tensor

from worthit.decode.generate import left_padded
from worthit.interp.ccs import fit_ccs, normalised
from worthit.interp.hooks import activations
from worthit.interp.probe import fit_probe
from worthit.lab.claims import Metric, no_worse, superior
from worthit.lab.context import Context
from worthit.lab.experiment import Arm, Custom, Expectation, Experiment, Matched, Measures
from worthit.lab.experiments import _inside as inside
from worthit.lab.predict import unseen
from worthit.lab.tasks.grammar_tutor import Example, encode
from worthit.nn.decoder import Decoder
from worthit.techniques.interpretability.ccs import BURNS_2022

RIGHT = Metric(id="right", name="accuracy, better sign", better="higher", margin=0.1)
POINT = "layers.1.resid_post"


def completed(model: Decoder, rows: list[Example], tense: str) -> Tensor:
    """States after each question was answered with `tense`."""
    ids, mask = left_padded([encode(f"{e.prompt}<{tense}>") for e in rows], model.device)
    with torch.inference_mode():
        return activations(model, ids, POINT, attention_mask=mask)[POINT][:, -1].clone()


def run(context: Context, arm: Arm, seed: int) -> Measures:
    """Fit on some verbs and judge on others; the sign goes to whoever is right more often."""
    model = context.shared[seed]
    rows = [e for e in inside.asked("identify") if e.tense in ("past", "future")]
    fit, held = inside.halves(rows, seed)
    (yes, no), (new_yes, new_no) = (
        [completed(model, part, tense) for tense in ("past", "future")] for part in (fit, held)
    )
    truth = torch.tensor([e.tense == "past" for e in held])
    if arm.id == "ccs":
        found = fit_ccs(yes, no, n_restarts=10, n_steps=400, seed=seed)
        return {"right": found.accuracy(new_yes, new_no, truth), "loss": found.loss}
    first, second = (normalised(side, "standard") for side in (new_yes, new_no))
    if arm.id == "random":
        drawn = torch.randn(first.shape[1], generator=torch.Generator().manual_seed(seed))
        said = (first - second) @ drawn.double() > 0
    else:
        labels = torch.tensor([e.tense == "past" for e in fit]).long()
        both = normalised(yes, "standard") - normalised(no, "standard")
        said = fit_probe(both, labels).predict(first - second).bool()
    share = float((said == truth).double().mean())
    return {"right": max(share, 1 - share)}


EXPERIMENT = Experiment(
    id="ccs",
    technique="ccs",
    question="Does CCS find which answer is right, without being told any?",
    expectation=Expectation(
        statement="Without labels it classifies nearly as well as a probe with them, and far "
        "better than chance.",
        source=BURNS_2022,
        refuted_if="a random direction does as well, or labels do better by ten points",
        worth_it=True,
    ),
    how=Custom(run=run),
    matched=Matched(
        what=("nothing",), because="the same states; every arm may flip its sign, as CCS must"
    ),
    arms=(
        Arm(id="labels", label="probe with labels"),
        Arm(id="random", label="random direction"),
        Arm(id="ccs", label="CCS, best of 10"),
    ),
    metrics=(RIGHT,),
    claims=(superior(RIGHT, "ccs", against="random"), no_worse(RIGHT, "ccs")),
    budgets=inside.BUDGETS,
    predicted=lambda setting: unseen(setting, "right"),
    setup=inside.tutors,
    means={
        "confirmed": "It finds which answer is right without labels: the two completions differ "
        "in little else here.",
        "refuted": "What the two completions negate most is not which of them is right: CCS "
        "finds that, with a low loss, and is not shown to beat a random direction. "
        "Use labels.",
    },
)
