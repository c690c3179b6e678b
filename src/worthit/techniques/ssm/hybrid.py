"""Hybrid: a few layers of attention among many of fixed state.

Changes: all softmax attention but one layer in `attention_every` into a recurrent mixer of inner
width `2 * d_model`, the feed-forwards staying where they are (Jamba's layout, one in eight).
Matched: parameters of each layer, by the width of its dense feed-forward; beside a mixture of
experts they grow a little.
Relieves: KV-cache capacity and traffic by about `attention_every`, and attention compute.
Does nothing when: contexts are short: below about a thousand tokens the states are the larger.
Costs: training anew; two kinds of memory to manage; prefix caching of states.
"""

from __future__ import annotations

from math import ceil, gcd
from typing import Literal

from worthit.errors import NotApplicable
from worthit.spec.case import Case
from worthit.spec.model import Layer, LinearAttention, Mamba, Mamba2, Mixer, ModelSpec
from worthit.techniques._change import change_layers
from worthit.techniques._mixers import (
    Recurrent,
    Softmax,
    require_absent,
    require_softmax,
    to_attention,
    with_ffn_of_equal_size,
)
from worthit.techniques._record import Evidence, Source, Technique
from worthit.techniques.ssm._sources import WALEFFE_2024

LIEBER_2024 = Source(
    cite="Lieber et al. 2024",
    title="Jamba: A Hybrid Transformer-Mamba Language Model",
    id="arXiv:2403.19887",
    where="sections 2 and 6",
)
# Jamba's attention is the fifth layer of each block of eight.
ATTENTION_OFFSET = 4
MAMBA2_HEAD = 64
DELTA_HEAD = 128

Kind = Literal["mamba", "mamba2", "gated-delta"]


def apply(case: Case, *, attention_every: int = 8, kind: Kind = "mamba2") -> Case:
    """Return `case` with one attention in `attention_every` kept and the rest recurrent.

    `kind` is the recurrent mixer: Jamba took Mamba, most since then Mamba-2 or gated delta rules.
    A stack shorter than `attention_every` keeps one layer of attention.
    """
    require_softmax(case, "hybrid")
    require_absent(is_present(case), "hybrid", "attention and fixed-state layers are mixed")
    layers = case.model.layers
    where = [i for i, x in enumerate(layers) if any(isinstance(m, Softmax) for m in x.mixers)]
    if attention_every < 2 or len(where) < 2:
        raise NotApplicable(
            "hybrid keeps some layers of attention and replaces others, so it needs two or more "
            f"and attention_every of 2 or more, got {len(where)} and {attention_every}; for all of "
            "them take mamba2"
        )
    offset = min(ATTENTION_OFFSET, attention_every - 1, len(where) - 1)
    kept = set(where[offset::attention_every])
    mixer = _recurrent(case.model, kind)

    def change(index: int, layer: Layer) -> Layer:
        if index in kept or index not in where:
            return layer
        mixers = tuple(mixer if isinstance(m, Softmax) else m for m in layer.mixers)
        return with_ffn_of_equal_size(layer, mixers, case.model.d_model)

    return change_layers(case, change)


def is_present(case: Case) -> bool:
    """Whether softmax attention and fixed-state mixers stand in the same model."""
    mixers = case.model.mixers
    return any(isinstance(m, Softmax) for m in mixers) and any(
        isinstance(m, Recurrent) for m in mixers
    )


def remove(case: Case) -> Case:
    """Return `case` with the model's own attention for every fixed-state mixer."""
    return to_attention(case, lambda m: isinstance(m, Recurrent))


