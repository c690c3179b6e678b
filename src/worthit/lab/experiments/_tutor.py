"""What the experiments on the grammar tutor share: the task, the budgets, who expects what."""

from __future__ import annotations

from dataclasses import replace

from worthit.lab import metrics
from worthit.lab.experiment import Budget, Training
from worthit.lab.tasks import task
from worthit.techniques import Source

# The expectation of this project, written down before any of these experiments existed.
EXPECTED = Source(
    cite="worthit",
    title="The embedded default: the grammar tutor",
    id="docs/lab.md",
)
# The test split has 180 questions, so that its own sampling error is near four points: a smaller
# margin would be about these questions, not about grammar.
EXACT_MATCH = replace(metrics.EXACT_MATCH, margin=0.05)
ON_TUTOR = Training(data=lambda budget: task("grammar-tutor"))
QUICK = Budget(
    n_seeds=5,
    n_steps=300,
    batch_size=32,
    learning_rates=(1e-3, 3e-3, 1e-2, 3e-2),
    n_tuning_steps=150,
)
# Narrower, and too short to learn much: more seeds make up for some of it.
SMOKE = replace(
    QUICK,
    n_seeds=8,
    n_steps=60,
    n_tuning_steps=30,
    learning_rates=(3e-3, 1e-2, 3e-2, 1e-1),
    sizes={"d_model": 64},
)
FULL = replace(QUICK, n_seeds=10, n_steps=1500, n_tuning_steps=750)
BUDGETS = {"smoke": SMOKE, "quick": QUICK, "full": FULL}
