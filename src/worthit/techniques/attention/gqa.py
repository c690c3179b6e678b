"""Grouped-query attention: groups of query heads share one key/value head.

Changes: `n_kv_heads`, from `n_heads` down to `n_heads / group_size`.
Relieves: decode bandwidth of the cache and its capacity, each by up to `group_size`.
Does nothing when: weights dominate the bytes read (small batch, short context).
Costs: uptraining of an existing model; a little quality, see `evidence`.
"""

from __future__ import annotations

from dataclasses import replace

from worthit.errors import NotApplicable
from worthit.spec.case import Case
from worthit.spec.model import Attention
from worthit.techniques._change import attentions, map_attention, require_attention
from worthit.techniques._record import Evidence, Source, Technique

AINSLIE_2023 = Source(
    cite="Ainslie et al. 2023",
    title="GQA: Training Generalized Multi-Query Transformer Models from Multi-Head Checkpoints",
    id="arXiv:2305.13245",
    where="section 2.2, table 1",
)


def apply(case: Case, *, group_size: int = 4) -> Case:
    """Return `case` with `group_size` query heads to each key/value head."""
    found = require_attention(case, "gqa")
    if not any(_can_group(a, group_size) for a in found):
        heads = ", ".join(f"{a.n_heads}/{a.n_kv_heads}" for a in found)
        raise NotApplicable(
            f"gqa needs full heads that group_size={group_size} divides, got query/kv heads "
            f"{heads}; change group_size, or try mla or kv-quantization"
        )
    return map_attention(
        case,
        lambda a: replace(a, n_kv_heads=a.n_heads // group_size) if _can_group(a, group_size) else a,
    )


def is_present(case: Case) -> bool:
    """Whether some attention shares key/value heads, and not all of them (that is mqa)."""
    return any(1 < a.n_kv_heads < a.n_heads for a in attentions(case))


def remove(case: Case) -> Case:
    """Return `case` with one key/value head for each query head."""
    return map_attention(case, lambda a: replace(a, n_kv_heads=a.n_heads))


def _can_group(a: Attention, group_size: int) -> bool:
    return a.n_kv_heads == a.n_heads and a.n_heads % group_size == 0 and a.n_heads > group_size


TECHNIQUE = Technique(
    id="gqa",
    name="Grouped-query attention",
    relieves=("decode-cache", "kv-capacity"),
    bottleneck="Decoding one token reads the keys and values of every head of every past token.",
    apply=apply,
    is_present=is_present,
    remove=remove,
    adoption="finetune",
    cost_of_adoption=(
        "Mean-pool the key/value heads of a trained model, then uptrain with about 5 % of its "
        "pretraining tokens; free when training from scratch."
    ),
    nothing_when=(
        "Weights dominate the bytes of a decode step (few sequences, short context), or the model "
        "spends its time in prefill or training, where queries set the cost."
    ),
    pitfalls=(
        "With more tensor-parallel ranks than key/value heads the heads are replicated and the "
        "saving stops.",
        "Repeating keys and values in memory before the product gives the saving back.",
    ),
    sources=(AINSLIE_2023,),
    evidence=(
        Evidence(
            claim="T5-XXL with 8 groups, uptrained with 5 % of the compute: 47.1 average against "
            "47.2 for multi-head, at close to multi-query speed.",
            source=AINSLIE_2023,
        ),
    ),
    orientation={
        "en": "Multi-head attention stores keys and values for every head, and decoding reads "
        "them all back for every token. Grouped-query attention lets a few query heads share one "
        "key/value head: the cache and its traffic shrink by the group size, while queries keep "
        "their number and so most of the quality. It sits between multi-head (groups of one) and "
        "multi-query attention (one group).",
        "es": "La atención multicabeza guarda claves y valores para cada cabeza, y al decodificar "
        "hay que volver a leerlos todos por cada token. La atención por grupos hace que varias "
        "cabezas de consulta compartan una de clave/valor: la caché y su tráfico se reducen por el "
        "tamaño del grupo y se conserva casi toda la calidad. Queda entre la atención multicabeza "
        "(grupos de uno) y la multiconsulta (un solo grupo).",
    },
    diagram=(
        "x",
        "q_proj: n_heads",
        "~k_proj, v_proj: n_heads => n_heads / group_size",
        "~cache: n_heads => n_heads / group_size heads a token",
        "softmax(q k) v, one k/v head per group",
        "o_proj",
    ),
)
