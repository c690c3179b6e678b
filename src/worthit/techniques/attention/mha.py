"""Multi-head attention: every query head has its own key/value head.

Changes: `n_kv_heads`, up to `n_heads`. Matched: query heads and their width; parameters grow by the
added key/value projections.
Relieves: quality; one head can follow one relation, and heads stop sharing what they may look at.
Does nothing when: the model has a key/value head for every query head already.
Costs: the cache and its traffic grow by the group size that goes away.
"""

from __future__ import annotations

from dataclasses import replace

from worthit.spec.case import Case
from worthit.techniques._change import attentions, map_attention
from worthit.techniques._mixers import require_absent, require_heads
from worthit.techniques._record import Evidence, Technique
from worthit.techniques.attention._sources import AINSLIE_2023, VASWANI_2017


def apply(case: Case) -> Case:
    """Return `case` with one key/value head for each query head."""
    require_heads(
        case, "mha", "every head rebuilds keys and values of its own from the latent already"
    )
    require_absent(is_present(case), "mha", "every query head has its own key/value head")
    return map_attention(case, lambda a: replace(a, n_kv_heads=a.n_heads))


def is_present(case: Case) -> bool:
    """Whether every softmax attention has as many key/value heads as query heads."""
    found = attentions(case)
    return bool(found) and all(a.n_kv_heads == a.n_heads for a in found)


TECHNIQUE = Technique(
    id="mha",
    name="Multi-head attention",
    relieves=("quality",),
    bottleneck="One attention pattern a layer averages different relations into one.",
    apply=apply,
    module="worthit.nn.attention.mha:MultiHeadAttention",
    experiment="worthit.lab.experiments.mha:EXPERIMENT",
    parity=(
        "transformers 5.23 `LlamaAttention`: outputs and gradients "
        "(tests/nn/attention/test_heads.py)",
        "attention head by head, as the paper writes it (tests/nn/attention/test_heads.py)",
    ),
    is_present=is_present,
    adoption="finetune",
    cost_of_adoption=(
        "Copying each shared key/value head to its query heads gives exactly the same function; "
        "only further training makes the copies differ, so that quality can follow."
    ),
    nothing_when=(
        "The model already has a key/value head for each query head, or it is served with a long "
        "context, where the larger cache costs more than the few tenths of a point it buys."
    ),
    pitfalls=(
        "A causal mask built for equal lengths is aligned to the wrong corner when one query meets "
        "many cached keys: the new token then sees only the first one.",
        "A row that is masked everywhere gives NaN or a uniform average, depending on the kernel.",
    ),
    sources=(VASWANI_2017, AINSLIE_2023),
    evidence=(
        Evidence(
            claim="In the translation model's ablation a single head is 0.9 BLEU below the best "
            "number of heads, and too many narrow heads lose quality too.",
            source=VASWANI_2017,
        ),
        Evidence(
            claim="T5-XXL averages 47.2 with full heads, 47.1 with 8 groups and 46.6 with one "
            "shared head: what full heads buy over groups is small.",
            source=AINSLIE_2023,
        ),
    ),
    orientation={
        "en": "Each head projects queries, keys and values of its own and attends on its own, so "
        "that one layer can follow several relations at once. It is the baseline that any cheaper "
        "attention is compared with: the most expressive, and the one whose cache is largest, two "
        "vectors of full width for every token and layer.",
        "es": "Cada cabeza proyecta sus propias consultas, claves y valores y atiende por su "
        "cuenta, de modo que una sola capa puede seguir varias relaciones a la vez. Es la "
        "referencia con la que se compara toda atención más barata: la más expresiva y también la "
        "de caché más grande, dos vectores de ancho completo por token y por capa.",
    },
    diagram=(
        "x",
        "q_proj: n_heads",
        "~k_proj, v_proj: n_kv_heads => n_heads",
        "~cache: n_kv_heads => n_heads heads a token",
        "softmax(q k) v, each head its own",
        "o_proj",
    ),
)
