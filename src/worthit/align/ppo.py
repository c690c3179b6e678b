"""Proximal policy optimisation, as RLHF has it: each token an action, one reward at the end.

Schulman et al. 2017, "Proximal Policy Optimization Algorithms", arXiv:1707.06347, equations 7 and
9, with generalised advantages (Schulman et al. 2015, arXiv:1506.02438, equation 16) and the KL to
the reference in the reward (Ziegler et al. 2019, arXiv:1909.08593, equation 2):

    L = -mean_t min(rho_t A_t, clip(rho_t, 1 - eps, 1 + eps) A_t)
        + c mean_t 1/2 max((V_t - R_t)^2, (V_t^clip - R_t)^2)
    rho_t = pi(a_t | s_t) / pi_old(a_t | s_t)
    A_t = sum_k (gamma lambda)^k delta_{t+k},   delta_t = r_t + gamma V_{t+1} - V_t
    r_t = -beta log(pi_old / pi_ref)(a_t | s_t) + [t is last] r(x, y)

| paper | here |
|---|---|
| s_t, a_t | prompt and completion so far; the next token |
| eps, gamma, lambda, beta, c | `clip`, `discount`, `trace`, `beta`, `value_weight` |
| V | `WithValue`: a linear head on the states that the output head reads |
| A | whitened over the batch's tokens |

V after the last token is 0: a completion that was cut off by the limit counts as ended, and the
reward is of what was said. To learn longer ones than the limit, bootstrap with `last_values`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from worthit._record import record
from worthit.align.dpo import positive
from worthit.errors import InputError
from worthit.nn import Decoder
from worthit.nn.tokens import tokens_of


def token_rewards(
    rewards: Tensor, mask: Tensor, logps: Tensor, reference: Tensor, *, beta: float
) -> Tensor:
    """r_t, `(n, width)`: the price of leaving the reference, and the reward on the last token.

    Args:
        rewards: `(n,)`, of whole completions.
        mask: `(n, width)`, True on tokens of a completion; they follow each other.
        logps, reference: `(n, width)`, of the tokens that were said.
    """
    priced = -beta * (logps - reference) * mask
    places = torch.arange(mask.shape[1], device=mask.device)
    last = torch.where(mask, places, -1).amax(dim=1, keepdim=True)
    return priced + rewards[:, None] * (places == last)


def advantages_of(
    rewards: Tensor,
    values: Tensor,
    mask: Tensor,
    *,
    discount: float = 1.0,
    trace: float = 0.95,
    last_values: Tensor | None = None,
) -> Tensor:
    """A_t, `(n, width)`, 0 outside of `mask`.

    Args:
        rewards, values: `(n, width)`, r_t and V_t.
        mask: True on tokens of a completion, which follow each other.
        last_values: `(n,)`, V after the last token; 0 where the completion has ended.
    """
    n, width = rewards.shape
    after = rewards.new_zeros(n) if last_values is None else last_values
    carried = rewards.new_zeros(n)
    found = torch.zeros_like(rewards)
    for t in range(width - 1, -1, -1):
        here = mask[:, t]
        delta = rewards[:, t] + discount * after - values[:, t]
        carried = torch.where(here, delta + discount * trace * carried, carried)
        found[:, t] = torch.where(here, carried, 0.0)
        after = torch.where(here, values[:, t], after)
    return found


def whitened(x: Tensor, mask: Tensor) -> Tensor:
    """`x` with mean 0 and variance 1 over `mask`, 0 elsewhere; as it is where all are alike."""
    inside = x[mask]
    if len(inside) < 2:
        return x
    return torch.where(mask, (x - inside.mean()) / (inside.std() + 1e-8), 0.0)


def clipped_loss(
    logps: Tensor, old: Tensor, advantages: Tensor, *, low: float, high: float
) -> Tensor:
    """-min(rho A, clip(rho, 1 - low, 1 + high) A), token by token."""
    rho = (logps - old).exp()
    return -torch.min(rho * advantages, rho.clamp(1 - low, 1 + high) * advantages)


def value_loss(values: Tensor, old: Tensor, returns: Tensor, *, clip: float) -> Tensor:
    """Half the squared error, of the worse of V and V held within `clip` of what it was."""
    held = old + (values - old).clamp(-clip, clip)
    return 0.5 * torch.max((values - returns) ** 2, (held - returns) ** 2)


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """The mean of `x` over `mask`."""
    return (x * mask).sum() / mask.sum().clamp(min=1)


@record
class PPO:
    """Settings of PPO."""

    beta: float = 0.05
    clip: float = 0.2
    value_clip: float = 0.2
    value_weight: float = 0.1
    discount: float = 1.0
    trace: float = 0.95

    def __post_init__(self) -> None:
        positive("clip", self.clip)
        positive("value_clip", self.value_clip)
        for name in ("beta", "value_weight"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise InputError(f"{name}: must be 0 or more, got {getattr(self, name)}")
        for name in ("discount", "trace"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{name}: must be from 0 to 1, got {getattr(self, name)}")


class WithValue(nn.Module):
    """A decoder and V, from one pass; the value head starts at zero."""

    def __init__(self, decoder: Decoder) -> None:
        super().__init__()
        self.decoder = decoder
        self.value = nn.Linear(
            decoder.spec.d_model, 1, bias=False, device=decoder.device, dtype=torch.float32
        )
        nn.init.zeros_(self.value.weight)

    def forward(self, input_ids: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Logits `(n rows, vocab_size)` and values `(n rows,)` of some tokens."""
        decoder = self.decoder
        tokens = tokens_of(input_ids, past=0, attention_mask=None)
        tokens.relative_bias, tokens.low_rank = decoder.relative_bias, decoder.low_rank
        x = decoder.run(decoder.embed(input_ids, tokens), tokens, None)
        x = x.flatten(0, 1).index_select(0, rows)
        states = x if decoder.final_norm is None else decoder.final_norm(x)
        return decoder.logits(x), self.value(states.float()).squeeze(-1)
