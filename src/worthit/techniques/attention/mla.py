"""Multi-head latent attention: keys and values are rebuilt from one cached latent vector.

Changes: each full softmax attention into a latent one of `kv_lora_rank = 4 * head_dim`, with
`head_dim / 2` extra channels that carry the rotation (DeepSeek-V2's ratios, 512 and 64 for heads of
128). Matched: query heads and their width; parameters move by the low-rank factors. Local layers
keep their window, whose cache is bounded already.
Relieves: KV-cache capacity and the traffic of reading it.
Does nothing when: the cache is not what binds, or one or two key/value heads are cached anyway.
Costs: training anew, up-projections in prefill, three to four times the FLOPs a score in decode.
"""

from __future__ import annotations

from dataclasses import replace

from worthit.errors import NotApplicable
from worthit.spec.case import Case
from worthit.spec.model import Attention, LatentAttention, Mixer
from worthit.techniques._change import map_attention, with_model
from worthit.techniques._mixers import has_mixer, require_absent, require_softmax
from worthit.techniques._record import Evidence, Source, Technique
from worthit.techniques.attention._sources import DEEPSEEK_V2

JI_2025 = Source(
    cite="Ji et al. 2025",
    title="Towards Economical Inference: Enabling DeepSeek's Multi-Head Latent Attention in Any "
    "Transformer-based LLMs",
    id="arXiv:2502.14837",
    where="abstract",
)


def apply(
    case: Case,
    *,
    rank_in_heads: float = 4.0,
    rope_in_heads: float = 0.5,
    q_lora_rank: int | None = None,
) -> Case:
    """Return `case` with latent attention in place of full softmax attention.

    `rank_in_heads` and `rope_in_heads` give the latent and the rotated channels in units of
    `head_dim`. Without rotary positions no channel is set apart for them. `q_lora_rank` squeezes
    the queries too, which saves activation memory in training and nothing in the cache.
    """
    require_absent(is_present(case), "mla", "this model caches one latent vector a token")
    found = require_softmax(case, "mla")
    reaches = [m.reach for m in found if isinstance(m, Attention)]
    if None not in reaches:
        raise NotApplicable(
            "mla shrinks a cache that grows with the context; every attention here is local, with "
            f"at most {max(n or 0 for n in reaches)} keys cached: remove sliding-window first"
        )
    has_rope = case.model.position.kind == "rope"

    def compress(a: Attention) -> LatentAttention | Attention:
        if a.reach is not None:
            return a
        rotated = has_rope and not a.is_position_free
        return LatentAttention(
            n_heads=a.n_heads,
            kv_lora_rank=max(1, round(rank_in_heads * a.head_dim)),
            qk_nope_head_dim=a.head_dim,
            qk_rope_head_dim=2 * round(rope_in_heads * a.head_dim / 2) if rotated else 0,
            v_head_dim=a.head_dim,
            q_lora_rank=q_lora_rank,
            has_bias=a.has_qkv_bias,
        )

    return map_attention(case, compress)


def is_present(case: Case) -> bool:
    """Whether some layer caches a latent vector."""
    return has_mixer(case, LatentAttention)


def remove(case: Case) -> Case:
    """Return `case` with multi-head attention of the same heads, as DeepSeek-V2 compares it.

    Heads and their width stay; the rotation moves into the heads. Parameters are not held equal.
    """

    def expand(mixer: Mixer) -> Mixer:
        if not isinstance(mixer, LatentAttention):
            return mixer
        return Attention(
            n_heads=mixer.n_heads,
            n_kv_heads=mixer.n_heads,
            head_dim=mixer.v_head_dim,
            has_qkv_bias=mixer.has_bias,
            rotary_dim=mixer.v_head_dim if mixer.qk_rope_head_dim else None,
            is_position_free=mixer.qk_rope_head_dim == 0 and case.model.position.kind == "rope",
        )

    return with_model(case, case.model.map_mixers(expand))


