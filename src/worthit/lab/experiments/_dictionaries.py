"""Autoencoders against a truth that is known: planted directions, and the tutor's own factors.

The planted world: directions more than channels, each on with a frequency of its own (a few common,
most rare), with sizes that vary; inputs have more or fewer of them. Some directions imply another
(every "cat" is an "animal"), which is where a sparsity penalty pays for absorbing one in the other.

The tutor: its stream behind the layer, over questions and answers. Where a form is asked for, tense
and person stand in the question and whether the form is regular does not; at its last token, a
latent has such a factor if it alone tells it.

All arms see the same rows in the same order, the same number of updates, and end with the same
number of latents on: TopK counts them, penalties are turned to them while training.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from worthit.interp.hooks import activations
from worthit.interp.sae.base import SparseAutoencoder
from worthit.interp.sae.kinds import make_sae
from worthit.interp.sae.metrics import fit_of
from worthit.interp.sae.probes import absorption, recovery, single
from worthit.interp.sae.train import SaeRecipe, Training, train_together
from worthit.lab import models
from worthit.lab.claims import Metric
from worthit.lab.context import Context
from worthit.lab.experiment import Arm, Budget, Custom, Matched
from worthit.lab.tasks import task
from worthit.lab.tasks._verbs import PERSONS, TENSES
from worthit.lab.tasks.grammar_tutor import GrammarTutor, encode
from worthit.lab.training import ticking
from worthit.train import Recipe, seeded, train_many

EXPLAINED = Metric(id="explained", name="explained variance", better="higher", margin=0.02)
RECOVERED = Metric(
    id="recovered", name="share of planted directions found", better="higher", margin=0.05
)
SHRUNK = Metric(id="shrunk", name="shrinkage of reconstructions", margin=0.02)
ABSORBED = Metric(id="absorbed", name="share of implied features absorbed", margin=0.05)
MISSED = Metric(id="missed", name="latents on, off target by a share of", margin=0.05)
TUTOR = Metric(
    id="tutor_explained", name="explained variance on the tutor", better="higher", margin=0.02
)
FACTORS = Metric(
    id="factors",
    name="best single latent for tense, person, regularity (AUROC)",
    better="higher",
    margin=0.02,
)
METRICS = (EXPLAINED, RECOVERED, SHRUNK, ABSORBED, MISSED, TUTOR, FACTORS)

# Latents on that all kinds are held to, in either world.
L0 = 6
# Options of the kinds; inputs have a mean length of the root of their channels.
KINDS: dict[str, dict[str, Any]] = {
    "standard": {"penalty": 1.0},
    "topk": {"k": L0},
    "batchtopk": {"k": L0},
    "jumprelu": {"penalty": 0.3, "bandwidth": 0.3, "init_threshold": 0.3},
    "gated": {"penalty": 1.0, "has_unit_decoder": True},
}
MATCHED = Matched(
    what=("nothing",),
    because="the same rows in the same order, as many updates and latents, and the same number of "
    "them on; that this is so is a metric and a claim",
)
HALF = 512


@dataclass(frozen=True)
class Planted:
    """A world: `directions` `(m, d)`, how often each is on, and which one it implies (-1: none)."""

    directions: Tensor
    frequency: Tensor
    implies: Tensor

    def rows(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """`n` inputs `(n, d)`, and which directions are on in them `(n, m)`."""
        # Some inputs are busy and some are not: from a third to five thirds of the mean.
        busy = 1 / 3 + 4 / 3 * torch.rand(n, 1, generator=generator)
        on = torch.rand(n, len(self.frequency), generator=generator) < busy * self.frequency
        children = (self.implies >= 0).nonzero()[:, 0]
        parents = self.implies[children]
        on[:, parents] |= on[:, children]
        sizes = 1 + torch.rand(n, len(self.frequency), generator=generator)
        noise = 0.05 * torch.randn(n, self.directions.shape[1], generator=generator)
        return (on * sizes) @ self.directions + noise, on


def planted(d: int, m: int, seed: int, *, n_on: float = L0) -> Planted:
    """`m` directions in `d` channels, `n_on` of them on in the mean."""
    generator = torch.Generator().manual_seed(seed)
    directions = functional.normalize(torch.randn(m, d, generator=generator), dim=-1)
    frequency = (1 + torch.arange(m)).float() ** -0.7
    implies = torch.full((m,), -1)
    # The most frequent ones are implied by rarer ones, two each.
    n_parents = m // 12
    children = torch.arange(m // 2, m // 2 + 2 * n_parents)
    implies[children] = torch.arange(n_parents).repeat_interleave(2)
    frequency = frequency * (n_on / (frequency.sum() + frequency[children].sum()))
    return Planted(directions, frequency.clamp(max=0.5), implies)


def made(arm: Arm, d: int, width: int, seed: int) -> SparseAutoencoder:
    """A fresh autoencoder of an arm."""
    torch.manual_seed(seed)
    kind = arm.options["kind"]
    return make_sae(kind, d_in=d, width=width, **KINDS[kind])


def trained(sae: SparseAutoencoder, stream: Iterator[Tensor], budget: Budget) -> Training:
    """`sae` after the budget's updates on `stream`, at `L0` latents."""
    recipe = SaeRecipe(
        steps=budget.n_steps,
        lr=3e-3,
        dead_after=budget.n_steps // 20,
        resample_every=budget.n_steps // 10,
        target_l0=None if sae.kind in ("topk", "batchtopk") else L0,
    )
    training = Training(sae, recipe)
    train_together({"sae": training}, ({"x": x} for x in stream))
    training.finish()
    return training


