"""Activation patching: put what one prompt computes into the run of another, and see what follows.

Meng et al. 2022, arXiv:2202.05262, section 2.1 (causal tracing); Wang et al. 2022, arXiv:2211.00593
(paths); Heimersheim & Nanda 2024, "How to use and interpret activation patching", arXiv:2404.15255.
Two prompts of the same length differ in one thing and in the answer:

    denoising   the corrupt run with one clean activation: is it enough for the answer?
    noising     the clean run with one corrupt activation: is it needed?

The metric is a difference of logits (probabilities saturate), and the effect a share:
0 is the run as it was, 1 the other prompt's answer.

Attribution patching estimates all of them by one backward pass, (a' - a) . dm/da (Nanda 2023;
Syed et al. 2023, arXiv:2310.10348): exact where the metric is linear in the activation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from worthit.errors import InputError
from worthit.interp.hooks import capture, intervene
from worthit.interp.points import expand
from worthit.nn.decoder import Decoder
from worthit.nn.tokens import Tokens

# Logits (batch, n, vocab_size) to one number a row.
Metric = Callable[[Tensor], Tensor]
Kind = Literal["denoising", "noising"]
BATCH = 32
# Of a vector's largest number: two runs that differ by less computed the same.
ROUNDING = 1e-6


def logit_difference(right: Sequence[int], wrong: Sequence[int]) -> Metric:
    """The last token's logit of the right answer minus that of the wrong one, a row each."""
    answers, others = torch.tensor(right), torch.tensor(wrong)

    def difference(logits: Tensor) -> Tensor:
        last = logits[:, -1]
        rows = torch.arange(len(last), device=last.device)
        return last[rows, answers.to(last.device)] - last[rows, others.to(last.device)]

    return difference


@dataclass(frozen=True)
class Patched:
    """The effect of each activation.

    Attributes:
        effects: by point `(n,)` a position each, `(n, n_heads)` where the point has heads: the mean
            over prompts.
        clean, corrupt: the metric of both runs, mean over prompts.
        n_passes: of the model, forward or backward, of one prompt; none for places where both runs
            computed the same.
    """

    effects: dict[str, Tensor]
    clean: float
    corrupt: float
    kind: Kind
    n_passes: int

    def strongest(self, k: int = 5) -> list[tuple[str, tuple[int, ...], float]]:
        """The k largest effects: point, position (and head), share."""
        found = []
        for point, effect in self.effects.items():
            for place in torch.cartesian_prod(*(torch.arange(s) for s in effect.shape)).reshape(
                -1, effect.ndim
            ):
                where = tuple(place.tolist())
                found.append((point, where, float(effect[where])))
        return sorted(found, key=lambda one: -abs(one[2]))[:k]

    def to_json(self) -> dict[str, Any]:
        """Its part of a record."""
        return {
            "kind": self.kind,
            "clean_metric": self.clean,
            "corrupt_metric": self.corrupt,
            "n_passes": self.n_passes,
            "effects": {point: effect.tolist() for point, effect in self.effects.items()},
        }


