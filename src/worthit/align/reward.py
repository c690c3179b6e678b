"""A reward model: one number for a completion, learnt from which of two was preferred.

Bradley & Terry 1952; as a language model's loss, Ouyang et al. 2022, "Training language models to
follow instructions with human feedback", arXiv:2203.02155, equation 1:

    -log sigma(r(x, y_w) - r(x, y_l) - m) + c (r(x, y_w) + r(x, y_l))^2

| symbol | here |
|---|---|
| r(x, y) | `RewardModel`: a linear head on the last token's normalised state |
| m | `margin`: how much better the chosen one is, where annotators said so (Llama 2) |
| c | `centring` |

Differences alone are fitted, so that r has a free offset: two reward models are not to be compared,
nor a threshold set, before it is taken out. c > 0 holds it near 0 (Eisenstein et al. 2023,
arXiv:2312.09244, section 2); `centred` takes it out of numbers that are there already.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from worthit.align.sequences import Completions, Ids, rows_of
from worthit.errors import SpecError
from worthit.nn import Decoder
from worthit.nn.load import load_model, save_model
from worthit.train.batch import IGNORE, Batch

HEAD = "reward_head.safetensors"
SCORED_ROWS = 32


def reward_loss(
    chosen: Tensor, rejected: Tensor, *, margin: Tensor | float = 0.0, centring: float = 0.0
) -> Tensor:
    """The loss of each pair, `(n,)`, from the rewards of its completions."""
    fit = -functional.logsigmoid(chosen - rejected - margin)
    return fit + centring * (chosen + rejected) ** 2


def centred(rewards: Tensor) -> Tensor:
    """`rewards` without the offset that their differences do not fix."""
    return rewards - rewards.mean()


class RewardModel(nn.Module):
    """A decoder with one number in place of its vocabulary; the head starts at zero."""

    def __init__(self, decoder: Decoder) -> None:
        super().__init__()
        self.decoder = decoder
        self.value = nn.Linear(
            decoder.spec.d_model, 1, bias=False, device=decoder.device, dtype=decoder.dtype
        )
        nn.init.zeros_(self.value.weight)

    def forward(self, input_ids: Tensor, last: Tensor) -> Tensor:
        """Rewards `(batch,)`, read at place `last` `(batch,)` of each row."""
        states = self.decoder.hidden_states(input_ids)
        rows = torch.arange(len(last), device=last.device)
        rewards: Tensor = self.value(states[rows, last]).squeeze(-1).float()
        return rewards

    def rewards(self, batch: Batch) -> Tensor:
        """Rewards of rows that hold their last tokens; see `rows_of(has_last=True)`."""
        return self(batch.input_ids, last_places(batch))

    @torch.no_grad()
    def score(self, sequences: Sequence[tuple[Ids, Ids]]) -> Tensor:
        """Rewards of completions after their prompts, on the CPU."""
        found = []
        for start in range(0, len(sequences), SCORED_ROWS):
            batch = rows_of(sequences[start : start + SCORED_ROWS], has_last=True)
            found.append(self.rewards(batch.to(self.decoder.device)).cpu())
        return torch.cat(found)

    def save(self, folder: str | Path) -> None:
        """A checkpoint of the decoder with the head beside it."""
        from safetensors.torch import save_file

        save_model(self.decoder, folder)
        weight = self.value.weight.detach().cpu().contiguous()
        save_file({"value.weight": weight}, Path(folder) / HEAD)


def load_reward_model(folder: str | Path) -> RewardModel:
    """What `RewardModel.save` wrote.

    Raises:
        SpecError: a checkpoint without a reward head, or with one of another width.
    """
    from safetensors.torch import load_file

    path = Path(folder) / HEAD
    if not path.is_file():
        raise SpecError(
            f"{folder}: is no reward model: no {HEAD}; make one with "
            "worthit align MODEL DATA OUT --method reward"
        )
    model = RewardModel(load_model(folder))
    weight = load_file(path)["value.weight"]
    if weight.shape != model.value.weight.shape:
        raise SpecError(
            f"{path}: must be {list(model.value.weight.shape)}, got {list(weight.shape)}"
        )
    with torch.no_grad():
        model.value.weight.copy_(weight)
    model.eval()
    return model


def last_places(batch: Batch) -> Tensor:
    """Where each row's completion ends, `(batch,)`: one beyond its last scored place."""
    width = batch.targets.shape[1]
    places = torch.arange(width, device=batch.targets.device)
    return torch.where(batch.targets != IGNORE, places + 1, 0).amax(dim=1).clamp(max=width - 1)


class RewardLoss:
    """The mean Bradley-Terry loss of a batch of pairs, as `worthit.train` takes it."""

    def __init__(self, centring: float = 0.0) -> None:
        self.centring = centring

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        """A scalar with gradients."""
        assert isinstance(model, RewardModel)
        assert isinstance(batch, Completions)
        chosen, rejected = model.rewards(batch).chunk(2)
        return reward_loss(chosen, rejected, centring=self.centring).mean()
