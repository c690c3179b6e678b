"""A recurrence of fixed size in place of attention: loss on text, and bytes kept."""

from __future__ import annotations

from dataclasses import replace

from worthit.lab import models
from worthit.lab.claims import no_worse, ratio_between
from worthit.lab.experiment import Arm, Budget, Expectation, Experiment, Matched, Training
from worthit.lab.experiments._states import STATE_BYTES, budgets, unseen
from worthit.lab.experiments._text import LOSS, RECIPE, text
from worthit.lab.metrics import PARAMETERS
from worthit.spec.model import ChannelMix, FeedForward, ModelSpec, Rwkv
from worthit.techniques.ssm.rwkv import PENG_2023


def transformer(budget: Budget) -> ModelSpec:
    """Two layers of attention and plain feed-forwards."""
    d = budget.sizes["d_model"]
    ffn = FeedForward(d_ff=4 * d, is_gated=False, activation="relu2")
    return models.decoder(d, n_layers=2, ffn=ffn)


def recurrence(budget: Budget) -> ModelSpec:
    """Two layers of RWKV-4: time mixing and channel mixing."""
    d = budget.sizes["d_model"]
    spec = models.decoder(
        d, n_layers=2, mixers=Rwkv(d_attention=d), position="nope", norm="layernorm"
    )
    return spec.map_layers(lambda layer: replace(layer, ffn=ChannelMix(d_ff=7 * d // 2)))


EXPERIMENT = Experiment(
    id="rwkv",
    technique="rwkv",
    question="Does RWKV reach attention's loss on text at an equal size?",
    expectation=Expectation(
        statement="On a par with transformers of the same size and training, with a state that "
        "does"
        "not grow.",
        source=PENG_2023,
        refuted_if="the loss is 0.05 nats worse",
        worth_it=True,
    ),
    how=Training(data=text, recipe=RECIPE),
    matched=Matched(
        what=("parameters", "tokens"),
        within=0.06,
        because="the same width and depth; channel mixing is narrower, so that sizes agree",
    ),
    arms=(
        Arm(id="attention", label="attention", model=transformer),
        Arm(id="rwkv", label="RWKV-4", model=recurrence),
    ),
    metrics=(LOSS, STATE_BYTES, PARAMETERS),
    claims=(no_worse(LOSS, "rwkv"), ratio_between(STATE_BYTES, "rwkv", 0.0, 0.5)),
    budgets=budgets(),
    predicted=unseen,
    means={
        "confirmed": "On text of this length nothing is lost with a state of fixed size; recall is "
        "another question, asked by linear-attention and its like.",
        "refuted": "At this size attention learns faster from text than RWKV's decay.",
    },
)