def _recurrent(model: ModelSpec, kind: Kind) -> Mixer:
    """The recurrent mixer of inner width `2 * d_model`."""
    inner = 2 * model.d_model
    if kind == "mamba":
        return Mamba(d_inner=inner, d_state=16, d_conv=4, dt_rank=ceil(model.d_model / 16))
    if kind == "mamba2":
        head_dim = gcd(inner, MAMBA2_HEAD)
        return Mamba2(
            n_heads=inner // head_dim, head_dim=head_dim, d_state=128, n_groups=1, d_conv=4
        )
    if kind == "gated-delta":
        # Values twice as wide as keys, as in Qwen3-Next.
        key_dim = gcd(model.d_model, DELTA_HEAD)
        n_heads = model.d_model // key_dim
        return LinearAttention(
            kind="gated-delta",
            n_key_heads=n_heads,
            n_value_heads=2 * n_heads,
            key_dim=key_dim,
            value_dim=key_dim,
            d_conv=4,
        )
    raise NotApplicable(
        f"hybrid mixes attention with 'mamba', 'mamba2' or 'gated-delta', got kind={kind!r}"
    )


TECHNIQUE = Technique(
    id="hybrid",
    name="Hybrid of attention and state-space layers",
    relieves=("kv-capacity", "decode-cache", "attention-compute"),
    bottleneck="The cache of long contexts fills the memory, and models without any attention "
    "cannot recall them.",
    apply=apply,
    module="worthit.nn.decoder:Decoder",
    parity=(
        "transformers 5.23, whole models of hybrid families (Jamba, Bamba, Falcon-H1 and "
        "others): logits, gradients, greedy text (tests/nn/weights/test_ssm_families.py)",
    ),
    experiment="worthit.lab.experiments.hybrid:EXPERIMENT",
    is_present=is_present,
    remove=remove,
    adoption="retrain",
    cost_of_adoption=(
        "A pretraining run; converting a trained transformer by distillation has been shown and "
        "is itself a long run."
    ),
    nothing_when=(
        "Sequences stay below 512 to 1,024 tokens, where the states are larger than the cache "
        "they replace, or decoding reads mostly weights."
    ),
    pitfalls=(
        "A server needs two allocators: pages for the cache, slots for the states.",
        "A state cannot be cut at an earlier token: prefix caching and speculative decoding must "
        "keep copies of it.",
        "States are usually kept in fp32, which doubles them against the cache's format.",
        "With too few attention layers in-context learning breaks before perplexity shows it.",
    ),
    sources=(LIEBER_2024, WALEFFE_2024),
    evidence=(
        Evidence(
            claim="One attention layer in four and one in eight perform alike at 1.3B parameters, "
            "and both beat pure attention and pure Mamba.",
            source=LIEBER_2024,
        ),
        Evidence(
            claim="At 8B parameters and the same data a Mamba-2 hybrid with 7 % of attention "
            "layers exceeds the transformer on all 12 standard tasks, by 2.65 points on average.",
            source=WALEFFE_2024,
        ),
    ),
    orientation={
        "en": "Fixed-state layers are cheap and forgetful, attention is exact and dear. A hybrid "
        "keeps one layer of attention in eight, which is enough to look things up, and lets the "
        "others carry a state of fixed size. The cache of a long context shrinks about eightfold, "
        "quality matches or beats either parent, and often no position encoding is needed. Below "
        "about a thousand tokens it costs more memory than it saves.",
        "es": "Las capas de estado fijo son baratas y olvidadizas; la atención es exacta y cara. "
        "Un híbrido conserva una capa de atención de cada ocho, suficiente para consultar lo "
        "leído, y deja que las demás lleven un estado de tamaño fijo. La caché de un contexto "
        "largo se reduce unas ocho veces, la calidad iguala o supera a la de ambos progenitores y "
        "a menudo sobra la codificación de posiciones. Por debajo de unos mil tokens gasta más "
        "memoria de la que ahorra.",
    },
    diagram=(
        "x",
        "one layer in eight: attention, feed-forward",
        "~seven layers in eight: attention => state-space mixer",
        "~cache: all layers => one layer in eight, and fixed states",
        "~feed-forward of those layers: d_ff => narrower, so that parameters stay equal",
        "y",
    ),
)
