"""The delta rule: a linear state that replaces what it stored under a key instead of adding to it.

Changes: every softmax attention into a (gated) delta-rule state with square heads, a short
convolution, an output gate and norm. Matched: parameters of each mixer, by the number of heads.
Relieves: the quadratic attention compute, the growing cache and its traffic.
Does nothing when: the sequence is so short that the state outweighs the cache it replaces.
Costs: training anew; a triangular solve in each chunk; recall beyond the state's rank.
"""

from __future__ import annotations

from worthit.spec.case import Case
from worthit.spec.model import LinearAttention, Mixer
from worthit.techniques._mixers import linear_heads, map_softmax, require_softmax, to_attention
from worthit.techniques._record import Evidence, Source, Technique
from worthit.techniques.attention._sources import YANG_2024_GATED

SCHLAG_2021 = Source(
    cite="Schlag, Irie and Schmidhuber 2021",
    title="Linear Transformers Are Secretly Fast Weight Programmers",
    id="arXiv:2102.11174",
    where="section 4",
)
YANG_2024 = Source(
    cite="Yang et al. 2024",
    title="Parallelizing Linear Transformers with the Delta Rule over Sequence Length",
    id="arXiv:2406.06484",
    where="section 3",
)


def apply(case: Case, *, is_gated: bool = True, d_conv: int = 4) -> Case:
    """Return `case` with delta-rule attention for every softmax attention.

    `is_gated` also decays the state, as the models in production do; without it this is the plain
    rule of 2021.
    """
    require_softmax(case, "delta-rule")
    d_model = case.model.d_model

    def build(n_heads: int, head_dim: int) -> LinearAttention:
        return LinearAttention(
            kind="gated-delta" if is_gated else "delta",
            n_key_heads=n_heads,
            n_value_heads=n_heads,
            key_dim=head_dim,
            value_dim=head_dim,
            d_conv=d_conv,
            has_output_gate=is_gated,
        )

    return map_softmax(case, lambda m: linear_heads(m, d_model, build))


def is_present(case: Case) -> bool:
    """Whether some layer's state is written by the delta rule."""
    return any(_is_delta(m) for m in case.model.mixers)


def remove(case: Case) -> Case:
    """Return `case` with softmax attention for the delta rule, parameters equal."""
    return to_attention(case, _is_delta)


def _is_delta(mixer: Mixer) -> bool:
    return isinstance(mixer, LinearAttention) and mixer.kind in ("delta", "gated-delta")


TECHNIQUE = Technique(
    id="delta-rule",
    name="Delta-rule linear attention (DeltaNet, Gated DeltaNet)",
    relieves=("attention-compute", "decode-cache", "kv-capacity"),
    bottleneck="Attention is quadratic, and a linear state that adds cannot correct what it wrote "
    "under a key before.",
    apply=apply,
    module="worthit.nn.attention.delta_rule:DeltaRule",
    experiment="worthit.lab.experiments.delta_rule:EXPERIMENT",
    parity=(
        "transformers 5.23 `Qwen3NextGatedDeltaNet`, the gated rule: outputs and gradients "
        "(tests/nn/attention/test_delta_rule.py)",
        "the recurrence in order, plain and gated: outputs, states, gradients "
        "(tests/nn/attention/test_delta_rule.py)",
    ),
    is_present=is_present,
    remove=remove,
    adoption="retrain",
    cost_of_adoption="A pretraining run, with the chunked kernel that makes the rule parallel.",
    nothing_when=(
        "The context is short, weights dominate what decoding reads, or the task asks for the "
        "verbatim recall of more facts than a head's state has rows."
    ),
    pitfalls=(
        "Keys must have unit length, and where the small constant of that norm stands changes the "
        "result.",
        "The state decays before the old value is erased; the other order is a different model.",
        "The triangular solve inside a chunk needs fp32.",
        "Models in use keep one layer of full attention in four: without it long recall suffers.",
    ),
    sources=(SCHLAG_2021, YANG_2024, YANG_2024_GATED),
    evidence=(
        Evidence(
            claim="1.3B parameters on 100B tokens: WikiText perplexity 16.42 with gate and delta "
            "rule, 16.56 for Mamba-2 (gate only) and 17.71 for the delta rule alone.",
            source=YANG_2024_GATED,
        ),
    ),
    orientation={
        "en": "Writing to a linear state by the delta rule first reads what the state holds under "
        "the new key and then writes only the difference, as an online regression would. Keys that "
        "return get updated rather than mixed. Together with a decay that can erase everything it "
        "is the strongest of the linear mixers at recall, and the one that recent hybrids put in "
        "three layers of four; full attention stays in the fourth.",
        "es": "Escribir en un estado lineal con la regla delta significa leer primero lo que el "
        "estado guarda bajo la nueva clave y escribir después solo la diferencia, como haría una "
        "regresión en línea. Las claves que vuelven se actualizan en lugar de mezclarse. Junto con "
        "un decaimiento capaz de borrarlo todo, es el mezclador lineal que mejor recuerda, y el "
        "que los híbridos recientes colocan en tres de cada cuatro capas; en la cuarta permanece "
        "la atención completa.",
    },
    diagram=(
        "x",
        "q_proj, k_proj, v_proj",
        "+short convolution, unit-length keys",
        "+write strength and decay from x",
        "-softmax(q k) v over all past keys",
        "+state = decay * state, then state += strength * k (v - state k)",
        "~cache: grows with the context => one fixed state",
        "+q state, norm, output gate",
        "o_proj",
    ),
)
