"""What experiments on merging share: one base, fine-tuned on one tense after another, and merges.

The base learns two tenses of the grammar tutor. From there one expert each is fine-tuned on another
tense, and a multi-task model on all of these at once, for as many steps as all experts together. A
merge is scored on questions that nobody trained on; its scale (and density, where it has one) is
chosen on the validation split, for every method from as many values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from worthit.lab import models
from worthit.lab.claims import Metric
from worthit.lab.context import Context, Setting, fitted
from worthit.lab.experiment import Arm, Budget, Curve, Matched, Measures, Prediction
from worthit.lab.predict import unseen
from worthit.lab.tasks import task
from worthit.lab.tasks._table import Table
from worthit.lab.tasks.grammar_tutor import GrammarTutor
from worthit.lab.tasks.scores import evaluate
from worthit.lab.training import ticking
from worthit.spec.model import ModelSpec
from worthit.train import Batch, Recipe, seeded, train_many

State = dict[str, Tensor]
KNOWN = ("present", "perfect")
TENSES = ("past", "future", "conditional")
# Of a learning rate for training, what fine-tuning takes: task vectors stay short.
FINE = 0.3
# Between the seeds of one order of the data and the next.
FAR = 1000
# Models by what they were trained on; a start is told by its identity, since it stays here too.
_MADE: dict[tuple[Any, ...], dict[int, State]] = {}
SCALES = (0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0)

SKILL = Metric(id="skill", name="token accuracy on the merged tenses", better="higher", margin=0.03)
NORMALISED = Metric(
    id="normalised",
    name="accuracy on each expert's tense, over the expert's",
    better="higher",
    margin=0.03,
)
KEPT = Metric(
    id="kept", name="share of what fine-tuning gained that is kept", better="higher", margin=0.05
)
RETAINED = Metric(
    id="retained", name="token accuracy on the base's tenses", better="higher", margin=0.03
)
MATCHED = Matched(
    what=("nothing",),
    because="one base and one set of experts a seed; the multi-task model gets all of their steps "
    "and their data at once, and every merge its scale from as many values on the validation split",
)


@dataclass(frozen=True)
class Family:
    """The models of one seed: tensors by name, and what the experts score on their own tenses."""

    spec: ModelSpec
    base: State
    experts: Mapping[str, State]
    multi: State


@cache
def tutor_of(tenses: tuple[str, ...]) -> Table:
    """The grammar tutor in some tenses only, reported by tense."""
    whole = task("grammar-tutor")
    assert isinstance(whole, GrammarTutor)
    wanted = set(tenses)
    rows = {}
    for split, batch in whole.rows.items():
        index = [i for i, example in enumerate(whole.examples[split]) if example.tense in wanted]
        groups = tuple(whole.examples[split][i].tense for i in index)
        rows[split] = Batch(batch.input_ids[index], batch.targets[index], groups)
    return Table("grammar-tutor", whole.vocab_size, rows)


def small(budget: Budget) -> ModelSpec:
    """A decoder of two layers with the budget's width."""
    spec = models.decoder(budget.sizes["d_model"], n_layers=budget.sizes.get("n_layers", 2))
    return fitted(spec, tutor_of(KNOWN))


def families(context: Context, spec: ModelSpec | None = None, name: str = "") -> dict[int, Family]:
    """Train base, experts and multi-task model of every seed; kept in the experiment's folder."""
    budget = context.budget
    spec = spec or small(budget)
    tenses = TENSES[: budget.sizes.get("n_tasks", 2)]
    made = partial(trained, context, spec, context.folder / (name or "family"))
    base = made("base", KNOWN, budget.n_steps, budget.learning_rates[0], None)
    n_fine = budget.sizes["n_fine"]
    rate = FINE * budget.learning_rates[0]
    experts = {tense: made(tense, (tense,), n_fine, rate, base) for tense in tenses}
    multi = made("multi", tenses, n_fine * len(tenses), rate, base)
    return {
        seed: Family(
            spec=spec,
            base=base[seed],
            experts={tense: states[seed] for tense, states in experts.items()},
            multi=multi[seed],
        )
        for seed in context.seeds
    }


