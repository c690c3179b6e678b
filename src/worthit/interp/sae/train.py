"""Train autoencoders on a stream of activations: several at once, on the same rows.

The model runs once for all of them. Around each step stands what the papers add to Adam: warm-ups
of the learning rate and of the penalty, a decay at the end, gradients of bounded norm, decoder rows
kept at length 1 where the kind wants it, and dead latents brought back: by the kind's own loss
(TopK's and BatchTopK's, JumpReLU's) or by resampling (Bricken et al. 2023, appendix "Neuron
Resampling"): their encoder and decoder rows restart at inputs that are reconstructed badly, drawn
by the square of their error.

Inputs are scaled to a mean length of sqrt(d_in), so that one penalty means the same at every layer,
and the decoder's bias starts at their mean; `finish` folds the scale into the weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from worthit.errors import InputError, WorthitError
from worthit.interp.sae.base import Objective, SparseAutoencoder
from worthit.interp.stream import Rows

# How a penalty follows the number of latents that are on, by the logarithm of their excess: at
# once, and summed up over the steps, of which a single one adds at most so much.
AT_ONCE, SUMMED, LARGEST = 1.0, 0.02, 0.02
# Of the excess, a running mean over this many batches.
SMOOTHED = 10
# New encoder rows are this long, against the mean of the living ones.
RESAMPLED_LENGTH = 0.2


@dataclass(frozen=True, kw_only=True)
class SaeRecipe:
    """How autoencoders are trained.

    Attributes:
        steps: updates.
        lr: of Adam, once warm.
        warm_up, penalty_warm_up, decay: shares of the steps.
        dead_after: a latent is dead that was not on for so many steps.
        resample_every: steps between resamplings, none in the last half; 0 for never.
        max_norm: gradients are scaled down to it.
        target_l0: penalties are turned up and down until so many latents are on; None leaves
            them as they are.
        is_scaled: whether inputs are brought to a mean length of sqrt(d_in).
    """

    steps: int = 2000
    lr: float = 1e-3
    warm_up: float = 0.02
    penalty_warm_up: float = 0.1
    decay: float = 0.2
    dead_after: int = 200
    resample_every: int = 400
    max_norm: float = 1.0
    target_l0: float | None = None
    is_scaled: bool = True
    seed: int = 0

    def lr_at(self, step: int) -> float:
        """Of update `step`, from 0."""
        up = min(1.0, (step + 1) / max(1.0, self.warm_up * self.steps))
        down = min(1.0, (self.steps - step) / max(1.0, self.decay * self.steps))
        return self.lr * min(up, down)

    def warm_at(self, step: int) -> float:
        """What penalties are multiplied by."""
        return min(1.0, (step + 1) / max(1.0, self.penalty_warm_up * self.steps))


class Training:
    """One autoencoder in training, a batch at a time."""

    def __init__(self, sae: SparseAutoencoder, recipe: SaeRecipe) -> None:
        self.sae, self.recipe = sae, recipe
        self.step = 0
        self.scale = 1.0
        self.pressure, self.held, self.excess = 1.0, 0.0, 0.0
        width = sae.config.width
        self.since_fired = torch.zeros(width, dtype=torch.int64)
        self.counts = torch.zeros(width, dtype=torch.int64)
        self.n_counted = 0
        self.n_resampled = 0
        self.generator = torch.Generator().manual_seed(recipe.seed)
        self.optimizer = torch.optim.Adam(sae.parameters(), lr=recipe.lr, fused=True)

    @torch.no_grad()
    def start(self, rows: Tensor) -> None:
        """Scale and bias of the first rows, `(n, d_in)`."""
        if self.recipe.is_scaled and self.sae.config.normalisation == "none":
            length = rows.norm(dim=-1).mean()
            if not float(length) > 0:
                raise InputError("activations are all 0 at this point; take another one")
            self.scale = self.sae.config.d_in**0.5 / float(length)
        rows, _ = self.sae.normalise(rows * self.scale)
        self.sae.b_dec.copy_(rows.mean(0))

    @property
    def dead(self) -> Tensor:
        """`(width,)` booleans."""
        return self.since_fired > self.recipe.dead_after

    def update(self, rows: Tensor) -> Objective:
        """One step on `rows` `(batch, d_in)`, as they come from the model.

        Raises:
            WorthitError: the loss is not a number any more.
        """
        sae, recipe = self.sae, self.recipe
        x, _ = sae.normalise(rows * self.scale)
        for group in self.optimizer.param_groups:
            group["lr"] = recipe.lr_at(self.step)
        made = sae.objective(x, dead=self.dead, warm=self.pressure * recipe.warm_at(self.step))
        if not bool(made.loss.isfinite()):
            raise WorthitError(
                f"step {self.step}: the loss of {sae.kind} is {float(made.loss.detach())}; "
                "lower the learning rate"
            )
        made.loss.backward()
        sae.before_step()
        nn.utils.clip_grad_norm_(sae.parameters(), recipe.max_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        sae.after_step()
        self.since_fired += 1
        self.since_fired[made.fired > 0] = 0
        self.counts += made.fired
        self.n_counted += len(rows)
        self.step += 1
        if recipe.target_l0 is not None:
            self._follow(math.log(max(made.mean_active, 0.01) / recipe.target_l0))
        every = recipe.resample_every
        if sae.resamples and every and self.step % every == 0 and self.step <= recipe.steps / 2:
            self.resample(x, made.reconstruction)
        return made

    def _follow(self, excess: float) -> None:
        """Turn the penalty up or down: proportional to the excess, and to what it was so far."""
        self.excess += (excess - self.excess) / SMOOTHED
        self.held += min(max(SUMMED * self.excess, -LARGEST), LARGEST)
        self.pressure = math.exp(self.held + AT_ONCE * self.excess)

    @torch.no_grad()
    def resample(self, x: Tensor, reconstruction: Tensor) -> None:
        """Dead latents start again at inputs that are far from their reconstruction."""
        which = self.dead.nonzero()[:, 0]
        alive = ~self.dead
        if not len(which) or not bool(alive.any()):
            return
        sae = self.sae
        weights = (x - reconstruction).square().sum(-1).square()
        drawn = torch.multinomial(weights, len(which), replacement=True, generator=self.generator)
        rows = nn.functional.normalize(x[drawn] - sae.b_dec, dim=-1)
        length = sae.encoder[alive].norm(dim=-1).mean()
        sae.encoder[which] = RESAMPLED_LENGTH * length * rows
        sae.decoder[which] = rows * sae.norms[alive].mean()
        for p in sae.parameters():
            state = self.optimizer.state.get(p, {})
            if p.shape[:1] != (sae.config.width,):
                continue
            if p.ndim == 1:
                p[which] = 0.0
            for moment in ("exp_avg", "exp_avg_sq"):
                if moment in state:
                    state[moment][which] = 0.0
        self.since_fired[which] = 0
        self.n_resampled += len(which)

    def shorten(self, steps: int) -> None:
        """End after `steps` at the latest, those done included: the rate comes down earlier."""
        steps = max(steps, self.step)
        if steps < self.recipe.steps:
            self.recipe = replace(self.recipe, steps=steps)

    def finish(self) -> SparseAutoencoder:
        """The autoencoder of the model's own activations."""
        self.sae.scale_inputs(self.scale)
        self.scale = 1.0
        self.sae.requires_grad_(requires_grad=False).eval()
        return self.sae

    def state(self) -> dict[str, Any]:
        """All of it, for a checkpoint."""
        moments = self.optimizer.state_dict()["state"]
        return {
            "sae": dict(self.sae.state_dict()),
            "moments": {str(i): dict(each) for i, each in moments.items()},
            "step": self.step,
            "steps": self.recipe.steps,
            "scale": self.scale,
            "pressure": self.pressure,
            "held": self.held,
            "excess": self.excess,
            "since_fired": self.since_fired,
            "counts": self.counts,
            "n_counted": self.n_counted,
            "n_resampled": self.n_resampled,
            "generator": self.generator.get_state(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from `state`."""
        self.sae.load_state_dict(state["sae"])
        groups = self.optimizer.state_dict()["param_groups"]
        moments = {int(i): each for i, each in state["moments"].items()}
        self.optimizer.load_state_dict({"state": moments, "param_groups": groups})
        self.shorten(state.get("steps", self.recipe.steps))
        for name in ("step", "scale", "pressure", "held", "excess", "n_counted", "n_resampled"):
            setattr(self, name, state[name])
        self.since_fired, self.counts = state["since_fired"].clone(), state["counts"].clone()
        self.generator.set_state(state["generator"])


@dataclass(frozen=True)
class Step:
    """What one step of all autoencoders gave, by name."""

    step: int
    made: dict[str, Objective]


def train_together(
    trainings: Mapping[str, Training],
    stream: Iterator[Rows],
    *,
    points: Mapping[str, str] | None = None,
    on_step: Callable[[Step], None] | None = None,
) -> None:
    """Train all on the same rows until each has had its steps, or the stream ends.

    Args:
        trainings: by name.
        stream: batches by point.
        points: of which point each is; the only one of the stream by default.
    """
    for batch in stream:
        rows_of = {
            name: batch[points[name]] if points else next(iter(batch.values()))
            for name in trainings
        }
        made = {}
        for name, training in trainings.items():
            if training.step >= training.recipe.steps:
                continue
            if training.step == 0:
                training.start(rows_of[name])
            made[name] = training.update(rows_of[name])
        if not made:
            return
        if on_step is not None:
            on_step(Step(max(t.step for t in trainings.values()), made))
        if all(t.step >= t.recipe.steps for t in trainings.values()):
            return
