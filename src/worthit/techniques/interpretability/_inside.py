"""What the records of interpretability share: a need, labels, and no place in the roofline.

Reading or shifting the stream of a served model takes a vector a layer, which no cost model sees;
what it is worth, only an experiment can tell. The need decides which of them apply: `data.inside`.
"""

from __future__ import annotations

from dataclasses import replace

from worthit.errors import NotApplicable
from worthit.spec.case import INSIDES, Case
from worthit.techniques._change import with_runtime
from worthit.techniques.interpretability._guide import GUIDE, needs_of


def looked_into(case: Case, name: str, *, least_labels: int = 0) -> Case:
    """`case` with the technique `name` in place for what is wanted of its activations.

    Raises:
        NotApplicable: nothing is wanted, something that this does not answer, or labels are few.
    """
    need = case.data.inside
    if need is None:
        raise NotApplicable(
            f"{name} looks inside of a model, and this case does not say what for: say data.inside "
            f"({', '.join(INSIDES)}) in a case file; worthit explain NEED has the guide"
        )
    if need not in needs_of(name):
        better = ", ".join(option.technique for option in GUIDE[need].options[:3])
        raise NotApplicable(
            f"{name} answers {' and '.join(needs_of(name))}, and this case asks to {need} "
            f"(data.inside): see {better}"
        )
    labels = case.data.labels
    if labels is not None and labels < least_labels:
        raise NotApplicable(
            f"{name} needs some {least_labels} labelled texts or pairs, and this case has {labels} "
            "(data.labels)"
        )
    if case.runtime.inside not in (None, name):
        raise NotApplicable(
            f"{name} would stand beside {case.runtime.inside}, which is in place (runtime.inside); "
            "take that away, or measure their interference first"
        )
    return with_runtime(case, inside=name)


def is_looked_into(case: Case, name: str) -> bool:
    """Whether `name` is what the model is looked into or steered by."""
    return case.runtime.inside == name


def left_alone(case: Case) -> Case:
    """`case` with a model that is neither looked into nor steered."""
    return replace(case, runtime=replace(case.runtime, inside=None))
