"""Mixture of recursions: a shared block is applied as often as each token needs.

Changes: the middle layers are tied in groups of `n_loops`, and on average `token_fraction` of the
tokens takes part in each application; the first and the last layer stay single.
Relieves: memory of weights and states, and arithmetic spent alike on easy and hard tokens.
Does nothing when: the model is too shallow to loop.
Costs: pretraining with a router; a cache whose length differs from loop to loop.

Held equal: the depth that a token passes at most, and the width. With expert-choice capacities of
3/3, 2/3 and 1/3 a token takes part in two of three applications. Its authors match quality at equal
FLOPs and better: training needs between as many tokens and as many FLOPs as before.
"""

from __future__ import annotations

from dataclasses import replace

from worthit.errors import NotApplicable
from worthit.spec.case import Case
from worthit.techniques._change import with_model
from worthit.techniques._record import Evidence, Technique
from worthit.techniques.depth._loop import looped, passed, unrolled
from worthit.techniques.depth._sources import BAE_2024, BAE_2025
from worthit.techniques.depth._tokens import with_fewer_tokens, with_more_tokens


def apply(case: Case, *, n_loops: int = 3, shares_cache: bool = False) -> Case:
    """Return `case` with its middle layers looped and routed.

    Capacities fall evenly from all tokens to 1 / n_loops of them: (n_loops + 1) / (2 n_loops) on
    average. `shares_cache` reuses the first application's keys and values in the later ones.
    """
    model = case.model
    least = n_loops + 2
    if any(layer.n_loops > 1 for layer, _ in model.layer_kinds):
        raise NotApplicable(
            f"mixture-of-recursions ties layers that are separate; {model.name} loops some already"
        )
    if model.n_layers < least:
        raise NotApplicable(
            f"mixture-of-recursions keeps the first and the last layer and ties {n_loops} between "
            f"them, got {model.n_layers} in all; it needs {least} or more"
        )
    middle = looped(
        model.layers[1:-1],
        n_loops,
        token_fraction=(n_loops + 1) / (2 * n_loops),
        shares=shares_cache,
    )
    routed = with_model(case, replace(model, layers=(model.layers[0], *middle, model.layers[-1])))
    return with_more_tokens(routed, 1 / passed(routed))


def is_present(case: Case) -> bool:
    """Whether looped layers are closed to some tokens."""
    return any(x.n_loops > 1 and x.token_fraction < 1 for x, _ in case.model.layer_kinds)


def remove(case: Case) -> Case:
    """Return `case` with each application as a layer of its own, open to every token."""
    return with_fewer_tokens(unrolled(case), 1 / passed(case))


TECHNIQUE = Technique(
    id="mixture-of-recursions",
    name="Mixture of recursions",
    relieves=("weight-capacity", "matmul-compute", "optimizer-memory"),
    bottleneck=(
        "Every layer stores its own parameters and every token pays for all of them, however easy "
        "it is."
    ),
    apply=apply,
    module="worthit.nn.depth.mixture_of_recursions:MixtureOfRecursions",
    parity=(
        "a loop over rows and steps, on the survivors alone: outputs and gradients "
        "(tests/nn/depth/test_mixture_of_recursions.py)",
    ),
    experiment="worthit.lab.experiments.mixture_of_recursions:EXPERIMENT",
    is_present=is_present,
    remove=remove,
    adoption="retrain",
    cost_of_adoption="Pretraining with routers; no way from a trained model is established.",
    nothing_when=(
        "Decoding is bound by launches or by weights read at every application, or the model has "
        "too few layers to loop."
    ),
    pitfalls=(
        "Choosing tokens per loop by rank looks at later tokens: decoding needs a trained "
        "threshold.",
        "Each loop chooses among the survivors of the one before, not among all tokens.",
        "Batches mix tokens of different depth: without batching by depth the slowest decides.",
        "The released code adds the input twice in its residual; equations and code differ.",
        "Shown up to 1.7B parameters, by one group.",
    ),
    sources=(BAE_2025, BAE_2024),
    evidence=(
        Evidence(
            claim="From 135M to 1.7B at equal training FLOPs, with about a third of the parameters "
            "and three loops: lower validation perplexity than plain and recursive models above "
            "the smallest size, and up to 2.18 times the throughput.",
            source=BAE_2025,
        ),
    ),
    orientation={
        "en": "This joins two ideas: one block of layers is reused instead of storing several, and "
        "a router decides token by token how often. Function words leave after one pass, words "
        "rich in content go round again, and only those that stay add keys and values to the later "
        "passes. Parameters shrink by the number of loops and arithmetic by about a third.",
        "es": "Aquí se unen dos ideas: se reutiliza un bloque de capas en lugar de guardar varios, "
        "y un enrutador decide token a token cuántas veces. Las palabras funcionales salen tras "
        "una pasada, las ricas en contenido dan otra vuelta, y solo las que siguen añaden claves y "
        "valores en las pasadas posteriores. Los parámetros se dividen por el número de vueltas y "
        "la aritmética baja alrededor de un tercio.",
    },
    diagram=(
        "first layer",
        "~middle layers: n of their own => n / n_loops shared ones",
        "+router: which tokens go round again, at each loop",
        "~cache: every token in every layer => only tokens still active",
        "last layer, final norm and head",
    ),
)
