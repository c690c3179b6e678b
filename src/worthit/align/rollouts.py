"""Learning from rewards of the model's own answers: the RLHF baseline, by GRPO or PPO.

An update asks prompts, lets the model as it is answer, rewards whole answers and steps on them.
`Rollouts` is that as the data of `worthit.train`: a batch is drawn from the model itself, so the
loop, its checkpoints and its resumption stay what they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Self

import torch
from torch import Tensor, nn

from worthit.align.grpo import GRPO, dead_share, group_advantages, grpo_loss
from worthit.align.ppo import (
    PPO,
    WithValue,
    advantages_of,
    clipped_loss,
    masked_mean,
    token_rewards,
    value_loss,
    whitened,
)
from worthit.align.reference import as_reference
from worthit.align.sample import drawn_seed, sample
from worthit.align.scores import token_logps
from worthit.align.sequences import Ids, rows_of
from worthit.errors import InputError
from worthit.nn import Decoder
from worthit.train.batch import IGNORE, Batch
from worthit.train.objective import device_of

# From prompts, by their places in the data, and completions to one number each.
Reward = Callable[[Sequence[int], Sequence[Ids]], Sequence[float]]


@dataclass(frozen=True)
class Rollout(Batch):
    """Answers with their rewards; the matrices are `(batch, width)`, 0 outside of answers.

    Attributes:
        rewards: `(batch,)`.
        advantages: `(batch,)` of GRPO, a matrix of PPO.
        old: log-probabilities under the policy that answered; None where that is the one that
            learns, at its first step on them.
        reference: the same under the reference; None where nothing reads it.
        values, returns: of PPO.
        is_by_answer: whether the loss is a mean over answers rather than over tokens.
    """

    rewards: Tensor | None = None
    advantages: Tensor | None = None
    old: Tensor | None = None
    reference: Tensor | None = None
    values: Tensor | None = None
    returns: Tensor | None = None
    is_by_answer: bool = False

    @property
    def weight(self) -> int:
        """How many things the loss is the mean of."""
        return len(self.input_ids) if self.is_by_answer else super().weight

    def to(self, device: torch.device) -> Self:
        """Itself: answers are made where the model is."""
        assert self.input_ids.device == device
        return self

    def part(self, i: int, n: int) -> Self:
        """The `i`-th of `n` parts: answers were compared when they were rewarded."""
        each = len(self.input_ids) // n
        rows = slice(i * each, (i + 1) * each)
        return replace(self, **{name: tensor[rows] for name, tensor in self.tensors().items()})

    def tensors(self) -> dict[str, Tensor]:
        """What there is, by name; every first axis is that of the answers."""
        held = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: value for name, value in held.items() if isinstance(value, Tensor)}


class Rollouts:
    """Prompts as `Data`, whose batches the model answers.

    Args:
        model: a `Decoder` for GRPO, a `WithValue` for PPO: what is trained.
        reward: rewards of completions.
        method: how advantages are made.
        max_tokens, stop_ids, temperature: of the answers.
        frozen: the reference; None is `model` without its adapters, where the method reads one.
        n_updates: steps on the same answers.
    """

    def __init__(
        self,
        name: str,
        model: nn.Module,
        prompts: Sequence[Ids],
        reward: Reward,
        method: GRPO | PPO,
        *,
        max_tokens: int,
        stop_ids: Sequence[int],
        temperature: float = 1.0,
        frozen: nn.Module | None = None,
        n_updates: int = 1,
    ) -> None:
        if not prompts:
            raise InputError(f"{name}: has no prompts to answer")
        self.name = name
        self.model = model
        self.decoder: Decoder = model.decoder if isinstance(model, WithValue) else model
        self.prompts = list(prompts)
        self.reward = reward
        self.method = method
        self.max_tokens, self.stop_ids = max_tokens, tuple(stop_ids)
        self.temperature = temperature
        self.frozen = frozen
        self.n_updates = n_updates
        self.vocab_size = self.decoder.spec.vocab_size
        self.seq_len = max(map(len, prompts)) + max_tokens
        self.is_by_answer = isinstance(method, GRPO) and method.normaliser != "tokens"
        # Of every batch that was answered: rewards, lengths, dead groups.
        self.seen: list[dict[str, float]] = []
        self._current: Rollout | None = None
        self._n_used = 0

    def batch(self, generator: torch.Generator, size: int) -> Rollout:
        """`size` answers; a multiple of the group for GRPO."""
        if self._current is None or self._n_used >= self.n_updates:
            self._current, self._n_used = self._answered(generator, size), 0
        self._n_used += 1
        return self._current

    def held_out(self, split: str = "validation") -> Iterator[Batch]:
        """Nothing: what is held out is asked by `asked`."""
        return iter(())

    def memory(self) -> dict[str, Any]:
        """What the next batch depends on beside the generator: answers not yet used up."""
        is_open = self._n_used < self.n_updates
        current = self._current.tensors() if self._current is not None and is_open else None
        return {"current": current, "n_used": self._n_used, "seen": self.seen}

    def remember(self, memory: Mapping[str, Any]) -> None:
        """Take `memory` back."""
        device = device_of(self.model)
        current = memory["current"]
        if current is not None:
            there = {name: tensor.to(device) for name, tensor in current.items()}
            self._current = Rollout(**there, is_by_answer=self.is_by_answer)
        self._n_used, self.seen = memory["n_used"], list(memory["seen"])

    def _answered(self, generator: torch.Generator, size: int) -> Rollout:
        group = self.method.group if isinstance(self.method, GRPO) else 1
        if size % group:
            raise InputError(
                f"batch_size: must be a multiple of the group of {group} answers, got {size}"
            )
        n = size // group
        order = torch.randperm(len(self.prompts), generator=generator).tolist()
        places = [order[i % len(order)] for i in range(n) for _ in range(group)]
        asked = [self.prompts[i] for i in places]
        said = sample(
            self.decoder,
            asked,
            max_tokens=self.max_tokens,
            stop_ids=self.stop_ids,
            temperature=self.temperature,
            seed=drawn_seed(generator),
        )
        rewards = torch.tensor(list(self.reward(places, said)), dtype=torch.float32)
        if not bool(rewards.isfinite().all()):
            raise InputError("reward: must be finite for every answer")
        device = device_of(self.model)
        plain = rows_of(list(zip(asked, said, strict=True))).to(device)
        rewards = rewards.to(device)
        is_group = isinstance(self.method, GRPO)
        self.seen.append(
            {
                "reward": float(rewards.mean()),
                "tokens": sum(map(len, said)) / len(said),
                **({"dead": dead_share(rewards.view(n, group))} if is_group else {}),
            }
        )
        made: Rollout = (
            self._of_group(plain, rewards, group) if is_group else self._of_values(plain, rewards)
        )
        return made

    @torch.no_grad()
    def _of_group(self, batch: Batch, rewards: Tensor, group: int) -> Rollout:
        method = self.method
        assert isinstance(method, GRPO)
        advantages = group_advantages(rewards.view(-1, group), scale=method.scale).flatten()
        old = logp_matrix(self.decoder, batch) if self.n_updates > 1 else None
        reference = None
        if method.beta:
            with as_reference(self.decoder, self.frozen) as model:
                reference = logp_matrix(model, batch)
        return Rollout(
            batch.input_ids,
            batch.targets,
            rewards=rewards,
            advantages=advantages,
            old=old,
            reference=reference,
            is_by_answer=self.is_by_answer,
        )

    @torch.no_grad()
    def _of_values(self, batch: Batch, rewards: Tensor) -> Rollout:
        method, model = self.method, self.model
        assert isinstance(method, PPO)
        assert isinstance(model, WithValue)
        logps, values = policy_and_values(model, batch)
        mask = batch.targets != IGNORE
        if method.beta:
            with as_reference(self.decoder, self.frozen) as other:
                reference = logp_matrix(other, batch)
        else:
            reference = logps
        per_token = token_rewards(rewards, mask, logps, reference, beta=method.beta)
        advantages = advantages_of(
            per_token, values, mask, discount=method.discount, trace=method.trace
        )
        return Rollout(
            batch.input_ids,
            batch.targets,
            rewards=rewards,
            advantages=whitened(advantages, mask),
            old=logps,
            reference=reference,
            values=values,
            returns=advantages + values,
        )


class GroupLoss:
    """GRPO's loss of a batch of answers, as `worthit.train` takes it."""

    def __init__(self, method: GRPO, *, max_tokens: int) -> None:
        self.method, self.max_tokens = method, max_tokens

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        """A scalar with gradients."""
        assert isinstance(batch, Rollout)
        assert batch.advantages is not None
        logps = logp_matrix(model, batch)
        m = self.method
        return grpo_loss(
            logps,
            logps.detach() if batch.old is None else batch.old,
            batch.advantages,
            batch.targets != IGNORE,
            reference=batch.reference,
            beta=m.beta,
            clip=m.clip,
            clip_high=m.clip_high,
            normaliser=m.normaliser,
            max_tokens=self.max_tokens,
        )


