"""Several runs as one: their models folded together, and stepped by one optimizer.

Losses, gradients' norms and updates are over each model's own slice, so that no run sees another.
What can differ from a run alone is the order in which products are summed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, pad

from worthit.train.average import Average
from worthit.train.batch import IGNORE, Batch, Data
from worthit.train.fold import CannotStack, fold
from worthit.train.interrupt import interrupts_wait
from worthit.train.journal import Journal
from worthit.train.loop import first_not_finite, precision, seed_for
from worthit.train.objective import FEW, Evaluate, device_of, n_targets
from worthit.train.optimizers import make_optimizer, set_lr
from worthit.train.progress import Pace, Progress
from worthit.train.recipe import Recipe
from worthit.train.schedule import lr_at, lr_ratio


class Stack:
    """Models of one shape, and what changes while they are trained by `next_token_loss`.

    Raises:
        CannotStack: they cannot be trained as one.
    """

    def __init__(self, models: Sequence[nn.Module], recipe: Recipe, seeds: Sequence[int]) -> None:
        if recipe.n_accumulate > 1:
            raise CannotStack("batches are run in parts")
        self.models, self.recipe, self.seeds = list(models), recipe, tuple(seeds)
        self.device = device_of(models[0])
        self.whole = fold(models)
        self.all = dict(self.whole.named_parameters())
        self.parameters = {name: p for name, p in self.all.items() if p.requires_grad}
        self.optimizer = make_optimizer(models[0], recipe, self.all)
        self.average = Average(self.parameters, recipe.ema_decay)
        self.generators = [
            torch.Generator().manual_seed(seed_for("data", seed)) for seed in self.seeds
        ]
        # Nothing random happens in these passes; kept for a run that is continued alone.
        self.passes = [
            torch.Generator().manual_seed(seed_for("passes", seed)).get_state()
            for seed in self.seeds
        ]

    def losses(self, batch: Batch) -> Tensor:
        """Mean losses `(models,)`, each on its own part of `batch` `(models, rows, seq)`."""
        n_models = len(self.models)
        input_ids, targets = batch.input_ids.flatten(0, 1), batch.targets.flatten(1)
        is_target = targets != IGNORE
        counts = is_target.sum(dim=1)
        most = int(counts.max())
        with precision(self.recipe, self.device):
            if most <= FEW * targets.shape[1]:
                # Tokens with a target first, in their order. Who has fewer repeats its first one,
                # unscored: a number format that scales by the largest value sees no other tokens.
                rows = is_target.byte().argsort(dim=1, descending=True, stable=True)[:, :most]
                is_spare = torch.arange(most, device=self.device) >= counts[:, None]
                rows = torch.where(is_spare, rows[:, :1], rows)
                targets = targets.gather(1, rows).masked_fill(is_spare, IGNORE)
                first = torch.arange(n_models, device=self.device) * is_target.shape[1]
                logits = self.whole.logits_at(input_ids, (rows + first[:, None]).flatten())
            else:
                logits = self.whole(input_ids).flatten(0, 1)
        each = cross_entropy(
            logits.float(), targets.flatten(), ignore_index=IGNORE, reduction="none"
        )
        return each.view(n_models, -1).sum(dim=1) / counts

    def batch(self, data: Data) -> Batch:
        """The next batch of every model, `(models, rows, seq)`."""
        return stacked([data.batch(g, self.recipe.batch_size) for g in self.generators])

    def update(self, batch: Batch, journals: Sequence[Journal]) -> tuple[list[float], list[float]]:
        """One step of all; losses before it and the gradients' norms before clipping.

        A model whose loss or gradient is no number is no longer trained.
        """
        losses = self.losses(batch)
        losses.sum().backward()
        gradients = [p.grad for p in self.parameters.values() if p.grad is not None]
        norms = torch.stack([g.flatten(1).norm(dim=1) for g in gradients]).norm(dim=0)
        values, lengths = losses.detach().tolist(), norms.tolist()
        is_fine = (losses.detach().isfinite() & norms.isfinite()).tolist()
        for i, fine in enumerate(is_fine):
            if not fine and journals[i].history.failure is None:
                found = first_not_finite(self.parameters, i)
                journals[i].diverged(loss=values[i], grad_norm=lengths[i], first=found)
        if self.recipe.clip_norm is not None:
            shrink = (self.recipe.clip_norm / (norms + 1e-6)).clamp(max=1.0)
            for g in gradients:
                g.mul_(shrink.view(-1, *[1] * (g.ndim - 1)))
        for i, journal in enumerate(journals):
            if journal.history.failure is not None:
                for g in gradients:
                    g[i].zero_()
        set_lr(self.optimizer, lr_ratio(self.recipe, journals[0].step))
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.average.update(journals[0].step)
        return values, lengths

    def scores(self, data: Data, evaluate: Evaluate | None) -> list[Mapping[str, float]]:
        """Every model's evaluation, as it would be handed over now."""
        with self.average.applied(), torch.no_grad():
            if evaluate is None:
                return [{"loss": value} for value in self._mean_losses(data)]
            scores = []
            for i, model in enumerate(self.models):
                self.unstack(i)
                model.eval()
                with precision(self.recipe, self.device):
                    scores.append(evaluate(model))
                model.train()
            return scores

    def _mean_losses(self, data: Data) -> list[float]:
        self.whole.eval()
        n_models = len(self.models)
        total, count = torch.zeros(n_models, device=self.device), 0
        for batch in data.held_out("validation"):
            if n := n_targets(batch):
                total += self.losses(_on(stacked([batch] * n_models), self.device)) * n
                count += n
        self.whole.train()
        values: list[float] = (total / count).tolist()
        return values

    @torch.no_grad()
    def unstack(self, i: int) -> nn.Module:
        """Model `i`, with its slice in its own tensors."""
        for name, parameter in self.models[i].named_parameters():
            parameter.copy_(self.all[name][i])
        return self.models[i]

    def state(self, i: int) -> dict[str, Any]:
        """Of model `i`, what `train` would save of it."""
        return {
            "model": self.unstack(i).state_dict(),
            "optimizer": _slice(self.optimizer.state_dict(), i),
            "average": _slice(self.average.values, i),
            "generator": self.generators[i].get_state(),
            "passes": self.passes[i],
        }

    def restore(self, saved: Sequence[Mapping[str, Any]]) -> None:
        """Take back what `state` gave, one a model and all after the same update."""
        with torch.no_grad():
            for name, parameter in self.all.items():
                parameter.copy_(torch.stack([own["model"][name] for own in saved]))
        self.optimizer.load_state_dict(_joined([own["optimizer"] for own in saved]))
        self.average.load(_joined([own["average"] for own in saved]))
        for generator, own in zip(self.generators, saved, strict=True):
            generator.set_state(own["generator"])
        self.passes = [own["passes"] for own in saved]


