"""Linear attention: a kernel in place of the softmax turns the cache into a fixed state.

Changes: every softmax attention into a state of `head_dim x head_dim` a head that each token adds
to. Matched: parameters of each mixer, by the number of heads.
Relieves: the quadratic attention compute, the growing cache and its traffic.
Does nothing when: the sequence is shorter than a head is wide; the state is then the larger memory.
Costs: training anew, and recall: a sum cannot be looked up exactly.
"""

from __future__ import annotations

from worthit.spec.case import Case
from worthit.spec.model import LinearAttention, Mixer
from worthit.techniques._mixers import linear_heads, map_softmax, require_softmax, to_attention
from worthit.techniques._record import Evidence, Technique
from worthit.techniques.attention._sources import ARORA_2023, KATHAROPOULOS_2020


def apply(case: Case, *, d_conv: int = 0) -> Case:
    """Return `case` with additive linear attention for every softmax attention.

    Keys and values keep the width of a head, so a state has `head_dim ** 2` numbers. A short
    convolution of `d_conv` tokens before it is later practice, not part of the original.
    """
    require_softmax(case, "linear-attention")
    d_model = case.model.d_model

    def build(n_heads: int, head_dim: int) -> LinearAttention:
        return LinearAttention(
            kind="linear",
            n_key_heads=n_heads,
            n_value_heads=n_heads,
            key_dim=head_dim,
            value_dim=head_dim,
            d_conv=d_conv,
            has_output_gate=False,
            has_output_norm=False,
        )

    return map_softmax(case, lambda m: linear_heads(m, d_model, build))


def is_present(case: Case) -> bool:
    """Whether some layer adds to a linear state, decayed by a constant at most (RetNet)."""
    return any(_is_linear(m) for m in case.model.mixers)


def remove(case: Case) -> Case:
    """Return `case` with softmax attention for the linear one, parameters equal."""
    return to_attention(case, _is_linear)


def _is_linear(mixer: Mixer) -> bool:
    return isinstance(mixer, LinearAttention) and mixer.kind in ("linear", "retention")


TECHNIQUE = Technique(
    id="linear-attention",
    name="Linear attention",
    relieves=("attention-compute", "decode-cache", "kv-capacity"),
    bottleneck="Comparing every token with every other costs time that grows with their square.",
    apply=apply,
    module="worthit.nn.attention.linear_attention:AdditiveAttention",
    experiment="worthit.lab.experiments.linear_attention:EXPERIMENT",
    parity=(
        "a loop over pairs of tokens from equation 8: outputs "
        "(tests/nn/attention/test_linear_attention.py)",
        "the recurrence in order, for chunks and all scores at once: outputs, states, gradients "
        "(tests/nn/attention/test_linear_attention.py)",
    ),
    is_present=is_present,
    remove=remove,
    adoption="retrain",
    cost_of_adoption=(
        "A pretraining run; a softmax model's weights do not carry over without distillation."
    ),
    nothing_when=(
        "Attention over the sequence is a small share of the work, which for heads of 128 and "
        "contexts of a few hundred tokens it is; or decoding is bound by reading weights."
    ),
    pitfalls=(
        "The normaliser can pass through zero when features are not kept positive.",
        "The state must be kept in fp32: it is a sum over the whole past.",
        "The chunked form used in training and the recurrent form used in decode must be shown to "
        "agree; most reported bugs are their difference.",
    ),
    sources=(KATHAROPOULOS_2020, ARORA_2023),
    evidence=(
        Evidence(
            claim="Speech recognition on WSJ: 8.08 % phoneme error with linear attention against "
            "5.12 % with softmax, at a fraction of the training time.",
            source=KATHAROPOULOS_2020,
        ),
        Evidence(
            claim="Most of the perplexity gap between attention and gated-convolution models, 82 % "
            "in their measurement, comes from recalling what stood earlier in the context.",
            source=ARORA_2023,
        ),
    ),
    orientation={
        "en": "If the softmax is replaced by a product of feature maps, the sum over past tokens "
        "can be taken once and carried along: a matrix for each head that every token adds its key "
        "and value to. Time becomes linear and memory constant. What is lost is exact look-up: "
        "many pairs share one matrix of fixed size, and with nothing ever forgotten they blur into "
        "each other.",
        "es": "Si se sustituye el softmax por un producto de mapas de características, la suma "
        "sobre los tokens pasados puede acumularse y arrastrarse: una matriz por cabeza a la que "
        "cada token suma su clave y su valor. El tiempo pasa a ser lineal y la memoria, constante. "
        "Lo que se pierde es la consulta exacta: muchos pares comparten una matriz de tamaño fijo "
        "y, como nunca se olvida nada, acaban confundiéndose unos con otros.",
    },
    diagram=(
        "x",
        "q_proj, k_proj, v_proj",
        "+feature map on q and k",
        "-softmax(q k) v over all past keys",
        "+state = state + k v, one matrix a head",
        "~cache: grows with the context => one fixed state",
        "+q state / q z",
        "o_proj",
    ),
)