TECHNIQUE = Technique(
    id="mla",
    name="Multi-head latent attention",
    relieves=("kv-capacity", "decode-cache"),
    bottleneck="The key/value cache limits how many sequences fit and how long they may grow.",
    apply=apply,
    module="worthit.nn.attention.mla:MultiHeadLatentAttention",
    experiment="worthit.lab.experiments.mla:EXPERIMENT",
    parity=(
        "transformers 5.23 `DeepseekV3Attention`, plain and with YaRN: outputs and weight "
        "gradients (tests/nn/attention/test_mla.py)",
        "a loop over queries, heads and keys from equations 37 to 47 "
        "(tests/nn/attention/test_mla.py)",
    ),
    is_present=is_present,
    remove=remove,
    adoption="retrain",
    cost_of_adoption=(
        "A pretraining run; converting a trained model has been shown with 0.3 to 0.6 % of the "
        "data, by keeping the rotation on part of the channels."
    ),
    nothing_when=(
        "The cache is a small share of memory and of the bytes read (short context, few "
        "sequences), or the model caches one or two key/value heads, fewer numbers than the "
        "latent: head_dim * 4.5 against 2 * n_kv_heads * head_dim."
    ),
    pitfalls=(
        "Absorbing the up-projections pays in decode only: in prefill it costs about 3.4 times the "
        "attention FLOPs of rebuilding the keys.",
        "The rotated channels cannot be absorbed; the shared rotary key is cached beside the "
        "latent, and the scores are scaled by both widths together.",
        "Every tensor-parallel rank keeps the whole latent: it has no heads to split.",
        "The latent is normalised before it is cached, and the rotation is interleaved in the "
        "published weights.",
    ),
    sources=(DEEPSEEK_V2, JI_2025),
    evidence=(
        Evidence(
            claim="Against a multi-head mixture of experts of the same size the latent cache takes "
            "14 % (small) and 4 % (large model) of the elements a token, with better benchmark "
            "results.",
            source=replace(DEEPSEEK_V2, where="appendix D.2, table 9"),
        ),
        Evidence(
            claim="DeepSeek-V2 reports 93.3 % less key/value cache and 5.76 times the maximum "
            "generation throughput of DeepSeek 67B, a dense model with grouped heads; the number "
            "mixes latent attention with the sparser model around it.",
            source=replace(DEEPSEEK_V2, where="abstract"),
        ),
    ),
    orientation={
        "en": "Instead of keys and values for each head, the cache keeps one short vector a token, "
        "from which the keys and values of all heads are rebuilt by fixed matrices. In decode "
        "those matrices are folded into queries and outputs, so that attention works on the latent "
        "itself. Position cannot pass through such a product, which is why a few separate channels "
        "carry the rotation. The cache becomes as small as with two or three key/value heads while "
        "every head keeps keys of its own; the price is more arithmetic.",
        "es": "En lugar de claves y valores por cabeza, la caché guarda un solo vector corto por "
        "token, a partir del cual unas matrices fijas reconstruyen las claves y los valores de "
        "todas las cabezas. Al decodificar, esas matrices se integran en las consultas y las "
        "salidas, de modo que la atención trabaja sobre el propio vector latente. La posición no "
        "puede atravesar ese producto, y por eso unos pocos canales aparte llevan la rotación. La "
        "caché queda tan pequeña como con dos o tres cabezas de clave/valor y cada cabeza conserva "
        "sus propias claves; el precio es más aritmética.",
    },
    diagram=(
        "x",
        "q_proj: n_heads",
        "-k_proj, v_proj: n_kv_heads",
        "+down: d_model to kv_lora_rank, and one rotary key for all heads",
        "~cache: 2 n_kv_heads head_dim => kv_lora_rank + qk_rope_head_dim a token",
        "+up: latent to keys and values of every head (absorbed in decode)",
        "softmax(q k) v",
        "o_proj",
    ),
)
