"""Mixture of depths: in every other layer a router lets only some tokens through.

Changes: `token_fraction` of every other layer, from 1 to `capacity`.
Relieves: arithmetic spent alike on easy and hard tokens.
Does nothing when: the model is so shallow that no layer can be skipped.
Costs: pretraining with routers; a causal predictor of their choice for decoding.

Held equal: parameters (and one vector of `d_model` a routed layer more). Quality is not: the paper
matches it at equal FLOPs, so training needs between as many tokens and as many FLOPs as before.
"""

from __future__ import annotations

from dataclasses import replace

from worthit.errors import NotApplicable
from worthit.spec.case import Case
from worthit.spec.model import Layer
from worthit.techniques._change import change_layers
from worthit.techniques._record import Evidence, Source, Technique
from worthit.techniques.depth._loop import passed
from worthit.techniques.depth._sources import RAPOSO_2024
from worthit.techniques.depth._tokens import with_fewer_tokens, with_more_tokens

HE_2024 = Source(
    cite="He et al. 2024",
    title="Router-Tuning: A Simple and Effective Approach for Enabling Dynamic-Depth in "
    "Transformers",
    id="arXiv:2410.13184",
)


def apply(case: Case, *, capacity: float = 0.125, every: int = 2) -> Case:
    """Return `case` with one of `every` layers open to the share `capacity` of the tokens."""
    if case.model.n_layers < every:
        raise NotApplicable(
            f"mixture-of-depths routes one of every {every} layers, got {case.model.n_layers} in "
            f"all; it needs {every} or more"
        )

    def route(index: int, layer: Layer) -> Layer:
        if index % every != every - 1 or layer.n_loops > 1:
            return layer
        return replace(layer, token_fraction=capacity)

    routed = change_layers(case, route)
    if routed == case:
        raise NotApplicable(
            f"mixture-of-depths routes layers that run once for every token; {case.model.name} "
            "loops or routes them already"
        )
    return with_more_tokens(routed, 1 / passed(routed))


def is_present(case: Case) -> bool:
    """Whether some layer that runs once is closed to some tokens."""
    return any(x.token_fraction < 1 and x.n_loops == 1 for x, _ in case.model.layer_kinds)


def remove(case: Case) -> Case:
    """Return `case` with such layers open to all tokens."""
    open_to_all = change_layers(
        case, lambda _, x: replace(x, token_fraction=1.0) if x.n_loops == 1 else x
    )
    return with_fewer_tokens(open_to_all, 1 / passed(case))


TECHNIQUE = Technique(
    id="mixture-of-depths",
    name="Mixture of depths",
    relieves=("matmul-compute", "attention-compute"),
    bottleneck="Every token pays for every layer, however easy it is to predict.",
    apply=apply,
    module="worthit.nn.depth.mixture_of_depths:MixtureOfDepths",
    parity=(
        "a loop over rows, the chosen tokens alone, from equation 1: outputs and gradients "
        "(tests/nn/depth/test_mixture_of_depths.py)",
    ),
    experiment="worthit.lab.experiments.mixture_of_depths:EXPERIMENT",
    is_present=is_present,
    remove=remove,
    adoption="retrain",
    cost_of_adoption=(
        "Pretraining with routers; tuning routers alone on a frozen model keeps far more tokens "
        "and gains about a fifth."
    ),
    nothing_when=(
        "Decoding few sequences is bound by weights that some token in the batch needs anyway, or "
        "by launches; or the model has one layer."
    ),
    pitfalls=(
        "Choosing the best tokens of a sequence looks at later ones: decoding needs a predictor of "
        "the choice, trained beside it.",
        "Keep the chosen tokens in order and with their original positions.",
        "The router's weight must multiply the block's output, or it gets no gradient.",
        "Caches of routed layers have holes: lengths differ by layer.",
        "At equal FLOPs expect parity, not a win, on small models.",
    ),
    sources=(RAPOSO_2024, HE_2024),
    evidence=(
        Evidence(
            claim="One eighth of the tokens in every other block matches baselines trained with "
            "the same FLOPs, and steps up to 50 % faster when sampling.",
            source=RAPOSO_2024,
        ),
        Evidence(
            claim="Tuning only routers on an existing model: 21 % faster at 0.2 % lower scores.",
            source=HE_2024,
        ),
    ),
    orientation={
        "en": "Not every word needs the same thought. In a mixture of depths a small router before "
        "every other layer picks the eighth of the tokens that gain most from it; the others pass "
        "by on the residual stream. Compute per token falls by almost half and stays predictable, "
        "because the number chosen is fixed. The catch is decoding: which tokens are chosen "
        "depended on the future, so a predictor has to stand in.",
        "es": "No todas las palabras exigen la misma reflexión. En una mezcla de profundidades, "
        "un pequeño enrutador ante una de cada dos capas elige la octava parte de los tokens que "
        "más la aprovechan; los demás siguen por la conexión residual. El cálculo por token baja "
        "casi a la mitad y es previsible, porque el número de elegidos es fijo. La dificultad está "
        "en decodificar: la elección dependía del futuro y hay que sustituirla por un predictor.",
    },
    diagram=(
        "x",
        "a layer for every token",
        "+router: one score a token",
        "~next layer: every token => the best eighth of them",
        "+others pass by on the residual stream",
        "x + score * f(x) for the chosen",
    ),
)
