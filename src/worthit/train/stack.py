"""Several models of one shape as one: their parameters stacked, their passes batched.

The passes go through `torch.func.vmap`: every product becomes a batched product. Sums, norms and
updates are over each model's own slice, so that no model sees another. What can differ from a run
alone is the order in which products are summed.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import pad

from worthit.train.average import Average
from worthit.train.batch import IGNORE, Batch, Data
from worthit.train.interrupt import interrupts_wait
from worthit.train.journal import Journal
from worthit.train.loop import first_not_finite, precision, seed_for
from worthit.train.objective import (
    FEW,
    Evaluate,
    Loss,
    can_leave_out,
    device_of,
    loss_at,
    n_targets,
    next_token_loss,
)
from worthit.train.optimizers import make_optimizer, set_lr
from worthit.train.progress import Pace, Progress
from worthit.train.recipe import Recipe
from worthit.train.schedule import lr_at, lr_ratio

# How far a batched loss may be from the same model's own before batching counts as wrong.
TOLERANCE = 1e-3


class CannotStack(Exception):
    """Why models have to be trained apart; always caught."""


class Stack:
    """Models of one shape, and what changes while they are trained.

    Raises:
        CannotStack: their passes cannot be batched.
    """

    def __init__(
        self, models: Sequence[nn.Module], recipe: Recipe, seeds: Sequence[int], loss: Loss
    ) -> None:
        shapes = [{n: t.shape for n, t in m.state_dict().items()} for m in models]
        if any(other != shapes[0] for other in shapes):
            raise CannotStack("the models' shapes differ")
        if recipe.n_accumulate > 1:
            raise CannotStack("batches are run in parts")
        self.models, self.recipe, self.seeds = list(models), recipe, tuple(seeds)
        self.device = device_of(models[0])
        self.parameters = {
            name: torch.stack([dict(m.named_parameters())[name].detach() for m in models])
            for name, p in models[0].named_parameters()
            if p.requires_grad
        }
        for parameter in self.parameters.values():
            parameter.requires_grad_()
        fixed = _fixed(models[0]).keys()
        self.fixed = {name: torch.stack([_fixed(m)[name] for m in models]) for name in fixed}
        self.optimizer = make_optimizer(models[0], recipe, self._all())
        self.average = Average(self.parameters, recipe.ema_decay)
        self.generators = [
            torch.Generator().manual_seed(seed_for("data", seed)) for seed in self.seeds
        ]
        self.passes = [
            torch.Generator().manual_seed(seed_for("passes", seed)).get_state()
            for seed in self.seeds
        ]
        self._pass = _Pass(models[0], loss)

    def losses(self, batch: Batch, *, is_shared: bool = False) -> Tensor:
        """Losses `(models,)`: of a batch for each, `(models, rows, seq)`, or of one for all."""

        def one(tensors: dict[str, Tensor], *inputs: Tensor) -> Tensor:
            result: Tensor = functional_call(self._pass, tensors, inputs)
            return result

        tensors = {f"model.{name}": t for name, t in (self.parameters | self.fixed).items()}
        inputs = self._pass.inputs(batch)
        own = [None if is_shared else 0] * len(inputs)
        # The fused attention has no batching rule; the plain one is products, which have.
        with precision(self.recipe, self.device), sdpa_kernel(SDPBackend.MATH):
            values: Tensor = vmap(one, in_dims=(0, *own), randomness="error")(tensors, *inputs)
        return values

    def batch(self, data: Data) -> Batch:
        """The next batch of every model, `(models, rows, seq)`."""
        return stacked([data.batch(g, self.recipe.batch_size) for g in self.generators])

    def update(self, batch: Batch, journals: Sequence[Journal]) -> tuple[list[float], list[float]]:
        """One step of all; losses before it and the gradients' norms before clipping.

        A model whose loss or gradient is no number stays as it is from here on.
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
        self.models[0].eval()
        total, count = torch.zeros(len(self.models), device=self.device), 0
        for batch in data.held_out("validation"):
            if n := n_targets(batch):
                total += self.losses(_on(batch, self.device), is_shared=True) * n
                count += n
        self.models[0].train()
        values: list[float] = (total / count).tolist()
        return values

    @torch.no_grad()
    def unstack(self, i: int) -> nn.Module:
        """Model `i`, with its slice in its own tensors."""
        own = dict(self.models[i].named_parameters()) | _fixed(self.models[i])
        for name, tensor in (self.parameters | self.fixed).items():
            own[name].copy_(tensor[i])
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
        for model, own in zip(self.models, saved, strict=True):
            model.load_state_dict(own["model"])
        with torch.no_grad():
            for name, tensor in self._all().items():
                tensor.copy_(torch.stack([(dict(m.named_parameters())[name]) for m in self.models]))
            for name in self.fixed.keys() - self._all().keys():
                self.fixed[name].copy_(torch.stack([_fixed(m)[name] for m in self.models]))
        self.optimizer.load_state_dict(_joined([own["optimizer"] for own in saved]))
        self.average.load(_joined([own["average"] for own in saved]))
        for generator, own in zip(self.generators, saved, strict=True):
            generator.set_state(own["generator"])
        self.passes = [own["passes"] for own in saved]

    def _all(self) -> dict[str, Tensor]:
        """Every parameter by name, trained or not."""
        names = [name for name, _ in self.models[0].named_parameters()]
        both = self.parameters | self.fixed
        return {name: both[name] for name in names}


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


