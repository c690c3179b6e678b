"""What the cost of serving and of training have in common: points, split, scenarios, capacity."""

from __future__ import annotations

from functools import cached_property

import numpy as np

from worthit.cost.clock import (
    FACTORS,
    SCENARIOS,
    Array,
    Bools,
    PassTime,
    scenario_factors,
    time_pass,
)
from worthit.cost.layout import choose, degrees
from worthit.cost.ledger import Number, Op, Pass
from worthit.cost.memory import RESERVE, Split
from worthit.cost.points import Points, one_point
from worthit.spec.case import Case, Range

# Beside the scenarios of `clock`: numbers that depend on data, at their low and their high end.
DATA_SCENARIOS = 2


class CaseCost:
    """The cost of a case at every point.

    Shapes: memory `(points,)`; times `(scenarios, points)`, scenario 0 being the middle of every
    interval and the last two the bounds of data-dependent numbers. Times are infinite where the
    case does not fit.
    """

    def __init__(self, case: Case, points: Points | None = None) -> None:
        self.case = case = choose(case)
        self.points = p = one_point(case) if points is None else points
        self.runtime, self.model = case.runtime, case.model
        self.device = case.hardware.device
        self.degrees = degrees(case, p)
        self.split: Split = self.degrees.split(case.hardware.layout)
        compiled = self.runtime.is_compiled
        self.is_compiled = self.device.kind != "cpu" if compiled is None else compiled

    @cached_property
    def capacity_bytes(self) -> Array:
        """Memory of one device that the model may use."""
        return np.full(self.points.n, self.device.mem_bytes * (1 - RESERVE))

    @cached_property
    def total_bytes(self) -> Array:
        """Everything asked for, on one device."""
        raise NotImplementedError

    @property
    def memory_bytes(self) -> Array:
        """Everything asked for, on one device: the metric of the goal `memory`."""
        return self.total_bytes

    @cached_property
    def fits(self) -> Bools:
        """Whether everything asked for fits."""
        raise NotImplementedError

    @cached_property
    def context_shortfall(self) -> Array:
        """How many times longer a sequence gets than the context the model was trained for."""
        raise NotImplementedError

    @cached_property
    def shares(self) -> dict[str, Array]:
        """How much each bottleneck takes of its resource, between 0 and 1."""
        raise NotImplementedError

    def shares_of(self, metric: str) -> dict[str, Array]:
        """Shares of the resource that `metric` measures."""
        raise NotImplementedError

    @cached_property
    def _factors(self) -> Array:
        """Multipliers by factor and scenario, all 1 for the data-dependent ones at the end."""
        hardware = scenario_factors(self.device.efficiency.is_calibrated)
        return np.concatenate([hardware, np.ones((len(FACTORS), DATA_SCENARIOS))], axis=1)

    def factor(self, name: str) -> Array:
        """One factor's multipliers, `(scenarios, 1)`."""
        column: Array = self._factors[FACTORS.index(name)][:, None]
        return column

    def by_scenario(self, value: Range) -> Array:
        """A data-dependent number in each scenario: its middle but in the last two."""
        out = np.full(SCENARIOS + DATA_SCENARIOS, value.mid)
        out[-2:] = value.low, value.high
        return out

    def seconds(self, time: PassTime) -> Array:
        """Seconds of a pass by scenario and point."""
        total: Array = self._factors.T @ (time.layers + time.around)
        return total

    def time(self, ops: list[Op], p: Pass, working_set: Number | None = None) -> PassTime:
        """Time the operations of a pass on this device."""
        return time_pass(
            ops,
            self.device,
            is_decode=p.phase == "decode",
            points=self.points.n,
            link_bytes_per_s=self.degrees.link_bytes_per_s,
            working_set=working_set,
        )
