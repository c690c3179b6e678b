"""One latent in place of keys and values, and a third of the tutor's cache.

The cache of 32 tokens is 49 kB: latent attention divides by three what nobody waits for. Grouped
heads with as small a cache and as many parameters stand beside it.
"""

from __future__ import annotations

from dataclasses import replace

from worthit.lab import models, predict
from worthit.lab.claims import no_worse, not_better, ratio_between
from worthit.lab.context import Setting
from worthit.lab.experiment import (
    Arm,
    Budget,
    Expectation,
    Experiment,
    Matched,
    Prediction,
)
from worthit.lab.experiments._tutor import BUDGETS, EXACT_MATCH, EXPECTED, ON_TUTOR
from worthit.lab.metrics import CACHE_BYTES, LOSS, PARAMETERS, TOKEN_SECONDS
from worthit.spec.model import Attention, FeedForward, LatentAttention, Layer, ModelSpec


def latent(budget: Budget) -> ModelSpec:
    """The tutor with keys and values rebuilt from a latent of a third of their width.

    Positions are added to the embeddings, so that no channels are set apart for a rotation. With
    this rank the low-rank factors hold as many parameters as the matrices that they replace.
    """
    spec = models.tutor(budget)

    def compress(mixer: object) -> LatentAttention:
        assert isinstance(mixer, Attention)
        return LatentAttention(
            n_heads=mixer.n_heads,
            kv_lora_rank=2 * spec.d_model // 3,
            qk_nope_head_dim=mixer.head_dim,
            qk_rope_head_dim=0,
            v_head_dim=mixer.head_dim,
        )

    return spec.map_mixers(compress)


def grouped(budget: Budget) -> ModelSpec:
    """The tutor with a third of its key/value heads, the feed-forward wider by what that frees."""
    spec = models.tutor(budget)

    def group(layer: Layer) -> Layer:
        (mixer,), ffn = layer.mixers, layer.ffn
        assert isinstance(mixer, Attention)
        assert isinstance(ffn, FeedForward)
        n_kv_heads = max(mixer.n_heads // 3, 1)
        freed = 2 * (mixer.n_heads - n_kv_heads) * mixer.head_dim
        return replace(
            layer,
            mixers=(replace(mixer, n_kv_heads=n_kv_heads),),
            ffn=replace(ffn, d_ff=ffn.d_ff + freed // 2),
        )

    return spec.map_layers(group)


def predicted(setting: Setting) -> list[Prediction]:
    """Bytes to the unit, and time; quality cost cannot see."""
    half = setting.data.seq_len // 2 if setting.data else 16
    return [
        *predict.unseen(setting, "exact_match", "loss"),
        *predict.counted(setting, "cache_bytes", "cache bytes"),
        *predict.counted(setting, "parameters", "parameters"),
        *predict.decode_time(setting, "token_s", prompt=half, output=half),
    ]


EXPERIMENT = Experiment(
    id="mla",
    technique="mla",
    question="Does latent attention buy the grammar tutor anything for its smaller cache?",
    expectation=Expectation(
        statement="The cache falls to a third as derived, quality stays, and no token comes "
        "sooner: the saving is irrelevant at this scale.",
        source=EXPECTED,
        refuted_if="tokens come at least 10 % sooner, or exact match falls by 5 points or more",
        worth_it=False,
    ),
    how=ON_TUTOR,
    matched=Matched(
        what=("parameters", "tokens"),
        within=0.05,
        because="the latent's rank is where its factors weigh as much as the matrices they "
        "replace; grouped heads give what they free to the feed-forward",
    ),
    arms=(
        Arm(id="mha", label="full heads", model=models.tutor),
        Arm(id="mla", label="latent", model=latent),
        Arm(id="gqa", label="grouped heads", model=grouped),
    ),
    metrics=(EXACT_MATCH, CACHE_BYTES, TOKEN_SECONDS, LOSS, PARAMETERS),
    claims=(
        ratio_between(CACHE_BYTES, "mla", 0.0, 0.35),
        not_better(TOKEN_SECONDS, "mla"),
        no_worse(EXACT_MATCH, "mla"),
    ),
    budgets=BUDGETS,
    predicted=predicted,
    means={
        "confirmed": "The cache shrinks exactly as derived and nothing else changes: never, at 32 "
        "tokens and one user.",
    },
)
