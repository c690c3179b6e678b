"""Training at the scale of an experiment: a readable loop, optimizers, number formats.

`train` takes one model through a `Recipe`; `train_many` takes one model a seed, side by side.
"""

from __future__ import annotations

from worthit.train.batch import IGNORE, Batch, Data
from worthit.train.history import History, read_metrics
from worthit.train.init import initialise, seeded
from worthit.train.loop import Diverged, train
from worthit.train.many import Trained, train_many
from worthit.train.objective import mean_loss, next_token_loss
from worthit.train.progress import Progress, Update
from worthit.train.recipe import Recipe

__all__ = [
    "IGNORE",
    "Batch",
    "Data",
    "Diverged",
    "History",
    "Progress",
    "Recipe",
    "Trained",
    "Update",
    "initialise",
    "mean_loss",
    "next_token_loss",
    "read_metrics",
    "seeded",
    "train",
    "train_many",
]
