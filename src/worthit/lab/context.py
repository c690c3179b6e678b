"""An experiment at a budget, with its data and the models of its arms: what is about to be run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from worthit.lab.experiment import Arm, Budget, Experiment, Training
from worthit.spec.model import ModelSpec

if TYPE_CHECKING:
    from worthit.train.batch import Data


@dataclass(frozen=True, kw_only=True)
class Setting:
    """An experiment, resolved: nothing in it depends on the machine.

    Attributes:
        budget_name: `smoke`, `quick` or `full`.
        data: the task of a `Training`; None for the other kinds.
        specs: the model of each arm that has one, with the vocabulary and context of the data.
    """

    experiment: Experiment
    budget_name: str
    budget: Budget
    data: Data | None
    specs: dict[str, ModelSpec]

    @property
    def tokens(self) -> int:
        """Tokens that one training sees; 0 where nothing is trained."""
        seq_len = 0 if self.data is None else self.data.seq_len
        return self.budget.n_steps * self.budget.batch_size * seq_len


@dataclass(frozen=True, kw_only=True)
class Context:
    """What a cell is run in.

    Attributes:
        setting: the experiment at its budget.
        folder: where this experiment's cells may keep files of their own.
        seeds: of all cells, done ones included.
        n_threads: that torch may use.
        tick: `tick(share, note)` reports progress within a cell, between 0 and 1.
    """

    setting: Setting
    folder: Path
    seeds: tuple[int, ...] = ()
    n_threads: int = 1
    tick: Callable[[float, str], None] = field(default=lambda share, note: None)
    made: dict[str, Any] = field(default_factory=dict)

    @property
    def shared(self) -> Any:
        """What the experiment's `setup` returns; it runs when it is first asked for."""
        if "shared" not in self.made:
            setup = self.setting.experiment.setup
            self.folder.mkdir(parents=True, exist_ok=True)
            self.made["shared"] = None if setup is None else setup(self)
        return self.made["shared"]

    @property
    def budget(self) -> Budget:
        """How much is spent."""
        return self.setting.budget

    def spec(self, arm: Arm) -> ModelSpec:
        """The model of `arm`."""
        return self.setting.specs[arm.id]

    def ticking(self, tick: Callable[[float, str], None]) -> Context:
        """This context, reporting to `tick`."""
        return replace(self, tick=tick)


def resolve(experiment: Experiment, budget_name: str) -> Setting:
    """`experiment` at a budget: its data, made, and the models of its arms.

    Raises:
        UnknownName: no such budget.
    """
    budget = experiment.budget(budget_name)
    data = experiment.how.data(budget) if isinstance(experiment.how, Training) else None
    specs = {}
    for arm in experiment.arms:
        if arm.model is not None:
            spec = arm.model if isinstance(arm.model, ModelSpec) else arm.model(budget)
            specs[arm.id] = spec if data is None else fitted(spec, data)
    return Setting(
        experiment=experiment, budget_name=budget_name, budget=budget, data=data, specs=specs
    )


def fitted(spec: ModelSpec, data: Data) -> ModelSpec:
    """`spec` with the vocabulary of `data`, and room for its sequences where it has too little."""
    length = max(spec.context_len, data.seq_len)
    n_positions = max(spec.n_positions, data.seq_len) if spec.n_positions else 0
    return replace(spec, vocab_size=data.vocab_size, context_len=length, n_positions=n_positions)
