"""EAGLE: a drafter of one layer that reads the model's own features guesses token by token.

Changes: `runtime.speculation`, with one extra layer and a draft head run in sequence.
Relieves: weights read once for each token, at higher acceptance than free-standing drafts.
Does nothing when: the batch is compute-bound.
Costs: training the drafter for this very model; a few per cent of its weights.

Held equal: the output distribution, whatever the drafter. Modelled after EAGLE-3 as a chain.
"""

from __future__ import annotations

from worthit.cost.params import count_layer
from worthit.spec.case import Case, Range, Speculation
from worthit.spec.model import Attention
from worthit.techniques._record import Evidence, Source, Technique
from worthit.techniques.decoding._draft import (
    BOTTLENECK,
    LEVIATHAN_2022,
    with_draft,
    without_draft,
)

LI_2024 = Source(
    cite="Li et al. 2024",
    title="EAGLE: Speculative Sampling Requires Rethinking Feature Uncertainty",
    id="arXiv:2401.15077",
    where="section 3",
)
LI_2025 = Source(
    cite="Li et al. 2025",
    title="EAGLE-3: Scaling up Inference Acceleration of Large Language Models via Training-Time "
    "Test",
    id="arXiv:2503.01840",
    where="section 3",
)

# Chains: EAGLE reports about .7 to .8 a position on chat; EAGLE-3 holds more of it at later
# positions, and engines see less on traffic unlike the drafter's training text.
ACCEPTANCE = Range(mid=0.72, low=0.6, high=0.82)
# The released EAGLE-3 drafters predict the 32,000 most frequent tokens.
DRAFT_VOCAB = 32_000


def head_params(case: Case, draft_vocab: int = DRAFT_VOCAB) -> int:
    """Parameters of the drafter: a layer whose attention reads 2d channels, fusion 3d x d, head.

    For Llama 3.1 8B this is the 0.43 billion of the released drafter.
    """
    model = case.model
    d = model.d_model
    layer = model.layers[-1]
    n = count_layer(layer, d).active + 3 * d * d + d * min(draft_vocab, model.vocab_size)
    for mixer in layer.mixers:
        if isinstance(mixer, Attention):
            n += d * (mixer.n_heads + 2 * mixer.n_kv_heads) * mixer.head_dim
        else:
            n += d * d
    return n


def apply(
    case: Case,
    *,
    draft_len: int = 4,
    acceptance: Range = ACCEPTANCE,
    draft_vocab: int = DRAFT_VOCAB,
) -> Case:
    """Return `case` with a chain of `draft_len` tokens drafted from the model's features."""
    speculation = Speculation(
        draft_len=draft_len, acceptance=acceptance, head_params=head_params(case, draft_vocab)
    )
    return with_draft(case, "eagle", speculation)


def is_present(case: Case) -> bool:
    """Whether an added head drafts token by token."""
    drafted = case.runtime.speculation
    return drafted is not None and drafted.head_params > 0 and not drafted.is_parallel


TECHNIQUE = Technique(
    id="eagle",
    name="EAGLE drafting from features",
    relieves=("decode-weights", "decode-cache", "launch-overhead"),
    bottleneck=BOTTLENECK,
    apply=apply,
    experiment="worthit.lab.experiments.eagle:EXPERIMENT",
    is_present=is_present,
    remove=without_draft,
    adoption="finetune",
    cost_of_adoption=(
        "Train a one-layer drafter on the model's own features (days on a few devices for large "
        "models); released for many public models."
    ),
    nothing_when="The batch is compute-bound, or launches rather than weights bound a step.",
    pitfalls=(
        "After verification the drafter's cache and features must be overwritten with the "
        "target's true ones: engines lost 8 to 15 % of the accepted length without.",
        "The feature of a token is paired with the next token: off by one drafts nonsense that "
        "still verifies, slowly.",
        "Published lengths come from trees at batch 1; a chain in an engine keeps fewer.",
        "A full vocabulary in the draft head is most of its cost: reduce it.",
    ),
    sources=(LI_2025, LI_2024, LEVIATHAN_2022),
    evidence=(
        Evidence(
            claim="Llama 3.1 8B on one H100, batch 1: 158 tokens/s plain, 244 with EAGLE-2, 373 "
            "with EAGLE-3; at batch 64 still 1.38 times the throughput.",
            source=LI_2025,
        ),
        Evidence(
            claim="Llama 2 Chat 70B: 2.7 to 3.5 times lower latency, distribution unchanged.",
            source=LI_2024,
        ),
    ),
    orientation={
        "en": "The hidden state that a model computes says more about the next tokens than the "
        "tokens themselves. EAGLE trains a drafter of a single layer that reads those features "
        "beside the token just chosen, and guesses the next ones in sequence; the model then "
        "verifies them in one pass. It is far cheaper than a free-standing draft model and agrees "
        "with its target more often.",
        "es": "El estado oculto que calcula un modelo dice más sobre los próximos tokens que los "
        "propios tokens. EAGLE entrena un pequeño modelo de una sola capa que lee esos estados "
        "junto con el último token elegido y adivina los siguientes en secuencia; después el "
        "modelo los comprueba en una sola pasada. Es mucho más barato que un modelo auxiliar "
        "independiente y coincide más a menudo con el principal.",
    },
    diagram=(
        "hidden states of a low, a middle and a high layer",
        "+fuse: 3 d_model => d_model, beside the embedding of the token just chosen",
        "+one decoder layer and a draft head, draft_len times in sequence",
        "~model: one token a pass => draft_len + 1 tokens a pass",
        "+accept or resample; overwrite the drafter's cache with true features",
    ),
)