def run(context: Context, arm: Arm, seed: int) -> Mapping[str, float]:
    """Both worlds."""
    found = in_planted(context.budget, arm, seed)
    context.tick(0.5, "planted directions done")
    return both(found, in_tutor(context, arm, seed))


def run_planted(context: Context, arm: Arm, seed: int) -> Mapping[str, float]:
    """The planted world alone, where the question is about what was planted."""
    return in_planted(context.budget, arm, seed)


def both(planted: dict[str, float], tutor: dict[str, float]) -> dict[str, float]:
    """Metrics of both worlds; of the missed number of latents the worse one."""
    missed = max(planted["missed"], tutor.pop("missed"))
    return {**planted, **tutor, "missed": missed}


def in_planted(budget: Budget, arm: Arm, seed: int) -> dict[str, float]:
    """What an arm makes of a planted world of this seed."""
    sizes = budget.sizes
    world = planted(sizes["d"], sizes["m"], seed)
    generator = torch.Generator().manual_seed(seed)

    def stream() -> Iterator[Tensor]:
        while True:
            yield world.rows(HALF, generator)[0]

    sae = made(arm, sizes["d"], sizes["width"], seed)
    trained(sae, stream(), budget)
    x, on = world.rows(8 * HALF, torch.Generator().manual_seed(10_000 + seed))
    fit, latents = fit_of(sae, [x]), sae.encode(x)
    parents = world.implies[world.implies >= 0].unique().tolist()
    eaten = [absorption(latents, on[:, p], sae.directions(), world.directions[p]) for p in parents]
    return {
        "explained": fit.explained_variance,
        "recovered": recovery(sae.directions(), world.directions),
        "shrunk": fit.shrinkage,
        "absorbed": sum(eaten) / len(eaten),
        "missed": abs(fit.l0 / L0 - 1),
    }


@dataclass(frozen=True)
class Asked:
    """The tutor's stream at the end of prompts `(n, d)`, and what was asked."""

    rows: Tensor
    labels: dict[str, Tensor]
    tokens: Tensor


def setup(context: Context) -> Asked:
    """A trained tutor's stream over its own questions; one tutor for all seeds."""
    budget, data = context.budget, task("grammar-tutor")
    assert isinstance(data, GrammarTutor)
    recipe = Recipe(
        n_steps=budget.sizes["tutor_steps"],
        batch_size=32,
        lr=3e-3,
        warmup_steps=budget.sizes["tutor_steps"] // 10,
        eval_every=0,
    )
    make = seeded(models.tutor(budget))
    (done,) = train_many(
        make, data, recipe, (0,), folder=context.folder / "tutor", progress=ticking(context.tick, 1)
    )
    model = done.into(make(0))
    assert hasattr(model, "layers")
    model.eval()
    examples = [e for part in data.examples.values() for e in part if e.task == "conjugate"]
    every, last = [], []
    at = f"layers.{len(model.layers) - 1}.resid_post"
    with torch.no_grad():
        for e in examples:
            seen = activations(model, torch.tensor([encode(e.prompt + e.answer)]), at)[at][0]
            every.append(seen[1:])
            # Where the answer is about to begin: all of the question has been read.
            last.append(seen[len(encode(e.prompt)) - 1])
    labels = {f"tense {t}": torch.tensor([e.tense == t for e in examples]) for t in TENSES}
    labels |= {f"person {p}": torch.tensor([e.person == p for e in examples]) for p in PERSONS}
    labels["regular"] = torch.tensor([e.group("regularity") == "regular" for e in examples])
    return Asked(torch.stack(last), labels, torch.cat(every))


def in_tutor(context: Context, arm: Arm, seed: int) -> dict[str, float]:
    """What an arm makes of the tutor's stream."""
    asked: Asked = context.shared
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(asked.tokens), generator=generator)
    test, train = asked.tokens[order[: 4 * HALF]], asked.tokens[order[4 * HALF :]]

    def stream() -> Iterator[Tensor]:
        while True:
            yield train[torch.randint(len(train), (HALF,), generator=generator)]

    sae = made(arm, train.shape[1], context.budget.sizes["tutor_width"], seed)
    trained(sae, stream(), context.budget)
    latents = sae.encode(asked.rows)
    scores = [single(latents, labels)[1] for labels in asked.labels.values()]
    fit = fit_of(sae, [test])
    return {
        "tutor_explained": fit.explained_variance,
        "missed": abs(fit.l0 / L0 - 1),
        "factors": sum(scores) / len(scores),
    }


ON_BOTH = Custom(run=run)
ON_PLANTED = Custom(run=run_planted)
QUICK = Budget(
    n_seeds=3,
    n_steps=1200,
    sizes={"d": 32, "m": 72, "width": 96, "d_model": 64, "tutor_width": 256, "tutor_steps": 400},
    seconds=10.0,
    setup_seconds=20.0,
)
BUDGETS = {
    "smoke": replace(
        QUICK,
        n_seeds=3,
        n_steps=120,
        sizes={**QUICK.sizes, "d_model": 32, "tutor_width": 64, "tutor_steps": 40},
        seconds=1.0,
        setup_seconds=3.0,
    ),
    "quick": QUICK,
    "full": replace(
        QUICK,
        n_seeds=8,
        n_steps=6000,
        sizes={**QUICK.sizes, "d_model": 128, "tutor_width": 1024, "tutor_steps": 1500},
        seconds=150.0,
        setup_seconds=120.0,
    ),
}


def arm_of(kind: str, label: str) -> Arm:
    """An arm of one kind."""
    return Arm(id=kind, label=label, options={"kind": kind})


L1 = arm_of("standard", "L1 penalty")
