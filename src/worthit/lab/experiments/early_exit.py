"""Tokens that leave when they are sure: what a threshold saves in layers and costs in accuracy."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor, nn

from worthit.lab.claims import at_most, no_worse
from worthit.lab.experiment import (
    Arm,
    Budget,
    Expectation,
    Experiment,
    Matched,
    Measures,
    Training,
    Trial,
)
from worthit.lab.experiments._depths import BUDGETS, DEPTH, stack
from worthit.lab.experiments._text import RECIPE, text
from worthit.lab.metrics import ACCURACY
from worthit.lab.predict import unseen
from worthit.lab.tasks.scores import evaluate
from worthit.nn.depth.early_exit import EarlyExitDecoder, exit_loss
from worthit.spec.model import EarlyExit, ModelSpec
from worthit.techniques.depth.early_exit import SCHUSTER_2022
from worthit.train import Batch

N_LAYERS = 4
# Uncertainty under which a token leaves: a margin of 0.7 between its two likeliest successors.
THRESHOLD = 0.3
THRESHOLDS = (0.05, 0.1, 0.2, 0.3, 0.5, 0.8)
KEPT = replace(ACCURACY, margin=0.01)


def with_exits(budget: Budget) -> ModelSpec:
    """Four layers with an exit after each of the first three."""
    exits = EarlyExit(layers=(1, 2, 3), mean_depth=0.75, low=0.25, high=1.0)
    return replace(stack(budget, N_LAYERS), early_exit=exits)


def loss_of_exits(model: nn.Module, batch: Batch) -> Tensor:
    """Every exit learns, the later the more (equation 5)."""
    assert isinstance(model, EarlyExitDecoder)
    return exit_loss(
        model.exit_logits(batch.input_ids), batch.targets, [*sorted(model.exits), N_LAYERS]
    )


def exits(trial: Trial) -> Measures:
    """Accuracy and mean depth at the arm's threshold, and both over all thresholds."""
    model = trial.model
    assert isinstance(model, EarlyExitDecoder)

    def measured(threshold: float) -> tuple[float, float]:
        model.threshold, depths = threshold, []

        def run(ids: Tensor) -> Tensor:
            logits: Tensor = model(ids)
            assert model.depths is not None
            depths.append(float(model.depths.float().mean()))
            return logits

        found = evaluate(run, trial.data.held_out("test")).overall
        model.threshold = 0.0
        return sum(depths) / len(depths), found.token_accuracy

    depth, accuracy = measured(trial.arm.options["threshold"])
    curve = tuple(measured(threshold) for threshold in (0.0, *THRESHOLDS))
    return {"depth": depth, "accuracy": accuracy, "accuracy by depth": tuple(sorted(curve))}


EXPERIMENT = Experiment(
    id="early-exit",
    technique="early-exit",
    question="How many layers can sure tokens leave out before accuracy falls?",
    expectation=Expectation(
        statement="Up to three times less compute with the quality kept, where confidence decides.",
        source=SCHUSTER_2022,
        refuted_if="at the threshold accuracy falls by a point, or more than three of four layers "
        "are run",
        worth_it=True,
    ),
    how=Training(data=text, recipe=RECIPE, score=exits),
    matched=Matched(
        what=("parameters", "tokens"),
        because="one model, one training: the arms differ in when a token may leave",
    ),
    arms=(
        Arm(
            id="whole",
            label="all layers",
            model=with_exits,
            loss=loss_of_exits,
            options={"threshold": 0.0},
        ),
        Arm(
            id="exits",
            label="sure tokens leave",
            model=with_exits,
            loss=loss_of_exits,
            options={"threshold": THRESHOLD},
        ),
    ),
    metrics=(KEPT, DEPTH),
    claims=(no_worse(KEPT, "exits"), at_most(DEPTH, "exits", 3.0)),
    budgets=BUDGETS,
    predicted=lambda setting: unseen(setting, "accuracy", "depth"),
    means={
        "confirmed": "A quarter of the layers or more is left out without a point of accuracy.",
        "refuted": "After a training this short few tokens are sure: those that leave early are "
        "right, but too few leave for it to pay.",
    },
)
