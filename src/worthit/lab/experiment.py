"""What an experiment is: a question, arms that differ in one thing, and what would settle it.

An experiment is data. It says beforehand what is expected, by whom and what would refute it; what
is held equal, which is computed and checked; what is measured, with the smallest change that
matters; and the claims that the intervals decide. How its arms are run is one of three kinds:

- `Training`: every arm's learning rate is tuned on the same grid with the same budget, then all
  seeds train and are scored on held-out data;
- `Timing`: arms take turns on the clock, so that what disturbs one disturbs all;
- `Custom`: a function from an arm and a seed to numbers.

Write one by copying the nearest in `worthit/lab/experiments/`; docs/lab.md explains every field.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from worthit._record import record
from worthit.errors import SpecError, unknown_name
from worthit.lab.claims import Claim, Metric
from worthit.spec.model import ModelSpec
from worthit.techniques import Source

if TYPE_CHECKING:
    from torch import Tensor, nn

    from worthit.lab.context import Context, Setting
    from worthit.train.batch import Batch, Data
    from worthit.train.history import History

BUDGETS = ("smoke", "quick", "full")
Quantity = Literal[
    "parameters", "active parameters", "FLOPs", "tokens", "cache bytes", "wall time", "nothing"
]
# Points of a line in the report: x and y.
Curve = tuple[tuple[float, float], ...]
# What a function of an experiment may return: metrics by id, and curves by name.
Measures = Mapping[str, "float | Curve"]


@record
class Expectation:
    """What is expected, written before anything was run.

    Args:
        statement: in our words, with the number where there is one.
        source: who says so.
        refuted_if: what would show it wrong here, in words; the claims say it in numbers.
        worth_it: whether the technique is expected to be worth it on this task.
    """

    statement: str
    source: Source
    refuted_if: str
    worth_it: bool | None = None


@record
class Matched:
    """What arms have in common besides data and seeds, and how nearly; checked before a run.

    `because` says why it is fair, or why nothing can be matched.
    """

    what: tuple[Quantity, ...]
    within: float = 0.03
    because: str = ""


@record
class Arm:
    """One side of an experiment.

    Args:
        id: its key in results and claims.
        label: its name in tables.
        model: what is built; the data decide its vocabulary and context. A function of the budget
            where it has sizes; None where no model is trained.
        recipe: fields of `worthit.train.Recipe` in which this arm differs.
        loss: `(model, batch) -> loss` in place of cross-entropy: balance, distillation, ...
        after_step: called with the model after every update.
        build: `(spec, seed) -> model` in place of `worthit.train.seeded`, for arms that change
            modules rather than the spec; a function of the module's top level.
        learning_rates: this arm's grid, as many points as the budget's; None for the budget's.
        options: anything that the experiment's own functions read.
    """

    id: str
    label: str
    model: ModelSpec | Callable[[Budget], ModelSpec] | None = None
    recipe: Mapping[str, Any] = field(default_factory=dict, hash=False)
    loss: Callable[[nn.Module, Batch], Tensor] | None = None
    after_step: Callable[[nn.Module], None] | None = None
    build: Callable[[ModelSpec, int], nn.Module] | None = None
    learning_rates: tuple[float, ...] | None = None
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)


@record
class Budget:
    """How much is spent.

    Args:
        n_seeds: repetitions, each with its own initial weights and order of data; the same seeds
            for every arm.
        n_steps: of training.
        batch_size: sequences a step.
        learning_rates: the grid on which every arm is tuned, ascending.
        n_tuning_seeds: seeds a grid point is tried with; they are not among the evaluated ones.
        n_tuning_steps: steps a grid point gets; None for `n_steps`.
        n_rounds: turns that each arm of a `Timing` gets within a seed.
        sizes: whatever the experiment's functions read: widths, lengths, counts.
        seconds: roughly what one cell of a `Timing` or `Custom` takes on one core, for the
            forecast; training is probed instead.
        setup_seconds: likewise, what the experiment's `setup` takes.
    """

    n_seeds: int
    n_steps: int = 0
    batch_size: int = 0
    learning_rates: tuple[float, ...] = ()
    n_tuning_seeds: int = 1
    n_tuning_steps: int | None = None
    n_rounds: int = 0
    sizes: Mapping[str, Any] = field(default_factory=dict, hash=False)
    seconds: float | None = None
    setup_seconds: float = 0.0

    def __post_init__(self) -> None:
        if self.n_seeds < 1:
            raise SpecError(f"n_seeds must be at least 1, got {self.n_seeds}")
        if list(self.learning_rates) != sorted(set(self.learning_rates)):
            raise SpecError(f"learning_rates must ascend, got {self.learning_rates}")


@record
class Training:
    """Tune, train and score every arm.

    Args:
        data: the task at a budget: `worthit.lab.tasks`.
        recipe: fields of `worthit.train.Recipe` that all arms share.
        score: more metrics of a trained model than `loss`, `accuracy` and `exact_match`, which
            every arm gets on the test split (see `worthit.lab.training`).
    """

    data: Callable[[Budget], Data]
    recipe: Mapping[str, Any] = field(default_factory=dict, hash=False)
    score: Callable[[Trial], Measures] | None = None


@record
class Timing:
    """Let arms take turns on the clock.

    `prepare(context, arm, seed)` sets up everything and returns what is timed: a call without
    arguments. What it returns, a mapping of numbers, is reported too, by the median of the turns;
    `per` names the one of these that the seconds are divided by (tokens, steps). The metric is
    `seconds`.
    """

    prepare: Callable[[Context, Arm, int], Callable[[], Mapping[str, float] | None]]
    per: str | None = None
    n_warmup: int = 2


@record
class Custom:
    """Let a function measure: `run(context, arm, seed)` gives metrics by id, and curves."""

    run: Callable[[Context, Arm, int], Measures]


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A trained model, to be scored."""

    model: nn.Module
    arm: Arm
    seed: int
    data: Data
    setting: Setting
    history: History

    @property
    def budget(self) -> Budget:
        """The budget that it was trained with."""
        return self.setting.budget


