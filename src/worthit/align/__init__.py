"""Learning from preferences: which of two answers is better, or whether one is good.

One method a file, its paper on top; every loss is a pure function of log-probabilities. See
docs/alignment.md for which to take, and `worthit align` for the command.
"""

from __future__ import annotations

from worthit.align.data import Demonstrations, Pairs, Ratings, split_off
from worthit.align.displacement import Displacement, displacement
from worthit.align.dpo import DPO
from worthit.align.grpo import GRPO
from worthit.align.ipo import IPO
from worthit.align.kto import KTO
from worthit.align.learn import Learned, learn_demonstrations, learn_pairs, learn_ratings, recipe
from worthit.align.orpo import ORPO
from worthit.align.ppo import PPO
from worthit.align.reward import RewardModel, load_reward_model
from worthit.align.scores import Scored, logps_of, score
from worthit.align.sequences import Demonstration, Pair, Rated
from worthit.align.simpo import SimPO
from worthit.align.spin import SPIN, self_play

__all__ = [
    "DPO",
    "GRPO",
    "IPO",
    "KTO",
    "ORPO",
    "PPO",
    "SPIN",
    "Demonstration",
    "Demonstrations",
    "Displacement",
    "Learned",
    "Pair",
    "Pairs",
    "Rated",
    "Ratings",
    "RewardModel",
    "Scored",
    "SimPO",
    "displacement",
    "learn_demonstrations",
    "learn_pairs",
    "learn_ratings",
    "load_reward_model",
    "logps_of",
    "recipe",
    "score",
    "self_play",
    "split_off",
]
