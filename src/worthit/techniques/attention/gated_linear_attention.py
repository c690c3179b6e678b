"""Gated linear attention: the linear state forgets by as much as each token says.

Changes: every softmax attention into a gated linear state, keys half as wide as values, with an
output gate and norm (the paper's shape). Matched: parameters of each mixer, by the number of heads;
the forget gate is counted as a full projection, which the paper factorises.
Relieves: the quadratic attention compute, the growing cache and its traffic.
Does nothing when: the sequence is so short that the state outweighs the cache it replaces.
Costs: training anew; exact recall over long contexts; gates that need log-space care.
"""

from __future__ import annotations

from worthit.spec.case import Case
from worthit.spec.model import LinearAttention, Mixer
from worthit.techniques._mixers import linear_heads, map_softmax, require_softmax, to_attention
from worthit.techniques._record import Evidence, Source, Technique
from worthit.techniques.attention._sources import YANG_2023

SUN_2023 = Source(
    cite="Sun et al. 2023",
    title="Retentive Network: A Successor to Transformer for Large Language Models",
    id="arXiv:2307.08621",
    where="section 2",
)


def apply(case: Case, *, key_ratio: float = 0.5, d_conv: int = 0) -> Case:
    """Return `case` with gated linear attention for every softmax attention.

    `key_ratio` is the width of keys over that of values, a half in the paper.
    """
    require_softmax(case, "gated-linear-attention")
    d_model = case.model.d_model

    def build(n_heads: int, head_dim: int) -> LinearAttention:
        return LinearAttention(
            kind="gated",
            n_key_heads=n_heads,
            n_value_heads=n_heads,
            key_dim=max(1, round(key_ratio * head_dim)),
            value_dim=head_dim,
            d_conv=d_conv,
        )

    return map_softmax(case, lambda m: linear_heads(m, d_model, build))


def is_present(case: Case) -> bool:
    """Whether some layer keeps a linear state with a data-dependent decay."""
    return any(_is_gated(m) for m in case.model.mixers)


def remove(case: Case) -> Case:
    """Return `case` with softmax attention for the gated one, parameters equal."""
    return to_attention(case, _is_gated)


def _is_gated(mixer: Mixer) -> bool:
    return isinstance(mixer, LinearAttention) and mixer.kind == "gated"


TECHNIQUE = Technique(
    id="gated-linear-attention",
    name="Gated linear attention",
    relieves=("attention-compute", "decode-cache", "kv-capacity"),
    bottleneck="Attention is quadratic in the sequence, and a linear state that only adds, or "
    "decays by a constant, cannot choose what to forget.",
    apply=apply,
    module="worthit.nn.attention.gated_linear_attention:GatedLinearAttention",
    experiment="worthit.lab.experiments.gated_linear_attention:EXPERIMENT",
    parity=(
        "a loop over tokens from equation 3 with norm and gate: outputs "
        "(tests/nn/attention/test_linear_attention.py)",
        "the recurrence in order, for chunks: outputs, states, gradients "
        "(tests/nn/attention/test_linear_attention.py)",
    ),
    is_present=is_present,
    remove=remove,
    adoption="retrain",
    cost_of_adoption="A pretraining run, with a chunked kernel for the forward and backward pass.",
    nothing_when=(
        "The context is short enough that projections and feed-forwards take nearly all of the "
        "time, or one sequence is decoded at a time and the weights are what is read."
    ),
    pitfalls=(
        "Products of gates underflow and their inverses overflow: keep exponents as differences "
        "in log space, in fp32, in chunks of 16 to 64 tokens.",
        "Without a few layers of full attention beside it, looking up one of many earlier facts "
        "stays weak.",
        "A state restored from bf16 drifts from the state that training saw.",
    ),
    sources=(YANG_2023, SUN_2023),
    evidence=(
        Evidence(
            claim="1.3B parameters on 100B tokens: WikiText perplexity 17.22, against 16.85 for a "
            "Llama-like transformer, 17.06 for Mamba and 18.64 for RetNet's constant decay.",
            source=YANG_2023,
        ),
    ),
    orientation={
        "en": "A linear state that only accumulates ends up full. Here each token brings a gate "
        "for every channel of the state, between keeping and forgetting, so that old content makes "
        "room when the text moves on. Training works in chunks as matrix products, decoding as a "
        "recurrence of constant cost. Language modelling comes close to a transformer; retrieving "
        "exact details from far back remains the weak side.",
        "es": "Un estado lineal que solo acumula acaba lleno. Aquí cada token aporta una compuerta "
        "para cada canal del estado, entre conservar y olvidar, de modo que lo antiguo deja sitio "
        "cuando el texto avanza. El entrenamiento trabaja por bloques con productos de matrices y "
        "la decodificación, como una recurrencia de coste constante. En modelado del lenguaje se "
        "acerca a un transformador; recuperar detalles exactos de muy atrás sigue siendo su punto "
        "débil.",
    },
    diagram=(
        "x",
        "q_proj, k_proj, v_proj",
        "+gate_proj: one decay a key channel, sigmoid in log space",
        "-softmax(q k) v over all past keys",
        "+state = gate * state + k v",
        "~cache: grows with the context => one fixed state",
        "+q state, norm, output gate",
        "o_proj",
    ),
)
