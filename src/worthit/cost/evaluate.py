"""One door to the cost of a case, served or trained."""

from __future__ import annotations

from worthit.cost.points import Points
from worthit.cost.serve import ServeCost
from worthit.cost.train import TrainCost
from worthit.spec.case import Case, Serving

Cost = ServeCost | TrainCost


def evaluate(case: Case, points: Points | None = None) -> Cost:
    """The cost of `case`, at every point; at the case alone when `points` is None."""
    if isinstance(case.workload, Serving):
        return ServeCost(case, points)
    return TrainCost(case, points)
