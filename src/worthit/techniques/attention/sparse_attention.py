"""Sparse attention: each query reads a chosen few of the past keys.

Changes: `sparse_keys` of every full softmax attention. Matched: everything else, and all keys stay
cached; choosing costs one product with the mean key of each past block.
Relieves: attention compute over long sequences and the cache traffic of decoding them.
Does nothing when: the context is not much longer than the keys kept; nor for cache capacity, ever.
Costs: continued training with the selection in place, and a kernel that gathers blocks.
"""

from __future__ import annotations

from dataclasses import replace

from worthit.errors import NotApplicable
from worthit.spec.case import Case
from worthit.techniques._change import attentions, map_attention
from worthit.techniques._mixers import require_absent, require_heads
from worthit.techniques._record import Evidence, Source, Technique
from worthit.techniques.attention._sources import CHILD_2019

YUAN_2025 = Source(
    cite="Yuan et al. 2025",
    title="Native Sparse Attention: Hardware-Aligned and Natively Trainable Sparse Attention",
    id="arXiv:2502.11089",
    where="section 3",
)
ZAHEER_2020 = Source(
    cite="Zaheer et al. 2020",
    title="Big Bird: Transformers for Longer Sequences",
    id="arXiv:2007.14062",
    where="section 2",
)
# DeepSeek-V3.2's indexer keeps 2048 tokens; the native form keeps 16 blocks of 64 beside a window
# of 512 and one summary for every 16 tokens, which is about as many at 8K.
USUAL_KEYS = 2048


def apply(case: Case, *, sparse_keys: int = USUAL_KEYS) -> Case:
    """Return `case` with at most `sparse_keys` keys read by a query in full attention layers."""
    found = require_heads(
        case,
        "sparse-attention",
        "it caps the keys of ordinary heads; choosing latents needs an indexer of its own, which "
        "is not modelled",
    )
    require_absent(is_present(case), "sparse-attention", "queries read a chosen few keys")
    if all(a.reach is not None for a in found):
        raise NotApplicable(
            "sparse-attention chooses among all past keys, and every layer here is local already; "
            "remove sliding-window first"
        )
    return map_attention(
        case, lambda a: replace(a, sparse_keys=sparse_keys) if a.reach is None else a
    )


def is_present(case: Case) -> bool:
    """Whether some attention reads a limited number of keys of the whole context."""
    return any(a.sparse_keys is not None for a in attentions(case))


def remove(case: Case) -> Case:
    """Return `case` with every key read."""
    return map_attention(case, lambda a: replace(a, sparse_keys=None))


TECHNIQUE = Technique(
    id="sparse-attention",
    name="Sparse attention (fixed patterns or learned selection)",
    relieves=("attention-compute", "decode-cache"),
    bottleneck="Nearly all attention weight falls on a few keys, yet all of them are compared.",
    apply=apply,
    module="worthit.nn.attention.sparse_attention:SparseAttention",
    experiment="worthit.lab.experiments.sparse_attention:EXPERIMENT",
    parity=(
        "every score written down under the papers' masks, for fixed patterns: outputs and "
        "gradients (tests/nn/attention/test_sparse_attention.py)",
        "a loop over queries that scores and chooses blocks, for chosen keys "
        "(tests/nn/attention/test_sparse_attention.py)",
    ),
    is_present=is_present,
    remove=remove,
    adoption="finetune",
    cost_of_adoption=(
        "Continued pretraining with the selection in place and a block-gathering kernel; cutting "
        "keys at inference alone loses quality."
    ),
    nothing_when=(
        "The context is shorter than a few times the keys kept, or memory capacity is what binds: "
        "every key stays cached because any of them may be chosen next."
    ),
    pitfalls=(
        "Without a kernel that skips whole blocks the mask saves nothing.",
        "Query heads that share a key/value head must choose together, or the cache is read for "
        "each of them.",
        "Ties among scores make the choice depend on tensor shapes, so decoding and prefill can "
        "disagree.",
        "Choosing is itself linear in the context: at a million tokens the chooser is the cost.",
    ),
    sources=(YUAN_2025, CHILD_2019, ZAHEER_2020),
    evidence=(
        Evidence(
            claim="A 27B model trained natively with block selection averages 0.456 over general "
            "benchmarks against 0.443 for full attention, and decodes up to 11.6 times faster at a "
            "context of 64K.",
            source=replace(YUAN_2025, where="table 1 and section 5"),
        ),
    ),
    orientation={
        "en": "A query rarely needs all of its past. Early designs fixed which keys it reads, by "
        "stride or block; recent ones let a small scorer choose the blocks, and train with the "
        "choice in place. Compute and traffic then follow the number of keys kept, not the "
        "context. The cache keeps its size, since any key may be wanted later, so this helps speed "
        "at long contexts and not the number of sequences that fit.",
        "es": "Una consulta rara vez necesita todo su pasado. Los primeros diseños fijaban qué "
        "claves lee, por pasos o por bloques; los recientes dejan que un pequeño evaluador elija "
        "los bloques y entrenan con esa elección puesta. El cálculo y el tráfico siguen entonces "
        "al número de claves elegidas y no al contexto. La caché conserva su tamaño, porque "
        "cualquier clave puede hacer falta después: ayuda a la velocidad con contextos largos, "
        "pero no a que quepan más secuencias.",
    },
    diagram=(
        "x",
        "q_proj, k_proj, v_proj",
        "cache: every key stays",
        "+score blocks of keys, keep the best",
        "~softmax(q k) v: all keys => sparse_keys",
        "o_proj",
    ),
)