def patch(
    model: Decoder,
    clean: Tensor,
    corrupt: Tensor,
    metric: Metric,
    points: str | Sequence[str],
    *,
    kind: Kind = "denoising",
    batch: int = BATCH,
    on_progress: Callable[[int, int], None] | None = None,
) -> Patched:
    """Patch every point at every position (and head), exactly: one pass each.

    Args:
        clean, corrupt: `(n_prompts, n)`, row by row.
        metric: see `logit_difference`; called on all prompts in their order.
        points: of shape `(batch, n, d)` or `heads`.
        batch: prompts in one pass.

    Raises:
        InputError: prompts of different shape, or a metric that does not tell them apart.
    """
    names = expand(model, points)
    base, other = _both(clean, corrupt, kind)
    with torch.inference_mode():
        before, after, own, given = _ends(model, base, other, metric, names)
        effects, done = {}, 0
        total = sum(len(_places(own[name], given[name])) for name in names)
        for name in names:
            places = _places(own[name], given[name])
            shares = []
            for start in range(0, len(places), max(batch // len(base), 1)):
                some = places[start : start + max(batch // len(base), 1)]
                logits = _patched_run(model, base, name, given[name], some)
                values = torch.stack([metric(part) for part in logits.split(len(base))])
                shares.append(((values - before) / (after - before)).mean(1))
                done += len(some)
                if on_progress is not None:
                    on_progress(done, total)
            # Where both runs computed the same there is nothing to patch, and no effect.
            grid = torch.zeros(given[name].shape[1:-1])
            if len(places):
                grid[places.unbind(1)] = torch.cat(shares)
            effects[name] = grid
    ends = (before, after) if kind == "noising" else (after, before)
    return Patched(effects, float(ends[0].mean()), float(ends[1].mean()), kind, 2 + total)


def attribute(
    model: Decoder,
    clean: Tensor,
    corrupt: Tensor,
    metric: Metric,
    points: str | Sequence[str],
    *,
    kind: Kind = "denoising",
) -> Patched:
    """`patch`, estimated from the gradient of one run at all points at once."""
    names = expand(model, points)
    base, other = _both(clean, corrupt, kind)
    with torch.inference_mode():
        before, after, *_ = _ends(model, base, other, metric, [])
        with capture(model, names, is_detached=True) as given:
            model(other)
        aims = {name: given[name].clone() for name in names}
    with torch.enable_grad(), capture(model, names, has_grad=True) as seen, _frozen(model):
        metric(model(base)).sum().backward()
    effects = {}
    for name in names:
        now = seen[name]
        change = ((aims[name] - now.detach()) * now.grad).sum(-1)
        scale = (after - before).clone().reshape(-1, *[1] * (change.ndim - 1))
        effects[name] = (change / scale).mean(0)
    ends = (before, after) if kind == "noising" else (after, before)
    return Patched(effects, float(ends[0].mean()), float(ends[1].mean()), kind, 3)


@contextmanager
def _frozen(model: Decoder) -> Iterator[None]:
    """Within it no weight asks for a gradient: only activations do."""
    asking = [p for p in model.parameters() if p.requires_grad]
    for p in asking:
        p.requires_grad_(requires_grad=False)
    try:
        yield
    finally:
        for p in asking:
            p.requires_grad_()


def _both(clean: Tensor, corrupt: Tensor, kind: Kind) -> tuple[Tensor, Tensor]:
    if clean.shape != corrupt.shape or clean.ndim != 2:
        raise InputError(
            "prompts: clean and corrupt must be as long, token by token, got "
            f"{list(clean.shape)} and {list(corrupt.shape)}; reword one of them"
        )
    if kind not in ("denoising", "noising"):
        raise InputError(f"kind: must be denoising or noising, got {kind!r}")
    return (corrupt, clean) if kind == "denoising" else (clean, corrupt)


def _ends(
    model: Decoder, base: Tensor, other: Tensor, metric: Metric, names: Sequence[str]
) -> tuple[Tensor, Tensor, dict[str, Tensor], dict[str, Tensor]]:
    """The metric of both runs, and what each of them computed."""
    ends, values = [], []
    for ids in (base, other):
        with capture(model, names, is_detached=True) as seen:
            ends.append(metric(model(ids)))
        values.append({name: seen[name] for name in names})
    before, after = ends
    if bool(((after - before).abs() < 1e-6).any()):
        raise InputError(
            "prompts: the metric is the same for clean and corrupt; nothing to explain"
        )
    return before, after, values[0], values[1]


def _places(own: Tensor, given: Tensor) -> Tensor:
    """Indices `(n_places, 1 or 2)` of the vectors of `(batch, n, [n_heads,] d)` that differ.

    In a causal model none does before the first token that differs.
    """
    apart = (own - given).abs().amax(-1) > ROUNDING * given.abs().amax(-1)
    return apart.any(0).nonzero()


def _patched_run(model: Decoder, base: Tensor, name: str, given: Tensor, places: Tensor) -> Tensor:
    """Logits of `base` once a place, with what `given` holds there."""

    def put(value: Tensor, _: Tokens) -> Tensor:
        value = value.clone()
        for i, place in enumerate(places.tolist()):
            rows = slice(i * len(base), (i + 1) * len(base))
            value[(rows, *place)] = given[(slice(None), *place)]
        return value

    with intervene(model, {name: put}):
        logits: Tensor = model(base.repeat(len(places), 1))
    return logits