class ActorCriticLoss:
    """PPO's loss of a batch of answers, as `worthit.train` takes it."""

    def __init__(self, method: PPO) -> None:
        self.method = method

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        """A scalar with gradients."""
        assert isinstance(batch, Rollout)
        assert isinstance(model, WithValue)
        assert batch.old is not None
        assert batch.advantages is not None
        assert batch.values is not None
        assert batch.returns is not None
        m, mask = self.method, batch.targets != IGNORE
        logps, values = policy_and_values(model, batch)
        policy = clipped_loss(logps, batch.old, batch.advantages, low=m.clip, high=m.clip)
        value = value_loss(values, batch.values, batch.returns, clip=m.value_clip)
        return masked_mean(policy, mask) + m.value_weight * masked_mean(value, mask)


def logp_matrix(model: nn.Module, batch: Batch) -> Tensor:
    """`(batch, width)`, log-probabilities of targets, 0 elsewhere."""
    logps, rows = token_logps(model, batch)
    return _matrix(logps, rows, batch)


def policy_and_values(model: WithValue, batch: Batch) -> tuple[Tensor, Tensor]:
    """`(batch, width)` twice: log-probabilities of targets, and V before each of them."""
    targets = batch.targets.flatten()
    rows = (targets != IGNORE).nonzero().squeeze(1)
    logits, values = model(batch.input_ids, rows)
    logps = -nn.functional.cross_entropy(logits.float(), targets[rows], reduction="none")
    return _matrix(logps, rows, batch), _matrix(values, rows, batch)


def _matrix(values: Tensor, rows: Tensor, batch: Batch) -> Tensor:
    empty = values.new_zeros(batch.targets.numel())
    return empty.index_copy(0, rows, values).view(batch.targets.shape)


def asked(
    model: nn.Module,
    prompts: Sequence[Ids],
    reward: Reward,
    *,
    max_tokens: int,
    stop_ids: Sequence[int],
    temperature: float = 0.0,
    seed: int = 0,
) -> dict[str, float]:
    """Mean reward and length of the answers to held-out prompts, greedy by default.

    `reward` gets places in `prompts`.
    """
    if not prompts:
        return {}
    decoder = model.decoder if isinstance(model, WithValue) else model
    said = sample(
        decoder,
        prompts,
        max_tokens=max_tokens,
        stop_ids=stop_ids,
        temperature=temperature,
        seed=seed,
    )
    rewards = reward(range(len(prompts)), said)
    return {
        "reward": sum(rewards) / len(said),
        "tokens": sum(map(len, said)) / len(said),
    }