def check_stackable(
    models: Sequence[nn.Module], data: Data, recipe: Recipe, seeds: Sequence[int], loss: Loss
) -> None:
    """Batch one pass of a few rows and its gradients, and compare a loss with the model's own.

    Raises:
        CannotStack: it cannot be done, or gives something else.
    """
    stack = Stack(models, recipe, seeds, loss)
    batches = [data.batch(g, min(recipe.batch_size, 2)) for g in stack.generators]
    try:
        # Operations without a batching rule warn and run one model after another.
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            losses = stack.losses(_on(stacked(batches), stack.device))
            losses.sum().backward()
    except (RuntimeError, TypeError, NotImplementedError, ValueError, Warning) as error:
        raise CannotStack(f"it cannot be batched: {_short(error)}") from error
    with torch.no_grad(), precision(recipe, stack.device):
        alone = float(loss(models[0], _on(batches[0], stack.device)))
    batched = float(losses[0].detach())
    if abs(batched - alone) > TOLERANCE * max(abs(alone), 1.0):
        raise CannotStack(f"batched, a loss of {alone:.6g} becomes {batched:.6g}")


class _Pass(nn.Module):
    """The loss as a module, so that a model's tensors can be replaced by others."""

    def __init__(self, model: nn.Module, loss: Loss) -> None:
        super().__init__()
        self.model, self._loss = model, loss
        self._leaves_out = loss is next_token_loss and can_leave_out(model)

    def inputs(self, batch: Batch) -> tuple[Tensor, ...]:
        """What `forward` takes, of one model or of all: which tokens have a target depends on the
        data, and is found before anything is batched."""
        is_target = (batch.targets != IGNORE).flatten(-2)
        most = int(is_target.sum(-1).max())
        if not self._leaves_out or most > FEW * is_target.shape[-1]:
            return batch.input_ids, batch.targets
        # Those with a target first, in their order; a model with fewer fills up with others.
        rows = is_target.int().argsort(dim=-1, descending=True, stable=True)[..., :most]
        return batch.input_ids, rows, batch.targets.flatten(-2).gather(-1, rows)

    def forward(self, input_ids: Tensor, *others: Tensor) -> Tensor:
        if len(others) == 1:
            return self._loss(self.model, Batch(input_ids, *others))
        return loss_at(self.model, input_ids, *others)


def stacked(batches: Sequence[Batch]) -> Batch:
    """Batches as one, `(batches, rows, seq)`; shorter ones end in tokens without a target."""
    longest = max(b.input_ids.shape[-1] for b in batches)

    def wide(tensors: Iterator[Tensor], value: int) -> Tensor:
        return torch.stack([pad(t, (0, longest - t.shape[-1]), value=value) for t in tensors])

    return Batch(
        wide((b.input_ids for b in batches), 0), wide((b.targets for b in batches), IGNORE)
    )


def _short(error: BaseException) -> str:
    """What of torch's message says why."""
    text = " ".join(str(error).split())
    operation = re.search(r"batching rule for (aten::\w+)", text)
    return f"no batching rule for {operation[1]}" if operation else text.split(". ")[0]


def _fixed(model: nn.Module) -> dict[str, Tensor]:
    """Parameters that are not trained, and buffers."""
    frozen = {name: p.detach() for name, p in model.named_parameters() if not p.requires_grad}
    return frozen | dict(model.named_buffers())


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