@record
class Prediction:
    """What `cost` says of an arm's metric: its effect against the baseline.

    `value` is a ratio or a difference, as the metric is compared; the arm's own value where
    `is_value`. None: cost cannot see it.
    """

    metric: str
    arm: str
    value: float | None
    low: float | None = None
    high: float | None = None
    basis: str = ""
    is_value: bool = False


@record
class Experiment:
    """One question, answerable; the fields are explained in docs/lab.md.

    Args:
        id: the file's stem with `-` for `_`.
        technique: id of the catalogue that it is about; several experiments may share one.
        question: what the outcome answers.
        expectation: said beforehand.
        how: `Training`, `Timing` or `Custom`.
        matched: what the arms have in common.
        arms: the baseline first.
        metrics: the first is what the verdict is about.
        claims: what the intervals decide.
        budgets: `smoke` under a minute, `quick` a few, `full` what a careful reader would want.
        predicted: what `cost` says before the run; cost's silence is an answer too.
        setup: makes what all cells share, `context.shared`, when the first one asks for it; it may
            keep files in `context.folder`.
        gaps: by metric, why its prediction is known to miss here; shown where it does.
        means: the outcome in one sentence, by its state: `confirmed`, `refuted`, `inconclusive`.
    """

    id: str
    technique: str
    question: str
    expectation: Expectation
    how: Training | Timing | Custom
    matched: Matched
    arms: tuple[Arm, ...]
    metrics: tuple[Metric, ...]
    claims: tuple[Claim, ...]
    budgets: Mapping[str, Budget] = field(hash=False)
    predicted: Callable[[Setting], Iterable[Prediction]] | None = None
    setup: Callable[[Context], Any] | None = None
    gaps: Mapping[str, str] = field(default_factory=dict, hash=False)
    means: Mapping[str, str] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        problems = list(_problems(self))
        if problems:
            raise SpecError(*problems, context=f"experiment {self.id!r}")

    @property
    def baseline(self) -> Arm:
        """The arm that the others are compared with."""
        return self.arms[0]

    @property
    def variants(self) -> tuple[Arm, ...]:
        """Every arm but the baseline."""
        return self.arms[1:]

    @cached_property
    def by_arm(self) -> dict[str, Arm]:
        """Arms by id."""
        return {arm.id: arm for arm in self.arms}

    def budget(self, name: str) -> Budget:
        """The budget called `name`.

        Raises:
            UnknownName: there is none.
        """
        if name not in self.budgets:
            raise unknown_name("budget", name, self.budgets)
        return self.budgets[name]

    def grid(self, arm: Arm, budget: Budget) -> tuple[float, ...]:
        """The learning rates that `arm` is tuned on."""
        return budget.learning_rates if arm.learning_rates is None else arm.learning_rates


def _problems(e: Experiment) -> Iterable[str]:
    arms, metrics = [arm.id for arm in e.arms], [m.id for m in e.metrics]
    if len(arms) < 2:
        yield f"arms: an experiment compares at least two, got {len(arms)}"
    if not metrics:
        yield "metrics: name at least one"
    for what, ids in (("arms", arms), ("metrics", metrics)):
        for twice in sorted({i for i in ids if ids.count(i) > 1}):
            yield f"{what}: {twice!r} stands there twice"
    for claim in e.claims:
        if claim.metric.id not in metrics:
            yield f"claim {claim.statement!r}: metric {claim.metric.id!r} is not among {metrics}"
        for arm in (claim.arm, claim.against or arms[0]):
            if arm not in arms:
                yield f"claim {claim.statement!r}: arm {arm!r} is not among {arms}"
        if not claim.is_value and claim.arm == (claim.against or arms[0]):
            yield f"claim {claim.statement!r}: compares {claim.arm!r} with itself"
    if not e.claims:
        yield "claims: at least one, or nothing is decided"
    missing = [name for name in BUDGETS if name not in e.budgets]
    if missing:
        yield f"budgets: {', '.join(missing)} missing"
    if "wall time" in e.matched.what and "step_s" not in metrics:
        yield "matched: wall time is measured as step_s times steps; name STEP_SECONDS as a metric"
    for name, budget in e.budgets.items():
        yield from _budget_problems(e, name, budget)


def _budget_problems(e: Experiment, name: str, budget: Budget) -> Iterable[str]:
    if isinstance(e.how, Training):
        if budget.n_steps < 1 or budget.batch_size < 1:
            yield f"budgets.{name}: training needs n_steps and batch_size"
        if not budget.learning_rates:
            yield f"budgets.{name}: training needs learning_rates, one or more"
        for arm in e.arms:
            if arm.model is None:
                yield f"arms.{arm.id}: training needs a model"
            if len(e.grid(arm, budget)) != len(budget.learning_rates):
                yield (
                    f"arms.{arm.id}: its grid must have as many learning rates as the budget "
                    f"{name!r} ({len(budget.learning_rates)}), got {len(e.grid(arm, budget))}: "
                    "every arm is tuned with the same care"
                )
    if isinstance(e.how, Timing) and budget.n_rounds < 1:
        yield f"budgets.{name}: timing needs n_rounds"
