"""Telling wrong answers: entropy, which costs nothing, beside a probe and the probe's controls.

Questions that the tutor was not trained on, of which it gets a share wrong. Detectors are fitted
and calibrated on some verbs and judged on others.
"""

from __future__ import annotations

import torch

from worthit.interp.calibration import (
    abstention_curve,
    auroc,
    expected_calibration_error,
    platt,
)
from worthit.interp.probe import fit_probe
from worthit.interp.texts import states
from worthit.lab.claims import Metric, at_least, at_most, not_better
from worthit.lab.context import Context
from worthit.lab.experiment import Arm, Custom, Expectation, Experiment, Matched, Measures
from worthit.lab.experiments import _inside as inside
from worthit.lab.predict import unseen
from worthit.lab.tasks.grammar_tutor import Example, encode
from worthit.nn.decoder import Decoder
from worthit.techniques.interpretability.uncertainty_features import KADAVATH_2022

AUROC = Metric(id="auroc", name="AUROC of wrong answers", better="higher", margin=0.05)
ECE = Metric(id="ece", name="calibration error", margin=0.05)
HALF = Metric(id="half", name="errors where half is answered", margin=0.05)


def run(context: Context, arm: Arm, seed: int) -> Measures:
    """One detector, on held-out cells of the tutor."""
    model = context.shared[seed]
    rows = [
        *inside.asked("conjugate", split="test"),
        *inside.asked("conjugate", split="validation"),
    ]
    said = inside.say(model, rows)
    wrong = torch.tensor([a != e.answer for a, e in zip(said, rows, strict=True)]).long()
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
    fit, held = order[: len(rows) // 2], order[len(rows) // 2 :]
    if arm.id == "entropy":
        score = surprise(model, rows, said)
    else:
        point = "embed" if arm.id == "words" else "layers.1.resid_post"
        position = "mean" if arm.id == "words" else "last"
        x = states(model, [encode(e.prompt) for e in rows], [point], position=position)[point]
        z = wrong[fit]
        if arm.id == "shuffled":
            z = z[torch.randperm(len(z), generator=torch.Generator().manual_seed(seed + 1))]
        score = fit_probe(x[fit], z, penalty=0.1).scores(x)
    p = platt(score[fit].numpy(), wrong[fit].numpy())(score[held].numpy())
    y = wrong[held].numpy()
    curve = abstention_curve(-score[held].numpy(), y)
    return {
        "auroc": auroc(score[held].numpy(), y),
        "ece": expected_calibration_error(p, y, n_bins=5),
        "half": next(risk for coverage, risk in curve if coverage >= 0.5),
        "errors": float(y.mean()),
        "errors by coverage": tuple(curve),
    }


def surprise(model: Decoder, rows: list[Example], said: list[str]) -> torch.Tensor:
    """Mean -log p of each answer's letters: of all uncertainty the cheapest."""
    found = []
    for e, answer in zip(rows, said, strict=True):
        prompt, letters = encode(e.prompt), encode(answer)
        if not letters:
            found.append(0.0)
            continue
        with torch.inference_mode():
            logits = model(torch.tensor([prompt + letters[:-1]]))[0, len(prompt) - 1 :]
        p = logits.log_softmax(-1).gather(-1, torch.tensor(letters)[:, None])
        found.append(-float(p.mean()))
    return torch.tensor(found)


EXPERIMENT = Experiment(
    id="uncertainty-features",
    technique="uncertainty-features",
    question="Which signal tells the tutor's wrong answers, and does a probe beat the cheapest?",
    expectation=Expectation(
        statement="What a model finds likely is, calibrated, a fair account of what it knows.",
        source=KADAVATH_2022,
        refuted_if="its surprise ranks errors at less than 0.7, or is off by more than 0.2",
        worth_it=True,
    ),
    how=Custom(run=run),
    matched=Matched(
        what=("nothing",), because="one tutor a seed; all detectors see the same questions"
    ),
    arms=(
        Arm(id="entropy", label="surprise at its answer"),
        Arm(id="words", label="probe at layer 0"),
        Arm(id="shuffled", label="probe, labels shuffled"),
        Arm(id="probe", label="probe at layer 2"),
    ),
    metrics=(AUROC, ECE, HALF),
    claims=(
        at_least(AUROC, "entropy", 0.7),
        at_most(ECE, "entropy", 0.2),
        not_better(AUROC, "probe"),
        at_most(AUROC, "shuffled", 0.65),
    ),
    budgets=inside.BUDGETS,
    predicted=lambda setting: unseen(setting, "auroc", "ece", "half"),
    setup=inside.tutors,
    means={
        "confirmed": "How surprised the tutor is by its own answer ranks its errors, calibrated "
        "and for nothing, and a probe of its states adds nothing to it.",
        "refuted": "Surprise ranks the errors worse, is less calibrated, or a control does "
        "better than it should: see which; with so few questions intervals are "
        "wide.",
    },
)
