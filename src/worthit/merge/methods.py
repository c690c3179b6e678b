"""The methods by the names that recipes use: their functions, parameters, and what they merge.

A new method is a file with a `merge` and one entry of `METHODS`.
"""

from __future__ import annotations

from dataclasses import field
from typing import Any, Literal

from worthit._record import record
from worthit.merge import (
    breadcrumbs,
    dare,
    della,
    linear,
    model_stock,
    passthrough,
    slerp,
    task_arithmetic,
    ties,
)
from worthit.merge.stack import Merge

# What may stand for a value in a recipe.
Kind = Literal["number", "flag", "rescale"]
REQUIRED = object()


@record
class Parameter:
    """One parameter of a method.

    Args:
        name: in a recipe.
        argument: of the function; where each model has its own value, a list of them.
        kind: a number, true or false, or (`rescale`) also `l1` or `density`.
        default: taken where the recipe says nothing; `REQUIRED` where it must.
        is_per_model: whether each model has its own value.
        low, high: the numbers that make sense, ends included.
    """

    name: str
    argument: str
    kind: Kind = "number"
    default: Any = REQUIRED
    is_per_model: bool = False
    low: float | None = None
    high: float | None = None


@record
class Method:
    """One method.

    Args:
        id: in a recipe, as `merge_method`.
        title: the field's name for it, and its paper.
        merge: from a stack to the merged rows.
        base: whether the base is where task vectors start, one model more, or the first of two.
        least, most: how many models it merges, the base not counted (`start`) or counted.
        fixed: arguments that are not the recipe's to choose.
        is_random: whether it takes a seed.
    """

    id: str
    title: str
    merge: Merge = field(hash=False)
    base: Literal["start", "model", "end"]
    parameters: tuple[Parameter, ...] = ()
    least: int = 1
    most: int | None = None
    fixed: dict[str, Any] = field(default_factory=dict, hash=False)
    is_random: bool = False

    def parameter(self, name: str) -> Parameter | None:
        """The parameter of that name, if there is one."""
        return next((p for p in self.parameters if p.name == name), None)


_WEIGHT = Parameter(name="weight", argument="weights", is_per_model=True)
_LAMBDA = Parameter(name="lambda", argument="scale", default=1.0)
_DENSITY = Parameter(
    name="density", argument="densities", default=1.0, is_per_model=True, low=0, high=1
)
_GAMMA = Parameter(name="gamma", argument="gammas", default=0.01, is_per_model=True, low=0, high=1)
_EPSILON = Parameter(
    name="epsilon", argument="epsilons", default=0.15, is_per_model=True, low=0, high=0.5
)


def _normalize(default: bool) -> Parameter:
    return Parameter(name="normalize", argument="normalize", kind="flag", default=default)


_RESCALE = Parameter(name="rescale", argument="rescale", kind="rescale", default="l1")
_RANDOM = (_WEIGHT, _DENSITY, _LAMBDA, _RESCALE)

METHODS: dict[str, Method] = {
    method.id: method
    for method in (
        Method(
            id="linear",
            title="linear (model soup, arXiv:2203.05482)",
            merge=linear.merge,
            base="model",
            parameters=(_WEIGHT, _normalize(True)),
        ),
        Method(
            id="task_arithmetic",
            title="task arithmetic (arXiv:2212.04089)",
            merge=task_arithmetic.merge,
            base="start",
            parameters=(_WEIGHT, _LAMBDA, _normalize(False)),
        ),
        Method(
            id="slerp",
            title="SLERP (spherical linear interpolation, doi:10.1145/325334.325242)",
            merge=slerp.merge,
            base="end",
            parameters=(Parameter(name="t", argument="t"),),
            least=2,
            most=2,
        ),
        Method(
            id="ties",
            title="TIES (arXiv:2306.01708)",
            merge=ties.merge,
            base="start",
            parameters=(_WEIGHT, _DENSITY, _LAMBDA, _normalize(True)),
        ),
        Method(
            id="dare_ties",
            title="DARE with TIES's election (arXiv:2311.03099)",
            merge=dare.merge,
            base="start",
            parameters=(*_RANDOM, _normalize(False)),
            fixed={"elect": True},
            is_random=True,
        ),
        Method(
            id="dare_linear",
            title="DARE with addition (arXiv:2311.03099)",
            merge=dare.merge,
            base="start",
            parameters=(*_RANDOM, _normalize(False)),
            fixed={"elect": False},
            is_random=True,
        ),
        Method(
            id="passthrough",
            title="passthrough (layers stacked as they are, arXiv:2312.15166)",
            merge=passthrough.merge,
            base="model",
            parameters=(
                Parameter(name="scale", argument="scales", default=None, is_per_model=True),
            ),
            most=1,
        ),
        Method(
            id="breadcrumbs",
            title="model breadcrumbs (arXiv:2312.06795)",
            merge=breadcrumbs.merge,
            base="start",
            parameters=(_WEIGHT, _DENSITY, _GAMMA, _LAMBDA, _normalize(False)),
            fixed={"elect": False},
        ),
        Method(
            id="breadcrumbs_ties",
            title="model breadcrumbs with TIES's election (arXiv:2312.06795)",
            merge=breadcrumbs.merge,
            base="start",
            parameters=(_WEIGHT, _DENSITY, _GAMMA, _LAMBDA, _normalize(False)),
            fixed={"elect": True},
        ),
        Method(
            id="della",
            title="DELLA (arXiv:2406.11617)",
            merge=della.merge,
            base="start",
            parameters=(*_RANDOM, _EPSILON, _normalize(True)),
            fixed={"elect": True},
            is_random=True,
        ),
        Method(
            id="della_linear",
            title="DELLA with addition (arXiv:2406.11617)",
            merge=della.merge,
            base="start",
            parameters=(*_RANDOM, _EPSILON, _normalize(False)),
            fixed={"elect": False},
            is_random=True,
        ),
        Method(
            id="model_stock",
            title="model stock (arXiv:2403.19522)",
            merge=model_stock.merge,
            base="start",
            parameters=(
                Parameter(name="filter_wise", argument="by_row", kind="flag", default=False),
            ),
            least=2,
        ),
    )
}
# Parameters of any method: one that the chosen method does not have is left out with a warning.
PARAMETERS = frozenset(p.name for method in METHODS.values() for p in method.parameters)
