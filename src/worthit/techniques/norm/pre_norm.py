"""Pre-norm: sublayers read a normalised copy, and the residual stream itself is left alone.

Changes: `placement` of every layer's norms to `pre`, and a norm before the output head. Matched:
everything else; parameters move by the norms that come and go.
Relieves: stability: gradients reach the first layers without warm-up tricks.
Does nothing when: the stack is shallow, or trained already.
Costs: training anew; deep layers contribute less, as the stream grows.
"""

from __future__ import annotations

from dataclasses import replace

from worthit.spec.case import Case
from worthit.techniques._change import with_model
from worthit.techniques._mixers import require_absent
from worthit.techniques._record import Evidence, Source, Technique

XIONG_2020 = Source(
    cite="Xiong et al. 2020",
    title="On Layer Normalization in the Transformer Architecture",
    id="arXiv:2002.04745",
    where="section 3",
)


def apply(case: Case) -> Case:
    """Return `case` with norms before the sublayers, and one at the end."""
    require_absent(is_present(case), "pre-norm", "every sublayer reads a normalised input")
    model = case.model.map_layers(lambda layer: replace(layer, placement="pre"))
    return with_model(case, replace(model, has_final_norm=True))


def is_present(case: Case) -> bool:
    """Whether norms stand before the sublayers in every layer, and nowhere else."""
    return all(layer.placement == "pre" for layer, _ in case.model.layer_kinds)


def remove(case: Case) -> Case:
    """Return `case` with norms after each addition, as in 2017, and none at the end."""
    model = case.model.map_layers(lambda layer: replace(layer, placement="post"))
    return with_model(case, replace(model, has_final_norm=False))


TECHNIQUE = Technique(
    id="pre-norm",
    name="Pre-normalisation",
    relieves=("stability",),
    bottleneck="With norms after each addition the gradients near the output are large and those "
    "near the input vanish, so deep stacks need a long warm-up.",
    apply=apply,
    module="worthit.nn.decoder:Block",
    parity=(
        "each placement written out, around a loop over queries (tests/nn/test_decoder.py)",
        "transformers 5.23, whole models of many families: logits and gradients "
        "(tests/nn/weights/test_families.py)",
    ),
    experiment="worthit.lab.experiments.pre_norm:EXPERIMENT",
    is_present=is_present,
    remove=remove,
    adoption="retrain",
    cost_of_adoption="A training run; the layers' weights do not carry over.",
    nothing_when="The stack has a few layers only, or training is done and stable.",
    pitfalls=(
        "The stream's variance grows with depth, and late layers end up close to the identity.",
        "The norm before the output head must not be forgotten.",
        "Post-norm can end slightly better where it trains at all; norms on both sides are a "
        "compromise.",
    ),
    sources=(XIONG_2020,),
    evidence=(
        Evidence(
            claim="With norms in front the transformer trains without a warm-up phase and reaches "
            "comparable results in less time.",
            source=XIONG_2020,
        ),
    ),
    orientation={
        "en": "In the first transformers the norm followed each addition and so stood on the main "
        "road; gradients had to pass through every one. Moved in front of each sublayer, it leaves "
        "the road free: the input reaches the output by additions alone. Deep stacks then train "
        "without ceremony. It costs nothing to run, and a shallow model does not notice.",
        "es": "En los primeros transformadores la norma seguía a cada suma y quedaba así en el "
        "camino principal; los gradientes tenían que atravesarlas todas. Puesta delante de cada "
        "subcapa, deja libre el camino: la entrada llega a la salida solo mediante sumas. Las "
        "pilas profundas se entrenan entonces sin ceremonias. No cuesta nada al ejecutar, y un "
        "modelo poco profundo ni lo nota.",
    },
    diagram=(
        "x",
        "+norm",
        "attention or feed-forward",
        "add to x",
        "-norm after the addition",
        "+one norm before the output head",
    ),
)
