"""Grouped-query attention: groups of query heads share one key/value head.

Changes: `n_kv_heads`, from `n_heads` down to `n_heads / group_size`. Matched: query heads and their
width; parameters shrink by the key/value projections that go away.
Relieves: decode bandwidth of the cache and its capacity, each by up to `group_size`.
Does nothing when: weights dominate the bytes read (small batch, short context).
Costs: uptraining of an existing model; a little quality, see `evidence`.
"""

from __future__ import annotations

from dataclasses import replace

from worthit.errors import NotApplicable
from worthit.spec.case import Case
from worthit.spec.model import Attention
from worthit.techniques._change import attentions, map_attention
from worthit.techniques._mixers import require_heads
from worthit.techniques._record import Evidence, Technique
from worthit.techniques.attention._sources import AINSLIE_2023, SHAZEER_2019

# Llama 3 8B and most dense models of its size share each key/value head among four query heads.
USUAL_GROUP = 4


def apply(case: Case, *, group_size: int | None = None) -> Case:
    """Return `case` with `group_size` query heads to each key/value head.

    Without `group_size` each attention takes four, or the nearest size below four (then above) that
    divides its heads and leaves two key/value heads or more. A `group_size` of 1 changes nothing
    and one of `n_heads` is multi-query attention.
    """
    found = require_heads(
        case,
        "gqa",
        "one vector a token is cached for all heads together, so none are left to group",
    )
    sizes = {a: _size(a, group_size) for a in found if a.n_kv_heads == a.n_heads}
    if not any(sizes.values()):
        heads = ", ".join(f"{a.n_heads}/{a.n_kv_heads}" for a in found)
        wanted = "some group size" if group_size is None else f"group_size={group_size}"
        raise NotApplicable(
            f"gqa needs full heads that {wanted} divides into two groups or more, got query/kv "
            f"heads {heads}; change group_size, or try mla or kv-quantization"
        )

    def share(a: Attention) -> Attention:
        size = sizes.get(a)
        return replace(a, n_kv_heads=a.n_heads // size) if size else a

    return map_attention(case, share)


def is_present(case: Case) -> bool:
    """Whether some attention shares key/value heads, and not all of them (that is mqa)."""
    return any(1 < a.n_kv_heads < a.n_heads for a in attentions(case))


def remove(case: Case) -> Case:
    """Return `case` with one key/value head for each query head where groups shared one."""
    return map_attention(
        case,
        lambda a: replace(a, n_kv_heads=a.n_heads) if 1 < a.n_kv_heads < a.n_heads else a,
    )


def _size(a: Attention, wanted: int | None) -> int | None:
    """Group size for one attention with full heads, or None when there is none."""
    if wanted is not None:
        return wanted if wanted > 0 and a.n_heads % wanted == 0 else None
    sizes = [n for n in range(2, a.n_heads // 2 + 1) if a.n_heads % n == 0]
    return min(sizes, key=lambda n: (n > USUAL_GROUP, abs(n - USUAL_GROUP)), default=None)


TECHNIQUE = Technique(
    id="gqa",
    name="Grouped-query attention",
    relieves=("decode-cache", "kv-capacity"),
    bottleneck="Decoding one token reads the keys and values of every head of every past token.",
    apply=apply,
    module="worthit.nn.attention.gqa:GroupedQueryAttention",
    experiment="worthit.lab.experiments.gqa:EXPERIMENT",
    parity=(
        "transformers 5.23 `LlamaAttention`, fewer key/value heads than query heads: outputs and "
        "gradients (tests/nn/attention/test_heads.py)",
        "a loop over queries and keys: the attention underneath (tests/nn/attention/test_core.py)",
        "transformers 5.23, whole models of many families: logits, gradients, greedy text from a "
        "padded batch (tests/nn/weights/test_families.py)",
    ),
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
        "Neighbouring query heads share a head: tiling the key/value heads where they should be "
        "interleaved runs without an error and pairs the wrong ones.",
    ),
    sources=(AINSLIE_2023, SHAZEER_2019),
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
