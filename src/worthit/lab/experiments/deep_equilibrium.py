"""A layer iterated to its fixed point against one pass: loss, and whether it converges."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from worthit.lab.claims import Metric, at_most, no_worse
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
from worthit.lab.experiments._depths import BUDGETS, stack, unseen
from worthit.lab.experiments._text import LOSS, RECIPE, text
from worthit.lab.metrics import PARAMETERS
from worthit.nn.depth.deep_equilibrium import EquilibriumBlock
from worthit.spec.model import ModelSpec
from worthit.techniques.depth.deep_equilibrium import BAI_2019

N_STEPS = 12
RESIDUAL = Metric(id="residual", name="relative change of one more step", margin=0.01)


def equilibrium(budget: Budget) -> ModelSpec:
    """One layer with its norms behind, iterated twelve times at most."""
    spec = stack(budget, 1, n_loops=N_STEPS, placement="post")
    return replace(spec, is_equilibrium=True)


def convergence(trial: Trial) -> Measures:
    """How far the fixed point is from being one, on the test split."""
    changes: list[float] = []

    def check(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        assert isinstance(module, EquilibriumBlock)
        again = module.step(output, inputs[0], inputs[1])
        changes.append(float((again - output).norm() / output.norm()))

    hooks = [
        m.register_forward_hook(check)
        for m in trial.model.modules()
        if isinstance(m, EquilibriumBlock)
    ]
    with torch.no_grad():
        for batch in trial.data.held_out("test"):
            trial.model(batch.input_ids)
    for hook in hooks:
        hook.remove()
    return {"residual": sum(changes) / len(changes)} if changes else {}


EXPERIMENT = Experiment(
    id="deep-equilibrium",
    technique="deep-equilibrium",
    question="Does a fixed point of one layer do the work of a stack of three?",
    expectation=Expectation(
        statement="On a par with deep stacks at comparable size, with the memory of one layer.",
        source=BAI_2019,
        refuted_if="its loss is 0.05 nats worse than that of one layer of its own size, or the "
        "solver does not converge",
        worth_it=False,
    ),
    how=Training(data=text, recipe=RECIPE, score=convergence),
    matched=Matched(
        what=("parameters", "tokens"),
        within=0.03,
        because="one layer each; the fixed point costs twelve times its compute",
    ),
    arms=(
        Arm(id="one", label="one layer", model=lambda budget: stack(budget, 1, placement="post")),
        Arm(id="equilibrium", label="its fixed point", model=equilibrium),
    ),
    metrics=(LOSS, RESIDUAL, PARAMETERS),
    claims=(no_worse(LOSS, "equilibrium"), at_most(RESIDUAL, "equilibrium", 0.05)),
    budgets={
        name: replace(
            budget, n_seeds=min(budget.n_seeds, 4), batch_size=8, n_steps=min(budget.n_steps, 120)
        )
        if name != "full"
        else budget
        for name, budget in BUDGETS.items()
    },
    predicted=unseen,
    means={
        "confirmed": "The fixed point exists, is found, and is at least as good as one pass, for "
        "twelve times the compute: memory is all that it saves.",
        "refuted": "Iterating a layer to its fixed point is worse here than running it once, or "
        "does not converge: nothing keeps it contracting as it learns.",
    },
)
