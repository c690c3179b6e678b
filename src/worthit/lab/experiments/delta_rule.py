"""The delta rule against states that only add or fade, and attention, on recall from 16 rows.

Eight pairs fit into 16 rows where keys are kept apart. The rule that overwrites what a key recalls
can do that; the others add.
"""

from __future__ import annotations

from dataclasses import replace

from worthit.lab.claims import no_worse, superior
from worthit.lab.experiment import Expectation, Experiment
from worthit.lab.experiments._recall import (
    BUDGETS,
    MATCHED,
    ON_RECALL,
    RECALLED,
    STATE_BYTES,
    attention,
    linear,
    predicted,
)
from worthit.techniques.attention.delta_rule import YANG_2024

EXPERIMENT = Experiment(
    id="delta-rule",
    technique="delta-rule",
    question="Does a linear state recall as attention does once it overwrites in place of adding?",
    expectation=Expectation(
        statement="The delta rule recalls all pairs, as attention does, where additive and gated "
        "states of the same size fall short.",
        source=replace(YANG_2024, where="section 4.1, figure 2"),
        refuted_if="it recalls less than 10 points more than the additive or the gated state, or 5 "
        "points less than attention",
        worth_it=True,
    ),
    how=ON_RECALL,
    matched=replace(
        MATCHED,
        because="the three states have the same shape; width, depth, first layer, data and steps "
        "are the same",
    ),
    arms=(
        linear("linear", 16),
        linear("delta", 16),
        linear("gated", 16),
        attention(),
    ),
    metrics=(RECALLED, STATE_BYTES),
    claims=(
        superior(RECALLED, "delta", by=0.1),
        superior(RECALLED, "delta", by=0.1, against="gated"),
        no_worse(RECALLED, "delta", against="attention"),
    ),
    budgets=BUDGETS,
    predicted=predicted,
    means={
        "inconclusive": "Seeds fall into two camps: where the rule is learned it recalls nearly "
        "everything, and in some runs it is not learned within these steps. That is a matter of "
        "training, and says nothing about what the state holds; more steps would tell.",
        "confirmed": "A state that overwrites holds as many facts as it has rows: worth it in "
        "place of any linear state that adds.",
    },
)
