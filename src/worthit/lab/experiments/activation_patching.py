"""Finding the edges that carry a tense: by one gradient, by patching each, or at random.

Prompts that ask for a past against the same that ask for a future. A circuit of the best edges is
kept, every other edge carries the other prompt: how much of the answer is left?
"""

from __future__ import annotations

import torch

from worthit.interp.circuit import (
    Contrast,
    best_edges,
    contrast,
    edge_attribution,
    edge_effects,
    faithfulness,
)
from worthit.interp.graph import Graph
from worthit.interp.patch import logit_difference
from worthit.lab.claims import Metric, no_worse, superior
from worthit.lab.context import Context
from worthit.lab.experiment import Arm, Custom, Expectation, Experiment, Matched, Measures
from worthit.lab.experiments import _inside as inside
from worthit.lab.predict import unseen
from worthit.lab.tasks.grammar_tutor import Example, encode
from worthit.techniques.interpretability.activation_patching import SYED_2023

FAITHFUL = Metric(
    id="faithful", name="share of the answer that the circuit gives", better="higher", margin=0.15
)
PASSES = Metric(id="passes", name="passes of the model", scale="ratio", margin=0.1, is_exact=True)
N_EDGES = 50
N_FIT = 8


def run(context: Context, arm: Arm, seed: int) -> Measures:
    """Edges chosen on some verbs; the circuit's answers judged on others."""
    rows = inside.asked("conjugate", tense="past", language="es", person="3")
    fit, held = rows[:N_FIT], rows[N_FIT:]
    graph = Graph(context.shared[seed])

    def question(some: list[Example]) -> list[tuple[list[int], list[int], int, int]]:
        found = []
        for e in some:
            clean = encode(e.prompt)
            other = encode(e.prompt.replace("<past>", "<future>"))
            stem = 0
            right, wrong = encode(e.answer), encode(inside.form(e, tense="future"))
            while stem < min(len(right), len(wrong)) and right[stem] == wrong[stem]:
                stem += 1
            if stem < min(len(right), len(wrong)):
                # Asked where the two forms part.
                found.append((clean + right[:stem], other + right[:stem], right[stem], wrong[stem]))
        return found

    def contrasts(some: list[Example]) -> list[Contrast]:
        made = []
        for clean, other, right, wrong in question(some):
            metric = logit_difference([right], [wrong])
            made.append(contrast(graph, torch.tensor([clean]), torch.tensor([other]), metric))
        return made

    seen = contrasts(fit)
    n_edges = len(graph.edges)
    if arm.id == "random":
        order = torch.randperm(n_edges, generator=torch.Generator().manual_seed(seed))
        circuit = {graph.edges[i] for i in order[:N_EDGES].tolist()}
        passes = 0
    else:
        score = edge_attribution if arm.id == "gradient" else edge_effects
        each = [score(c) for c in seen]
        mean = {edge: sum(s[edge] for s in each) / len(each) for edge in graph.edges}
        circuit = best_edges(mean, N_EDGES)
        passes = 3 if arm.id == "gradient" else 2 + n_edges
    shares = [faithfulness(c, circuit) for c in contrasts(held)]
    return {
        "faithful": float(torch.tensor(shares).median()),
        "passes": float(max(passes, 1)),
        "share of edges": N_EDGES / n_edges,
    }


EXPERIMENT = Experiment(
    id="activation-patching",
    technique="activation-patching",
    question="Does one gradient find the circuit that patching every edge finds?",
    expectation=Expectation(
        statement="Edges ranked by attribution recover circuits as well as patching them one by "
        "one, at a few passes.",
        source=SYED_2023,
        refuted_if="its circuit gives less of the answer than that of exact effects, or no more "
        "than as many random edges",
        worth_it=True,
    ),
    how=Custom(run=run),
    matched=Matched(
        what=("nothing",),
        because="fifty edges of some hundred in every arm, chosen and judged on the same verbs",
    ),
    arms=(
        Arm(id="exact", label="each edge patched"),
        Arm(id="random", label="random edges"),
        Arm(id="gradient", label="edges by gradient"),
    ),
    metrics=(FAITHFUL, PASSES),
    claims=(
        superior(FAITHFUL, "gradient", against="random"),
        no_worse(FAITHFUL, "gradient"),
    ),
    budgets=inside.BUDGETS,
    predicted=lambda setting: unseen(setting, "faithful", "passes"),
    setup=inside.tutors,
    means={
        "confirmed": "One backward pass finds a circuit that gives nearly as much of the answer "
        "as patching every edge, and random edges give none: start with the "
        "gradient.",
        "refuted": "The gradient's circuit gives clearly less of the answer than that of exact "
        "effects: use it to choose which edges to patch.",
    },
)
