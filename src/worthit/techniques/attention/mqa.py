"""Multi-query attention: all query heads share one key/value head.

Changes: `n_kv_heads`, down to 1. Matched: query heads and their width; parameters shrink by the
key/value projections that go away (the paper widens the feed-forward to compensate; this does not,
so that the same trained model is compared).
Relieves: decode bandwidth of the cache and its capacity, each by up to `n_heads`.
Does nothing when: weights dominate the bytes read (small batch, short context).
Costs: quality and some training stability; uptraining of an existing model.
"""

from __future__ import annotations

from dataclasses import replace

from worthit.errors import NotApplicable
from worthit.spec.case import Case
from worthit.techniques._change import attentions, map_attention
from worthit.techniques._mixers import require_heads
from worthit.techniques._record import Evidence, Technique
from worthit.techniques.attention._sources import AINSLIE_2023, SHAZEER_2019


def apply(case: Case) -> Case:
    """Return `case` with one key/value head in every softmax attention."""
    found = require_heads(
        case,
        "mqa",
        "one vector a token is cached for all heads together, so none are left to merge",
    )
    if all(a.n_kv_heads == 1 for a in found):
        raise NotApplicable(
            "mqa needs more than one key/value head to merge, and this model has one already; "
            "narrow the cached numbers instead, see kv-quantization"
        )
    return map_attention(case, lambda a: replace(a, n_kv_heads=1))


def is_present(case: Case) -> bool:
    """Whether some attention has several query heads on a single key/value head."""
    return any(a.n_kv_heads == 1 < a.n_heads for a in attentions(case))


def remove(case: Case) -> Case:
    """Return `case` with a key/value head for each query head where they all shared one."""
    return map_attention(
        case, lambda a: replace(a, n_kv_heads=a.n_heads) if a.n_kv_heads == 1 else a
    )


TECHNIQUE = Technique(
    id="mqa",
    name="Multi-query attention",
    relieves=("decode-cache", "kv-capacity"),
    bottleneck="Decoding is bound by reloading every head's keys and values for each new token.",
    apply=apply,
    module="worthit.nn.attention.mqa:MultiQueryAttention",
    experiment="worthit.lab.experiments.mqa:EXPERIMENT",
    parity=(
        "transformers 5.23 `GPTBigCodeAttention`: outputs (tests/nn/attention/test_heads.py)",
        "transformers 5.23 `LlamaAttention` with one key/value head: outputs and gradients "
        "(tests/nn/attention/test_heads.py)",
    ),
    is_present=is_present,
    remove=remove,
    adoption="finetune",
    cost_of_adoption=(
        "Mean-pool all key/value heads of a trained model into one, then uptrain with about 5 % of "
        "its pretraining tokens; free when training from scratch."
    ),
    nothing_when=(
        "Weights dominate the bytes of a decode step, the model runs on so many tensor-parallel "
        "ranks that the one head is copied to all of them, or the time goes to prefill or training."
    ),
    pitfalls=(
        "A single key/value head cannot be split: every tensor-parallel rank keeps the whole "
        "cache, and the saving per device stops growing.",
        "Fused query/key/value layouts differ between models; slicing one as if it were another "
        "loads without an error and computes nonsense.",
        "Uptraining is less stable than with groups, above all on long inputs.",
    ),
    sources=(SHAZEER_2019, AINSLIE_2023),
    evidence=(
        Evidence(
            claim="T5-XXL uptrained with 5 % of the compute averages 46.6 with one shared head, "
            "against 47.2 with full heads and 47.1 with 8 groups.",
            source=AINSLIE_2023,
        ),
        Evidence(
            claim="English-German translation at equal parameters: 26.5 BLEU on the development "
            "set against 26.7, with decoding of a token about twelve times cheaper.",
            source=SHAZEER_2019,
        ),
    ),
    orientation={
        "en": "All query heads read the same keys and values, so the cache shrinks by the number "
        "of heads. It is the largest saving that sharing alone can give, and it goes one step "
        "further than most models need: the quality lost is more than with a few groups, and once "
        "the model is split over devices each of them keeps the one head anyway.",
        "es": "Todas las cabezas de consulta leen las mismas claves y los mismos valores, así que "
        "la caché se reduce por el número de cabezas. Es el mayor ahorro que puede dar el mero "
        "hecho de compartir y va un paso más allá de lo que casi todos los modelos necesitan: se "
        "pierde más calidad que con unos pocos grupos y, al repartir el modelo entre "
        "dispositivos, cada uno guarda de todos modos esa única cabeza.",
    },
    diagram=(
        "x",
        "q_proj: n_heads",
        "~k_proj, v_proj: n_kv_heads => 1",
        "~cache: n_kv_heads => 1 head a token",
        "softmax(q k) v, one k/v head for all",
        "o_proj",
    ),
)
