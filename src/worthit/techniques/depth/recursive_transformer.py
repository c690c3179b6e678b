"""Recursive transformer: a block of layers is applied several times with the same weights.

Changes: fewer layers, each with `n_loops` applications; the depth that a token passes stays.
Relieves: memory of weights, gradients and optimizer states, by up to `n_loops`.
Does nothing when: what binds is arithmetic, cache or reading weights (they are read every time).
Costs: retraining; quality below the untied model of the same depth.

Held equal: depth, width and FLOPs a token. Layers are kept at even distances. Training needs more
tokens to the same loss: none more if depth is all that counts, as many as Chinchilla's law asks of
a model of the parameters that are left if they are.
"""

from __future__ import annotations

from dataclasses import replace

from worthit.cost.params import count_params
from worthit.errors import NotApplicable
from worthit.spec.case import Case
from worthit.techniques._change import with_model
from worthit.techniques._record import Evidence, Technique
from worthit.techniques.depth._loop import looped, unrolled
from worthit.techniques.depth._sources import BAE_2024, DEHGHANI_2018
from worthit.techniques.depth._tokens import (
    HOFFMANN_2022,
    tokens_for_fewer_params,
    with_fewer_tokens,
    with_more_tokens,
)

# More than this many times the tokens is no training run that anybody would start.
MOST_TOKENS = 20.0


def apply(case: Case, *, n_loops: int = 2) -> Case:
    """Return `case` with its layers tied in groups of `n_loops`."""
    model = case.model
    if any(layer.n_loops > 1 for layer, _ in model.layer_kinds):
        raise NotApplicable(
            f"recursive-transformer ties layers that are separate; {model.name} loops some already"
        )
    if model.n_layers < n_loops:
        raise NotApplicable(
            f"recursive-transformer ties {n_loops} layers to one, got {model.n_layers} in all; it "
            f"needs {n_loops} or more"
        )
    tied = with_model(case, replace(model, layers=looped(model.layers, n_loops)))
    most = _most_tokens(case, tied)
    if most > MOST_TOKENS:
        raise NotApplicable(
            f"recursive-transformer with {n_loops} loops leaves 1 / {_ratio(case, tied):.3g} of "
            f"the parameters of {model.name}, which no number of tokens makes up for; use fewer "
            "loops"
        )
    return with_more_tokens(tied, most)


def _ratio(untied: Case, tied: Case) -> float:
    return count_params(untied.model).total / count_params(tied.model).total


def _most_tokens(untied: Case, tied: Case) -> float:
    return tokens_for_fewer_params(_ratio(untied, tied))


def is_present(case: Case) -> bool:
    """Whether layers are looped, for every token and a fixed number of times."""
    return not case.model.is_equilibrium and any(
        x.n_loops > 1 and x.token_fraction == 1 for x, _ in case.model.layer_kinds
    )


def remove(case: Case) -> Case:
    """Return `case` with each application as a layer of its own."""
    untied = unrolled(case)
    return with_fewer_tokens(untied, _most_tokens(untied, case))


TECHNIQUE = Technique(
    id="recursive-transformer",
    name="Recursive (looped) transformer",
    relieves=("weight-capacity", "optimizer-memory"),
    bottleneck="Every layer stores parameters of its own, though neighbours compute alike.",
    apply=apply,
    module="worthit.nn.depth.recursive_transformer:Recursive",
    parity=(
        "the plain model with a copy of the layer for each loop: outputs and gradients "
        "(tests/nn/depth/test_recursive_transformer.py)",
    ),
    experiment="worthit.lab.experiments.recursive_transformer:EXPERIMENT",
    is_present=is_present,
    remove=remove,
    adoption="retrain",
    cost_of_adoption=(
        "Training from scratch, or tying a trained model and training on tens of billions of "
        "tokens; low-rank differences between loops recover part of the loss."
    ),
    nothing_when=(
        "Arithmetic, the cache or the reading of weights binds: depth, and with it all three, "
        "stays as it was."
    ),
    pitfalls=(
        "Each application has its own keys and values: the cache does not shrink.",
        "Weights are read once an application unless the block fits a cache on the chip, so "
        "decoding gets no faster by itself.",
        "Loops need norms or input injection to stay stable, more so beyond the trained number.",
        "At equal parameters it is slower than a plain model, at equal FLOPs a little worse.",
    ),
    sources=(BAE_2024, DEHGHANI_2018, HOFFMANN_2022),
    evidence=(
        Evidence(
            claim="Gemma 2B tied to half its layers and trained on, with low-rank differences, "
            "outperforms plain models of about its size (TinyLlama 1.1B, Pythia 1B) and comes "
            "close to the original; batching tokens by loop could give 2 to 3 times the "
            "throughput.",
            source=BAE_2024,
        ),
    ),
    orientation={
        "en": "A recursive transformer goes through the same block of layers two or three times "
        "instead of having as many blocks. Parameters, and all that training keeps for them, "
        "shrink by that factor while depth and arithmetic stay. It is a way to fit, not a way to "
        "be faster: each pass still computes, caches and mostly re-reads everything.",
        "es": "Un transformador recursivo recorre dos o tres veces el mismo bloque de capas en "
        "lugar de tener otros tantos bloques. Los parámetros, y todo lo que el entrenamiento "
        "guarda por ellos, se dividen por ese factor, mientras que la profundidad y la aritmética "
        "no cambian. Es una manera de que quepa, no de ir más rápido: cada pasada calcula, guarda "
        "en caché y casi siempre vuelve a leer todo.",
    },
    diagram=(
        "x",
        "~layers: n of their own => n / n_loops, each applied n_loops times",
        "-parameters, gradients and optimizer states of the others",
        "cache: one entry an application",
        "final norm and head",
    ),
)
