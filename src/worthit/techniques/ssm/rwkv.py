"""RWKV: a recurrent network of weighted averages that trains in parallel.

Changes: every softmax attention into time mixing (version 4) and the dense feed-forward beside it
into channel mixing. Matched: parameters of each layer, by the width of the channel mixing; a
mixture of experts stays as it is.
Relieves: the growing cache and its traffic, and the quadratic attention compute.
Does nothing when: contexts are short, or weights dominate what decoding reads.
Costs: training anew; five numbers a channel are all that is remembered.
"""

from __future__ import annotations

from dataclasses import replace

from worthit.cost.params import count_layer
from worthit.spec.case import Case
from worthit.spec.model import ChannelMix, FeedForward, Layer, Rwkv
from worthit.techniques._change import with_model
from worthit.techniques._mixers import (
    WIDTH_MULTIPLE,
    Softmax,
    has_mixer,
    require_softmax,
    rounded,
    to_attention,
)
from worthit.techniques._record import Evidence, Source, Technique

PENG_2023 = Source(
    cite="Peng et al. 2023",
    title="RWKV: Reinventing RNNs for the Transformer Era",
    id="arXiv:2305.13048",
    where="section 3, equations 11 to 18",
)
PENG_2024 = Source(
    cite="Peng et al. 2024",
    title="Eagle and Finch: RWKV with Matrix-Valued States and Dynamic Recurrence",
    id="arXiv:2404.05892",
    where="section 4",
)


def apply(case: Case) -> Case:
    """Return `case` with RWKV's time mixing for attention and channel mixing for feed-forwards."""
    require_softmax(case, "rwkv")
    d_model = case.model.d_model
    mixer = Rwkv(d_attention=d_model)

    def change(layer: Layer) -> Layer:
        if not any(isinstance(m, Softmax) for m in layer.mixers):
            return layer
        mixers = tuple(mixer if isinstance(m, Softmax) else m for m in layer.mixers)
        changed = replace(layer, mixers=mixers)
        if not isinstance(layer.ffn, FeedForward):
            return changed
        mixed = replace(changed, ffn=ChannelMix(d_ff=WIDTH_MULTIPLE))
        spare = count_layer(layer, d_model).total - count_layer(mixed, d_model).total
        d_ff = max(rounded(WIDTH_MULTIPLE + spare / (2 * d_model)), WIDTH_MULTIPLE)
        return replace(mixed, ffn=ChannelMix(d_ff=d_ff))

    return with_model(case, case.model.map_layers(change))


def is_present(case: Case) -> bool:
    """Whether some layer mixes time as RWKV does."""
    return has_mixer(case, Rwkv)


def remove(case: Case) -> Case:
    """Return `case` with softmax attention and gated feed-forwards for RWKV, parameters equal."""
    return to_attention(case, lambda m: isinstance(m, Rwkv))


TECHNIQUE = Technique(
    id="rwkv",
    name="RWKV (receptance weighted key value)",
    relieves=("decode-cache", "kv-capacity", "attention-compute"),
    bottleneck="A transformer's memory grows with every token it has read; a recurrent network's "
    "does not, but it trains token by token.",
    apply=apply,
    module="worthit.nn.ssm.rwkv:TimeMixing",
    parity=(
        "transformers 5.23 `RwkvSelfAttention`, `RwkvFeedForward` (version 4): outputs and "
        "gradients (tests/nn/ssm/test_rwkv.py)",
        "loops over tokens from the papers' equations (versions 5, 6 and 7): outputs and "
        "gradients (tests/nn/ssm/test_rwkv_later.py)",
    ),
    experiment="worthit.lab.experiments.rwkv:EXPERIMENT",
    is_present=is_present,
    remove=remove,
    adoption="retrain",
    cost_of_adoption="A pretraining run, with its own kernel for training and its own runtime.",
    nothing_when=(
        "Contexts are short, so that weights are most of what decoding reads, or the prompt holds "
        "facts that must be found again word for word."
    ),
    pitfalls=(
        "Sums of exponentials need the running maximum that keeps them in range.",
        "The order of a prompt matters more than with attention: ask first, give the text after.",
        "Some runtimes halve the weights every few layers at inference; reading a checkpoint twice "
        "or resuming training then goes wrong.",
        "The bonus applies to the current token before it decays.",
    ),
    sources=(PENG_2023, PENG_2024),
    evidence=(
        Evidence(
            claim="Models up to 14B parameters perform on a par with transformers of similar size "
            "and training, and are more sensitive to how the prompt is ordered.",
            source=PENG_2023,
        ),
    ),
    orientation={
        "en": "Each channel keeps a weighted average of past values whose weights fade at a "
        "learned rate and swell with the key of each token. In training that is a scan over "
        "independent channels; in decoding, a recurrent network with a handful of numbers a "
        "channel. No transformer has a smaller memory, which is why it suits phones and endless "
        "streams. Later versions enlarge the state to a matrix, because so little of it could not "
        "recall enough.",
        "es": "Cada canal guarda una media ponderada de los valores pasados, cuyos pesos se "
        "desvanecen a un ritmo aprendido y crecen con la clave de cada token. Al entrenar, eso es "
        "un recorrido por canales independientes; al decodificar, una red recurrente con un puñado "
        "de números por canal. Ningún transformador tiene una memoria menor, y por eso conviene a "
        "teléfonos y flujos sin fin. Las versiones posteriores agrandan el estado hasta una "
        "matriz, porque con tan poco no se podía recordar lo suficiente.",
    },
    diagram=(
        "x, mixed with the previous token",
        "-q, k, v and softmax over the past",
        "+receptance, key, value",
        "+wkv: weighted average, decaying at a learned rate",
        "~cache: grows with the context => five numbers a channel",
        "~feed-forward => channel mixing: squared ReLU, gated by receptance",
    ),
)
