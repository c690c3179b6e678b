"""A selective state in place of the tutor's attention, as many parameters.

Linear time and constant memory pay over thousands of tokens. Over 32 attention is cheap, and the
recurrence has to be run step by step.
"""

from __future__ import annotations

from worthit.lab import models, predict
from worthit.lab.claims import not_better
from worthit.lab.context import Setting
from worthit.lab.experiment import Arm, Budget, Expectation, Experiment, Matched, Prediction
from worthit.lab.experiments._tutor import BUDGETS, EXACT_MATCH, EXPECTED, ON_TUTOR
from worthit.lab.metrics import (
    CACHE_BYTES,
    LOSS,
    PARAMETERS,
    STEP_SECONDS,
    TOKEN_SECONDS,
)
from worthit.spec.model import Mamba, ModelSpec


def selective(budget: Budget) -> ModelSpec:
    """The tutor with a Mamba mixer of the paper's state and convolution.

    Its inner width is 7/6 of `d_model` in place of the paper's twice: with the feed-forward kept
    beside it, that is as many parameters as the attention had.
    """
    spec = models.tutor(budget)
    mixer = Mamba(
        d_inner=7 * spec.d_model // 6 // 8 * 8,
        d_state=16,
        d_conv=4,
        dt_rank=-(-spec.d_model // 16),
    )
    return spec.map_mixers(lambda attention: mixer)


def predicted(setting: Setting) -> list[Prediction]:
    """Memory and time; what a state can hold cost cannot see."""
    half = setting.data.seq_len // 2 if setting.data else 16
    return [
        *predict.unseen(setting, "exact_match", "loss"),
        *predict.counted(setting, "cache_bytes", "cache bytes"),
        *predict.train_time(setting, "step_s"),
        *predict.decode_time(setting, "token_s", prompt=half, output=half),
    ]


EXPERIMENT = Experiment(
    id="mamba",
    technique="mamba",
    question="Does a selective state space serve the grammar tutor better than attention?",
    expectation=Expectation(
        statement="No gain in quality or time at 32 tokens: the bottleneck that Mamba relieves, "
        "the cost of long sequences, is absent.",
        source=EXPECTED,
        refuted_if="exact match rises by 5 points or more, or tokens come at least 10 % sooner",
        worth_it=False,
    ),
    how=ON_TUTOR,
    matched=Matched(
        what=("parameters", "tokens"),
        within=0.05,
        because="the feed-forward, the norms and the learned positions stay; only the mixer "
        "differs, at as many parameters",
    ),
    arms=(
        Arm(id="attention", label="attention", model=models.tutor),
        Arm(id="mamba", label="Mamba", model=selective),
    ),
    metrics=(EXACT_MATCH, TOKEN_SECONDS, STEP_SECONDS, CACHE_BYTES, LOSS, PARAMETERS),
    claims=(not_better(EXACT_MATCH, "mamba"), not_better(TOKEN_SECONDS, "mamba")),
    budgets=BUDGETS,
    predicted=predicted,
    gaps={
        "step_s": "cost counts the arithmetic and the bytes of the scan; here it is run by eager "
        "operations, each of which starts by itself and keeps its result for the backward pass",
    },
    means={
        "confirmed": "Nothing in 32 tokens is long enough for a state to pay: never.",
    },
)
