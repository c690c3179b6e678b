"""One key/value head for all query heads, at equal parameters: an eighth of the cache."""

from __future__ import annotations

from worthit.lab import predict
from worthit.lab.claims import no_worse, ratio_between
from worthit.lab.context import Setting
from worthit.lab.experiment import Arm, Budget, Expectation, Experiment, Prediction
from worthit.lab.experiments._heads import (
    LOSS,
    MATCHED,
    MORE_SEEDS,
    ON_TEXT,
    as_large_as,
    decoder,
    full_heads,
    heads,
)
from worthit.lab.metrics import CACHE_BYTES, PARAMETERS, TOKEN_SECONDS
from worthit.spec.model import ModelSpec
from worthit.techniques.attention._sources import SHAZEER_2019


def one_head(budget: Budget) -> ModelSpec:
    """Eight query heads on one key/value head, the feed-forward wider by what that frees."""
    return as_large_as(full_heads(budget), decoder(heads(budget, n_kv_heads=1), budget))


def predicted(setting: Setting) -> list[Prediction]:
    """Bytes to the unit, and time; quality cost cannot see."""
    half = setting.data.seq_len // 2 if setting.data else 32
    return [
        *predict.unseen(setting, "loss"),
        *predict.counted(setting, "cache_bytes", "cache bytes"),
        *predict.counted(setting, "parameters", "parameters"),
        *predict.decode_time(setting, "token_s", prompt=half, output=half),
    ]


EXPERIMENT = Experiment(
    id="mqa",
    technique="mqa",
    question="What does an eighth of the cache cost in quality when the parameters are spent "
    "elsewhere?",
    expectation=Expectation(
        statement="Hardly anything: at equal parameters the loss is within two hundredths of a nat "
        "of full heads.",
        source=SHAZEER_2019,
        refuted_if="the loss is worse by 0.02 nats or more",
        worth_it=True,
    ),
    how=ON_TEXT,
    matched=MATCHED,
    arms=(
        Arm(id="mha", label="8 full heads", model=full_heads),
        Arm(id="mqa", label="1 shared head", model=one_head),
    ),
    metrics=(LOSS, CACHE_BYTES, TOKEN_SECONDS, PARAMETERS),
    claims=(
        no_worse(LOSS, "mqa"),
        ratio_between(CACHE_BYTES, "mqa", 0.12, 0.13),
    ),
    budgets=MORE_SEEDS,
    predicted=predicted,
    means={
        "confirmed": "An eighth of the cache for nothing that shows at this size: worth it where "
        "the cache is what decoding waits for.",
    },
)
