"""A model that is trained against a probe: what the probe then says, and what is still there.

Each tutor is trained on while a frozen probe of the tense is pushed to chance. Its answers need the
tense, so that it cannot forget it; it can move it to where the probe does not look.
"""

from __future__ import annotations

import copy

import torch
from torch.nn import functional

from worthit.interp.hooks import capture
from worthit.interp.probe import Probe, fit_probe
from worthit.lab.claims import Metric, at_least, worse
from worthit.lab.context import Context
from worthit.lab.experiment import Arm, Custom, Expectation, Experiment, Matched, Measures
from worthit.lab.experiments import _inside as inside
from worthit.lab.predict import unseen
from worthit.lab.tasks.grammar_tutor import encode
from worthit.nn.decoder import Decoder
from worthit.techniques.interpretability.linear_probe import BAILEY_2024
from worthit.train import next_token_loss

READ = Metric(id="read", name="accuracy of the probe", better="higher", margin=0.1)
RIGHT = Metric(id="right", name="share of right answers", better="higher", margin=0.05)


def evading(model: Decoder, probe: Probe, n_steps: int, seed: int) -> Decoder:
    """`model`, trained on its task and on the probe being at a loss."""
    made: Decoder = copy.deepcopy(model)
    made.requires_grad_().train()
    data, generator = inside.data(), torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(made.parameters(), lr=2e-3, weight_decay=0.0)
    rows = inside.asked("identify")
    by_length: dict[int, list[list[int]]] = {}
    for e in rows:
        by_length.setdefault(len(encode(e.prompt)), []).append(encode(e.prompt))
    groups = list(by_length.values())
    for step in range(n_steps):
        loss = next_token_loss(made, data.batch(generator, 64))
        ids = torch.tensor(groups[step % len(groups)][:64])
        with capture(made, inside.POINT) as seen:
            made(ids)
        said = probe.scores(seen[inside.POINT][:, -1].double())
        even = torch.full_like(said, 1 / said.shape[1])
        evasion = functional.cross_entropy(said, even)
        optimizer.zero_grad()
        (loss + evasion.to(loss)).backward()
        optimizer.step()
    made.eval().requires_grad_(requires_grad=False)
    return made


def run(context: Context, arm: Arm, seed: int) -> Measures:
    """The frozen probe on the model before and after, and a new probe after."""
    before = context.shared[seed]
    fit, held = inside.halves(inside.asked("identify"), seed)
    tenses = sorted({e.tense for e in fit})
    z, w = (torch.tensor([tenses.index(e.tense) for e in part]) for part in (fit, held))
    probe = fit_probe(inside.at_answer(before, fit), z)
    model = before
    if arm.id != "before":
        model = evading(before, probe, context.budget.n_steps // 2, seed)
    if arm.id == "refitted":
        probe = fit_probe(inside.at_answer(model, fit), z)
    rows = inside.asked("identify")
    right = [a == e.answer for a, e in zip(inside.say(model, rows), rows, strict=True)]
    return {"read": probe.accuracy(inside.at_answer(model, held), w), "right": inside.share(right)}


EXPERIMENT = Experiment(
    id="probe-evasion",
    technique="linear-probe",
    question="Can a probe be relied on, once the model is trained against it?",
    expectation=Expectation(
        statement="A model that is trained against a monitor of its states learns states on which "
        "the monitor fails, while its behaviour stays.",
        source=BAILEY_2024,
        refuted_if="the frozen probe still reads the tense, or the tutor unlearns it",
        worth_it=False,
    ),
    how=Custom(run=run),
    matched=Matched(
        what=("nothing",), because="the same tutor before and after half as many steps again"
    ),
    arms=(
        Arm(id="before", label="probe, before"),
        Arm(id="frozen", label="the same probe, after"),
        Arm(id="refitted", label="a new probe, after"),
    ),
    metrics=(READ, RIGHT),
    claims=(
        worse(READ, "frozen", by=0.3),
        at_least(RIGHT, "frozen", 0.9),
        at_least(READ, "refitted", 0.6),
    ),
    budgets=inside.BUDGETS,
    predicted=lambda setting: unseen(setting, "read", "right"),
    setup=inside.tutors,
    means={
        "confirmed": "A detector that training sees is passed within a few hundred steps, at no "
        "cost to the task, and a new one still finds the tense: never train on the "
        "detector that you rely on.",
        "refuted": "The tutor was not talked out of it in so few steps: a probe on what the "
        "task itself needs is harder to evade than one on something idle.",
    },
)
