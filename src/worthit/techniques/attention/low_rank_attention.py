"""Low-rank attention (Linformer): the keys of the whole sequence are projected to a fixed few.

Changes: `low_rank` of every full softmax attention, with one projection of `context_len x rank`
shared by all heads, keys, values and layers (the paper's leanest sharing). Matched: heads and
widths; parameters grow by that one matrix.
Relieves: the quadratic attention compute and the score matrix, when a whole text is read at once.
Does nothing when: tokens are generated one by one; a fixed projection mixes in those to come.
Costs: training anew, a fixed maximum length, and no causal mask.
"""

from __future__ import annotations

from dataclasses import replace

from worthit.errors import NotApplicable
from worthit.spec.case import Case, Serving
from worthit.techniques._change import attentions, map_attention, with_model
from worthit.techniques._mixers import require_absent, require_heads
from worthit.techniques._record import Evidence, Source, Technique

WANG_2020 = Source(
    cite="Wang et al. 2020",
    title="Linformer: Self-Attention with Linear Complexity",
    id="arXiv:2006.04768",
    where="section 4",
)
EXTRA = "low-rank sequence projection"


def apply(case: Case, *, rank: int = 256) -> Case:
    """Return `case` with keys and values of every full attention projected to `rank` rows.

    Only where a text is read whole and nothing is generated after it (an output of one token, as in
    scoring or classifying): the projection is over the sequence, so it cannot be causal.
    """
    found = require_heads(
        case, "low-rank-attention", "its keys are compressed a token, not along the sequence"
    )
    require_absent(is_present(case), "low-rank-attention", "keys are projected along the sequence")
    if not isinstance(case.workload, Serving) or case.workload.output > 1:
        doing = (
            f"generates {case.workload.output} tokens"
            if isinstance(case.workload, Serving)
            else "is trained to predict each next token"
        )
        raise NotApplicable(
            "low-rank-attention projects the keys of the whole sequence, future tokens included, "
            f"and this model {doing}; it fits where a text is only read (output of 1 token), and "
            "causal models take sliding-window or linear-attention"
        )
    if all(a.reach is not None for a in found):
        raise NotApplicable(
            "low-rank-attention shortens full attention, and every attention here is local already"
        )
    model = case.model
    size = model.context_len * rank
    changed = map_attention(
        case, lambda a: replace(a, low_rank=rank) if a.reach is None else a
    ).model
    extra = f"{model.extra}; {EXTRA}" if model.extra else EXTRA
    return with_model(
        case, replace(changed, n_extra_params=model.n_extra_params + size, extra=extra)
    )


def is_present(case: Case) -> bool:
    """Whether some attention projects its keys along the sequence."""
    return any(a.low_rank is not None for a in attentions(case))


def remove(case: Case) -> Case:
    """Return `case` with full attention and without the projection."""
    model = case.model
    rank = max((a.low_rank or 0 for a in attentions(case)), default=0)
    size = model.context_len * rank if EXTRA in model.extra else 0
    changed = map_attention(case, lambda a: replace(a, low_rank=None)).model
    return with_model(
        case,
        replace(
            changed,
            n_extra_params=model.n_extra_params - size,
            extra=model.extra.removesuffix(EXTRA).removesuffix("; "),
        ),
    )


TECHNIQUE = Technique(
    id="low-rank-attention",
    name="Low-rank attention (Linformer)",
    relieves=("attention-compute", "attention-traffic"),
    bottleneck="The score matrix of a long text has as many rows as columns, and its rank is low.",
    apply=apply,
    module="worthit.nn.attention.low_rank_attention:LowRankAttention",
    experiment="worthit.lab.experiments.low_rank_attention:EXPERIMENT",
    parity=(
        "equation 7 of Linformer written out; at full rank torch's "
        "`scaled_dot_product_attention` (tests/nn/attention/test_low_rank_attention.py)",
        "torch's `scaled_dot_product_attention` for Performer: the error falls as the root of "
        "the features (tests/nn/attention/test_low_rank_attention.py)",
    ),
    is_present=is_present,
    remove=remove,
    adoption="retrain",
    cost_of_adoption=(
        "A pretraining run of a model that reads whole texts; the projection is tied to one "
        "maximum length."
    ),
    nothing_when=(
        "Text is generated: the projection mixes future tokens into every key, so a decoder cannot "
        "use it. Nor does it help when the text is not much longer than the rank."
    ),
    pitfalls=(
        "Used in a causal model it leaks the answer: training loss looks excellent and generation "
        "fails.",
        "The projection has one column a position: texts beyond its length cannot be read.",
        "Padding must be projected away, or it becomes part of every key.",
    ),
    sources=(WANG_2020,),
    evidence=(
        Evidence(
            claim="Masked-language-model pretraining with projections of rank 128 to 256 for texts "
            "of 512 to 1024 tokens comes close to the full model's perplexity, and fine-tuned "
            "accuracy on four classification tasks stays on par.",
            source=replace(WANG_2020, where="section 5, figure 3 and table 2"),
        ),
    ),
    orientation={
        "en": "Attention matrices of trained encoders turn out to have low rank, so the keys and "
        "values of a long text can be projected to a few hundred rows before they are compared "
        "with. Time and memory become linear in the length. The projection runs along the "
        "sequence: it sees all tokens at once, which is fine for reading a text and impossible for "
        "writing one. For a decoder the answer is therefore no, whatever the numbers.",
        "es": "Las matrices de atención de los codificadores entrenados resultan tener rango bajo, "
        "de modo que las claves y los valores de un texto largo pueden proyectarse a unos cientos "
        "de filas antes de compararlos. El tiempo y la memoria pasan a ser lineales en la "
        "longitud. La proyección recorre la secuencia: ve todos los tokens a la vez, lo cual sirve "
        "para leer un texto y es imposible para escribirlo. Para un decodificador la respuesta es, "
        "por tanto, no, digan lo que digan los números.",
    },
    diagram=(
        "x",
        "q_proj, k_proj, v_proj",
        "+project keys and values along the sequence: n => rank rows",
        "~softmax(q k) v: n x n => n x rank scores",
        "o_proj",
    ),
)
