"""Learned positions: a table with one trained vector a position.

Changes: the position scheme, with a table of `context_len` rows of `d_model`. Matched: everything
else; parameters grow by the table.
Relieves: quality: attention without positions sees a set of words.
Does nothing when: the layers read in order anyway (recurrent mixers).
Costs: training anew, the table, and a hard limit on the length.
"""

from __future__ import annotations

from dataclasses import replace

from worthit.spec.case import Case
from worthit.spec.model import Position
from worthit.techniques._record import Evidence, Source, Technique
from worthit.techniques.position._positions import (
    VASWANI_2017,
    is_kind,
    set_position,
    without_position,
)

GEHRING_2017 = Source(
    cite="Gehring et al. 2017",
    title="Convolutional Sequence to Sequence Learning",
    id="arXiv:1705.03122",
    where="section 3.1",
)


def apply(case: Case) -> Case:
    """Return `case` with a table of `context_len` learned positions."""
    return set_position(case, "learned-positions", Position(kind="learned"))


def is_present(case: Case) -> bool:
    """Whether positions are rows of a learned table."""
    return is_kind(case, "learned")


def remove(case: Case) -> Case:
    """Return `case` without the table, told nothing about order."""
    return without_position(case)


TECHNIQUE = Technique(
    id="learned-positions",
    name="Learned absolute positions",
    relieves=("quality",),
    bottleneck="Attention treats its input as a set: without positions word order is lost.",
    apply=apply,
    module="worthit.nn.position.learned_positions:LearnedPositions",
    experiment="worthit.lab.experiments.learned_positions:EXPERIMENT",
    parity=(
        "transformers 5.23 `OPTLearnedPositionalEmbedding`, with left padding "
        "(tests/nn/position/test_added.py)",
    ),
    is_present=is_present,
    remove=remove,
    adoption="retrain",
    cost_of_adoption="A training run, and context_len * d_model parameters more.",
    nothing_when=(
        "A relative scheme is in place, or the layers are recurrent. For short texts of fixed "
        "length it is as good as any."
    ),
    pitfalls=(
        "A position past the table is an index error, or worse, a silent wrap-around.",
        "Late rows are trained on few texts when most are short.",
        "Some families start at an offset of two rows: reading from row zero shifts everything.",
    ),
    sources=(GEHRING_2017, VASWANI_2017),
    evidence=(
        Evidence(
            claim="In translation, a learned table and fixed sinusoids gave nearly identical "
            "quality.",
            source=replace(VASWANI_2017, where="section 3.5, table 3 row E"),
        ),
    ),
    orientation={
        "en": "The model learns one vector for each position and adds it to the token there. For "
        "texts of bounded length it is simple and good. It cannot say anything about a position "
        "that it has never seen, and it does not know that the distance between 5 and 6 is that "
        "between 105 and 106; each has to be learnt by itself.",
        "es": "El modelo aprende un vector por posición y lo suma al token que está en ella. Para "
        "textos de longitud acotada es sencillo y bueno. No puede decir nada de una posición que "
        "nunca ha visto, ni sabe que la distancia entre 5 y 6 es la misma que entre 105 y 106; "
        "tiene que aprender cada una por separado.",
    },
    diagram=(
        "tokens",
        "embedding",
        "+add row i of a table, context_len x d_model",
        "layers",
    ),
)
