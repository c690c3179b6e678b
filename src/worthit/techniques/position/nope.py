"""NoPE: attention is told no positions, in all layers or in some.

Changes: the position scheme to none, or the rotation of every `every`-th layer away. Matched:
everything else.
Relieves: quality beyond the trained length: there is no angle or row that was never seen.
Does nothing when: texts stay within the trained length.
Costs: training anew; slower learning; a causal mask is what tells the order.
"""

from __future__ import annotations

from dataclasses import replace

from worthit.errors import NotApplicable
from worthit.spec.case import Case
from worthit.spec.model import Attention, LatentAttention, Layer, Mixer, Position
from worthit.techniques._change import change_layers, map_attention
from worthit.techniques._mixers import Softmax
from worthit.techniques._record import Evidence, Source, Technique
from worthit.techniques.position._positions import (
    KAZEMNEJAD_2023,
    has_free_layers,
    is_kind,
    require_order,
    set_position,
)

HAVIV_2022 = Source(
    cite="Haviv et al. 2022",
    title="Transformer Language Models without Positional Encodings Still Learn Positional "
    "Information",
    id="arXiv:2203.16634",
    where="section 4",
)


def apply(case: Case, *, every: int = 1) -> Case:
    """Return `case` with no positions in every `every`-th attention; 1 means in all of them."""
    require_order(case, "nope")
    if is_present(case):
        raise NotApplicable("nope is in place already: some attention is told no positions")
    if every <= 1:
        return set_position(case, "nope", Position(kind="nope"))
    layers = case.model.layers
    where = [i for i, x in enumerate(layers) if any(isinstance(m, Softmax) for m in x.mixers)]
    chosen = set(where[every - 1 :: every])
    if not chosen or case.model.position.kind != "rope":
        raise NotApplicable(
            f"nope in every {every}th layer takes the rotation out of some layers, got "
            f"{len(where)} layers of attention with positions of kind {case.model.position.kind}; "
            "use every=1"
        )

    def free(index: int, layer: Layer) -> Layer:
        if index not in chosen:
            return layer
        return replace(layer, mixers=tuple(_freed(m) for m in layer.mixers))

    return change_layers(case, free)


def is_present(case: Case) -> bool:
    """Whether some softmax attention is told no positions."""
    return is_kind(case, "nope") or has_free_layers(case)


def remove(case: Case) -> Case:
    """Return `case` with rotary positions wherever attention had none."""
    if case.model.position.kind in ("rope", "nope"):
        position = case.model.position
        return set_position(case, "rope", position if position.kind == "rope" else Position())
    return map_attention(case, lambda a: replace(a, is_position_free=False))


def _freed(mixer: Mixer) -> Mixer:
    if isinstance(mixer, LatentAttention):
        return replace(mixer, qk_rope_head_dim=0)
    return replace(mixer, is_position_free=True) if isinstance(mixer, Attention) else mixer


TECHNIQUE = Technique(
    id="nope",
    name="No positional encoding (NoPE)",
    relieves=("quality",),
    bottleneck="Every explicit scheme ties the model to the positions that it was trained on.",
    apply=apply,
    module="worthit.nn.position.nope:is_told_no_order",
    experiment="worthit.lab.experiments.nope:EXPERIMENT",
    parity=(
        "transformers 5.23, SmolLM3 and Llama 4 with every second layer position-free: logits "
        "and gradients (tests/nn/weights/test_families.py)",
        "transformers 5.23, Granite 4 without any position: logits and gradients "
        "(tests/nn/weights/test_ssm_families.py)",
    ),
    is_present=is_present,
    remove=remove,
    adoption="retrain",
    cost_of_adoption="A training run; in some layers only, as recent models do it, or in all.",
    nothing_when=(
        "Texts stay within the trained length, where explicit positions learn faster. It fits well "
        "beside recurrent layers, which carry the order."
    ),
    pitfalls=(
        "It needs the causal mask: a model that sees both ways would see a bag of words.",
        "Small or briefly trained models are clearly worse than with rotary positions.",
        "Scores flatten as the context grows; models with free layers adjust the temperature.",
    ),
    sources=(KAZEMNEJAD_2023, HAVIV_2022),
    evidence=(
        Evidence(
            claim="On synthetic reasoning tasks decoders without positions generalise to longer "
            "inputs better than with any explicit scheme tried.",
            source=KAZEMNEJAD_2023,
        ),
        Evidence(
            claim="Models of up to 1.3B parameters without positions come close to those with "
            "them, and their layers turn out to encode the absolute position.",
            source=HAVIV_2022,
        ),
    ),
    orientation={
        "en": "A causal decoder can work out where it is: the first token sees only itself, the "
        "second two, and so on. Leaving positions out therefore works, and nothing unfamiliar "
        "happens past the trained length. It learns more slowly, and the gain at length is smaller "
        "in practice than in synthetic tasks, so models use it in a few layers among rotary ones "
        "or beside recurrent layers.",
        "es": "Un decodificador causal puede deducir dónde está: el primer token solo se ve a sí "
        "mismo, el segundo ve dos, y así sucesivamente. Por eso funciona omitir las posiciones, y "
        "más allá de la longitud entrenada no ocurre nada desconocido. Aprende más despacio, y en "
        "la práctica la ventaja en textos largos es menor que en tareas sintéticas, así que los "
        "modelos lo usan en unas pocas capas entre otras rotatorias o junto a capas recurrentes.",
    },
    diagram=(
        "x",
        "q_proj, k_proj, v_proj",
        "-positions: rotation, bias or added vector",
        "causal mask, the only trace of order",
        "softmax(q k) v",
    ),
)