def train_stack(
    stack: Stack,
    data: Data,
    journals: Sequence[Journal],
    *,
    evaluate: Evaluate | None,
    progress: Progress,
) -> None:
    """Train the models of `stack` together, from the update that all of `journals` are at."""
    recipe = stack.recipe
    if all(journal.saved is not None for journal in journals):
        stack.restore([journal.saved for journal in journals if journal.saved is not None])
    first = journals[0]
    with interrupts_wait() as is_interrupted:
        stack.whole.train()
        pace = Pace(first.step, recipe.n_steps)
        while first.step < recipe.n_steps:
            lr = lr_at(recipe, first.step)
            batch = stack.batch(data)
            values, norms = stack.update(_on(batch, stack.device), journals)
            n_tokens = batch.input_ids[0].numel()
            for journal, value, norm in zip(journals, values, norms, strict=True):
                journal.advance(loss=value, lr=lr, grad_norm=norm, n_tokens=n_tokens)
            if recipe.is_evaluated(first.step):
                for journal, scores in zip(journals, stack.scores(data, evaluate), strict=True):
                    journal.evaluated(scores)
            update = pace.after(
                first.step,
                loss=sum(values) / len(values),
                lr=lr,
                n_tokens=n_tokens * len(values),
                seeds=stack.seeds,
            )
            progress(update)
            is_stopping = is_interrupted()
            if first.is_due or is_stopping:
                for i, journal in enumerate(journals):
                    journal.save(stack.state(i))
            if is_stopping:
                raise KeyboardInterrupt
            if all(journal.history.failure is not None for journal in journals):
                break
    stack.average.settle()
    for i in range(len(stack.models)):
        stack.unstack(i).eval()


def stacked(batches: Sequence[Batch]) -> Batch:
    """Batches as one, `(batches, rows, seq)`; shorter ones end in tokens without a target."""
    longest = max(b.input_ids.shape[-1] for b in batches)

    def wide(tensors: Iterator[Tensor], value: int) -> Tensor:
        return torch.stack([pad(t, (0, longest - t.shape[-1]), value=value) for t in tensors])

    return Batch(
        wide((b.input_ids for b in batches), 0), wide((b.targets for b in batches), IGNORE)
    )


def _slice(tree: Any, i: int) -> Any:
    """Entry `i` of every tensor in `tree`; counters, which have no axis, belong to all."""
    if isinstance(tree, Tensor):
        return tree[i] if tree.ndim else tree
    if isinstance(tree, Mapping):
        return {key: _slice(inner, i) for key, inner in tree.items()}
    if isinstance(tree, (list, tuple)):
        return [_slice(inner, i) for inner in tree]
    return tree


def _joined(trees: Sequence[Any]) -> Any:
    """The tree whose slices are `trees`."""
    first = trees[0]
    if isinstance(first, Tensor):
        return torch.stack(list(trees)) if first.ndim else first
    if isinstance(first, Mapping):
        return {key: _joined([tree[key] for tree in trees]) for key in first}
    if isinstance(first, (list, tuple)):
        return [_joined([tree[k] for tree in trees]) for k in range(len(first))]
    return first


def _on(batch: Batch, device: torch.device) -> Batch:
    return Batch(batch.input_ids.to(device), batch.targets.to(device))