def trained(
    context: Context,
    spec: ModelSpec,
    folder: Path,
    name: str,
    tenses: tuple[str, ...],
    n_steps: int,
    rate: float,
    start: Mapping[int, State] | None,
    order: int = 0,
) -> dict[int, State]:
    """The tensors of one model a seed, trained on some tenses from `start` or from nothing.

    `order` draws another order of the data from the same start. What this process has trained
    already, for another experiment on the same models, is not trained again.
    """
    size = context.budget.batch_size
    key = (spec, tenses, n_steps, rate, size, context.seeds, order, id(start))
    if key in _MADE:
        return _MADE[key]
    places = {seed + FAR * order: seed for seed in context.seeds}

    def build(seed: int) -> nn.Module:
        model = seeded(spec)(seed)
        if start is not None:
            model.load_state_dict(start[places[seed]])
        return model

    recipe = Recipe(
        n_steps=n_steps,
        batch_size=size,
        lr=rate,
        warmup_steps=n_steps // 10,
        eval_every=0,
    )
    runs = train_many(
        build,
        tutor_of(tenses),
        recipe,
        list(places),
        folder=folder / name,
        progress=ticking(context.tick, len(context.seeds)),
    )
    _MADE[key] = {places[run.seed]: run.state for run in runs}
    return _MADE[key]


# --- merging and scoring -------------------------------------------------------------------------

Method = Callable[..., Tensor]


def merged(family: Family, method: Method, *, seed: int | None = None, **options: Any) -> State:
    """Every tensor of the base with those of the experts, by a method of `worthit.merge`.

    `seed` is for methods that draw: every tensor then draws for itself.
    """
    experts = family.experts.values()
    state = {}
    for place, (name, tensor) in enumerate(family.base.items()):
        chance = {} if seed is None else {"seed": seed * len(family.base) + place}
        state[name] = method(tensor, [e[name] for e in experts], **options, **chance)
    return state


def by_tense(family: Family, state: State, split: str) -> dict[str, float]:
    """Token accuracy on every tense of a split."""
    model = seeded(family.spec)(0)
    model.load_state_dict(state)
    found = evaluate(model, tutor_of((*KNOWN, *family.experts)).held_out(split))
    return {tense: score.token_accuracy for tense, score in found.by_group.items()}


def mean(values: Mapping[str, float], keys: Iterable[str]) -> float:
    """The mean over some keys."""
    wanted = list(keys)
    return sum(values[key] for key in wanted) / len(wanted)


def chosen(
    family: Family, tries: Sequence[Mapping[str, Any]], make: Callable[..., State]
) -> tuple[State, Mapping[str, Any]]:
    """Of the merges that `make` gives for `tries`, the best on the validation split."""
    best: tuple[float, State, Mapping[str, Any]] | None = None
    for options in tries:
        state = make(**options)
        skill = mean(by_tense(family, state, "validation"), family.experts)
        if best is None or skill > best[0]:
            best = (skill, state, options)
    assert best is not None
    return best[1], best[2]


def measures(family: Family, state: State, **curves: Curve) -> Measures:
    """What a model knows on the test split, against base and experts."""
    found, before = by_tense(family, state, "test"), by_tense(family, family.base, "test")
    kept, shares = [], []
    for tense, expert in family.experts.items():
        best = by_tense(family, expert, "test")[tense]
        gained = best - before[tense]
        kept.append((found[tense] - before[tense]) / gained if gained else 0.0)
        shares.append(found[tense] / best if best else 0.0)
    table = tuple((float(i), found[tense]) for i, tense in enumerate((*KNOWN, *family.experts)))
    return {
        "skill": mean(found, family.experts),
        "normalised": sum(shares) / len(shares),
        "kept": sum(kept) / len(kept),
        "retained": mean(found, KNOWN),
        "accuracy by tense": table,
        **curves,
    }


def skill_of(family: Family, state: State) -> float:
    """Token accuracy on the merged tenses, on the test split."""
    return mean(by_tense(family, state, "test"), family.experts)


def weights_of(family: Family) -> list[float]:
    """All experts alike."""
    return [1.0] * len(family.experts)


def predicted(setting: Setting) -> Iterable[Prediction]:
    """Cost sees the training that a merge saves, and nothing of what the merged model knows."""
    return unseen(setting, *(metric.id for metric in setting.experiment.metrics))


QUICK = Budget(
    n_seeds=5,
    n_steps=300,
    batch_size=32,
    learning_rates=(1e-2,),
    sizes={"d_model": 32, "n_fine": 100, "n_tasks": 2},
    seconds=1.0,
    setup_seconds=30.0,
)


def budgets(quick: Budget = QUICK) -> dict[str, Budget]:
    """The three budgets around `quick`."""
    return {
        "smoke": replace(
            quick,
            n_seeds=3,
            n_steps=60,
            sizes={**quick.sizes, "d_model": 16, "n_fine": 30},
            setup_seconds=5.0,
        ),
        "quick": quick,
        "full": replace(
            quick,
            n_seeds=10,
            n_steps=3 * quick.n_steps,
            sizes={**quick.sizes, "d_model": 96, "n_fine": 2 * quick.sizes["n_fine"]},
            setup_seconds=1200.0,
        ),
    }


MULTI = Arm(id="multi", label="trained on all tenses at once")
