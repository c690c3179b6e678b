"""Linformer and Performer as language models: what leaks from the future, and what is left.

Linformer's projected keys are sums over the whole window. Trained on next tokens it sees them, and
its loss says nothing about text that is yet to be written: the same bytes are scored once more with
everything behind them cut off.
"""

from __future__ import annotations

from worthit.lab import predict
from worthit.lab.claims import Metric, at_least, at_most, no_worse
from worthit.lab.context import Setting
from worthit.lab.experiment import (
    Arm,
    Budget,
    Expectation,
    Experiment,
    Measures,
    Prediction,
    Training,
    Trial,
)
from worthit.lab.experiments._heads import (
    BUDGETS,
    LOSS,
    decoder,
    heads,
    text,
)
from worthit.lab.experiments._heads import MATCHED as MATCHED_PARAMETERS
from worthit.lab.metrics import PARAMETERS
from worthit.lab.tasks.scores import Score, score
from worthit.spec.model import ModelSpec
from worthit.techniques.attention.low_rank_attention import WANG_2020
from worthit.train import Batch

N_HEADS = 3
RANK = 16
N_FEATURES = 32
N_CUTS = 8
# Scored with everything that follows cut off, as when text is generated.
HONEST = Metric(id="honest", name="loss with the future cut off", unit="nats", margin=0.1)
LEAK = Metric(id="leak", name="loss that the future was worth", unit="nats", margin=0.02)


def exact(budget: Budget) -> ModelSpec:
    """Softmax attention of three heads."""
    width = budget.sizes["d_model"]
    mixer = heads(budget, n_heads=N_HEADS, n_kv_heads=N_HEADS, head_dim=width // N_HEADS)
    return decoder(mixer, budget)


def projected(budget: Budget) -> ModelSpec:
    """The same, every head reading 16 sums over the window in place of 64 keys."""
    width = budget.sizes["d_model"]
    n = N_HEADS
    mixer = heads(budget, n_heads=n, n_kv_heads=n, head_dim=width // n, low_rank=RANK)
    return decoder(mixer, budget)


def random_features(budget: Budget) -> ModelSpec:
    """The same, 32 random features in place of each softmax."""
    width = budget.sizes["d_model"]
    n = N_HEADS
    mixer = heads(budget, n_heads=n, n_kv_heads=n, head_dim=width // n, n_features=N_FEATURES)
    return decoder(mixer, budget)


def cut_off(trial: Trial) -> Measures:
    """The loss of some bytes with and without what stands behind them."""
    seq_len = trial.data.seq_len
    whole, cut = Score(), Score()
    for batch in trial.data.held_out("test"):
        logits = trial.model(batch.input_ids)
        for end in range(seq_len // N_CUTS, seq_len + 1, seq_len // N_CUTS):
            last = Batch(batch.input_ids[:, end - 1 : end], batch.targets[:, end - 1 : end])
            whole += score(logits[:, end - 1 : end], last).overall
            cut += score(trial.model(batch.input_ids[:, :end])[:, -1:], last).overall
    return {"honest": cut.loss, "leak": cut.loss - whole.loss}


def predicted(setting: Setting) -> list[Prediction]:
    """Size alone; quality cost cannot see."""
    return [
        *predict.unseen(setting, "honest", "leak"),
        *predict.counted(setting, "parameters", "parameters"),
    ]


EXPERIMENT = Experiment(
    id="low-rank-attention",
    technique="low-rank-attention",
    question="Can Linformer or Performer stand in for attention in a model that writes?",
    expectation=Expectation(
        statement="Linformer cannot: its loss is borrowed from the tokens that it should predict. "
        "Performer is causal and stays within a tenth of a nat.",
        source=WANG_2020,
        refuted_if="cutting off the future costs Linformer less than 0.1 nats, or costs Performer "
        "anything, or Performer is worse than attention by 0.1 nats",
        worth_it=False,
    ),
    how=Training(data=text, score=cut_off),
    matched=MATCHED_PARAMETERS,
    arms=(
        Arm(id="attention", label="attention", model=exact),
        Arm(id="linformer", label="Linformer, rank 16", model=projected),
        Arm(id="performer", label="Performer, 32 features", model=random_features),
    ),
    metrics=(HONEST, LEAK, LOSS, PARAMETERS),
    claims=(
        at_least(LEAK, "linformer", 0.1),
        at_most(LEAK, "performer", 0.001),
        no_worse(HONEST, "performer"),
    ),
    budgets=BUDGETS,
    predicted=predicted,
    means={
        "refuted": "Linformer cannot write, as expected: cut off from the future it loses six "
        "tenths of a nat. Performer can, without a leak, but thirty-two random features blur the "
        "sharp look at single bytes that this text needs, and cost two tenths.",
        "confirmed": "Projecting the keys of the whole text is for reading, not for writing; "
        "random features may write, at a loss that is small here.",
    },
)
