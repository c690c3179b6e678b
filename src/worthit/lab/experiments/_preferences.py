"""What the experiments on preferences share: right and wrong conjugations of the grammar tutor.

Preferences over verb forms can be verified: the chosen answer is the form that was asked for, the
rejected one another form of the same verb. Noise, imbalance and bias of length are put in by hand.
A narrow tutor that has half learned to conjugate is what is aligned; questions whose cells it has
never seen, of the test and validation splits, are what it is measured on.

Rates of learning were chosen on seeds from 1000 on, which no budget evaluates.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from torch import Tensor

from worthit.align import (
    Demonstration,
    Demonstrations,
    Pair,
    Pairs,
    Rated,
    Ratings,
    displacement,
    learn_demonstrations,
    learn_pairs,
    learn_ratings,
    recipe,
)
from worthit.align.kto import KTO
from worthit.align.objective import OfPairs, PairLoss
from worthit.lab import models
from worthit.lab.claims import Metric
from worthit.lab.context import Context, Setting
from worthit.lab.experiment import Budget, Matched, Measures, Prediction
from worthit.lab.predict import unseen
from worthit.lab.tasks import task
from worthit.lab.tasks.grammar_tutor import END, Example, GrammarTutor, encode
from worthit.lab.tasks.scores import evaluate
from worthit.lab.training import ticking
from worthit.nn import Decoder
from worthit.train import Recipe, seeded, train, train_many

RIGHT = Metric(id="right", name="held-out forms right", better="higher", margin=0.05)
RANKED = Metric(id="ranked", name="held-out pairs ranked right", better="higher", margin=0.05)
MEAN_RANKED = Metric(
    id="mean_ranked", name="pairs ranked right by the mean a token", better="higher", margin=0.05
)
CHOSEN = Metric(
    id="chosen_change", name="change of log p(chosen)", unit="nats", better="higher", margin=0.5
)
REJECTED = Metric(id="rejected_change", name="change of log p(rejected)", unit="nats", margin=0.5)
MARGIN = Metric(id="margin", name="margin gained", unit="nats", better="higher", margin=0.5)
BOTH_FELL = Metric(id="both_fell", name="pairs of which both fell", margin=0.05)
# What each kind of learning takes here.
FINE_TUNING, PREFERENCES = 1e-3, 1e-4
SEPARATE = Matched(
    what=("nothing",),
    because="arms of a seed start from the same weights, see the same prompts and take as many "
    "updates of as many rows; what they learn from is what is compared",
)


@cache
def conjugations() -> GrammarTutor:
    """The questions that ask for a form."""
    data = task("grammar-tutor", tasks=("conjugate",))
    assert isinstance(data, GrammarTutor)
    return data


def examples(split: str) -> tuple[Example, ...]:
    """Questions of a split; `held-out` is test and validation together."""
    of = conjugations().examples
    return (*of["validation"], *of["test"]) if split == "held-out" else of[split]


def ids(text: str, *, is_answer: bool = False) -> tuple[int, ...]:
    """Text as the tutor reads it; an answer with its end."""
    return (*encode(text), *((END,) if is_answer else ()))


def wrong_forms(example: Example) -> list[str]:
    """The verb's other forms in the same language."""
    forms = example.verb.forms[example.language]
    return sorted({form for form in forms.values() if form != example.answer})


def pairs_of(
    split: str,
    seed: int,
    *,
    flipped: float = 0.0,
    longer: bool | None = None,
    n_each: int = 1,
) -> list[Pair]:
    """Right over wrong forms.

    Args:
        flipped: the share of labels that are turned round.
        longer: keep only pairs whose right form is longer (True) or shorter (False).
        n_each: wrong forms a question.
    """
    drawn = random.Random(f"{split} {seed}")
    found = []
    for example in examples(split):
        forms = wrong_forms(example)
        if longer is not None:
            n = len(example.answer)
            forms = [f for f in forms if (len(f) < n if longer else len(f) > n)]
        for wrong in drawn.sample(forms, min(n_each, len(forms))):
            better, worse = ids(example.answer, is_answer=True), ids(wrong, is_answer=True)
            if drawn.random() < flipped:
                better, worse = worse, better
            found.append(Pair(prompt=ids(example.prompt), chosen=better, rejected=worse))
    return found


def shown(split: str) -> list[Demonstration]:
    """Right forms alone."""
    return [
        Demonstration(prompt=ids(e.prompt), completion=ids(e.answer, is_answer=True))
        for e in examples(split)
    ]


def rated_of(pairs: Sequence[Pair], *, good: float = 1.0, seed: int = 0) -> list[Rated]:
    """Pairs taken apart, with a share of the good ones."""
    drawn = random.Random(seed)
    found = []
    for pair in pairs:
        if drawn.random() < good:
            found.append(Rated(prompt=pair.prompt, completion=pair.chosen, is_good=True))
        found.append(Rated(prompt=pair.prompt, completion=pair.rejected, is_good=False))
    drawn.shuffle(found)
    return found


# --- models --------------------------------------------------------------------------------------


def half_learned(context: Context) -> dict[int, Decoder]:
    """A tutor for each seed that has seen `n_steps` batches of conjugations; where 0, none."""
    budget, data = context.budget, conjugations()
    spec = replace(models.tutor(budget), vocab_size=data.vocab_size)
    fine_tuning = Recipe(
        n_steps=budget.n_steps,
        batch_size=budget.batch_size,
        lr=budget.learning_rates[0],
        warmup_steps=budget.n_steps // 10,
        eval_every=0,
    )
    runs = train_many(
        seeded(spec),
        data,
        fine_tuning,
        context.seeds,
        folder=context.folder / "half-learned",
        progress=ticking(context.tick, len(context.seeds)),
    )
    found: dict[int, Decoder] = {}
    for run in runs:
        model = run.into(seeded(spec)(run.seed))
        assert isinstance(model, Decoder)
        found[run.seed] = model
    return found


def start(context: Context, seed: int) -> Decoder:
    """The half-learned tutor of a seed, in memory of its own."""
    model = fresh(context, seed)
    model.load_state_dict(context.shared[seed].state_dict())
    return model


def fresh(context: Context, seed: int) -> Decoder:
    """The tutor of a seed before it has seen anything."""
    spec = replace(models.tutor(context.budget), vocab_size=conjugations().vocab_size)
    return seeded(spec)(seed)


# --- learning and reading ------------------------------------------------------------------------


def steps(context: Context, lr: float, **changed: Any) -> Recipe:
    """The updates of one arm; `n_steps` and `rows` in place of the budget's."""
    sizes = context.budget.sizes
    options = {"eval_every": 0, "log_every": 10, **changed}
    n_steps, rows = options.pop("n_steps", sizes["updates"]), options.pop("rows", sizes["pairs"])
    return recipe(n_steps, batch_size=rows, lr=lr, **options)


def on_pairs(
    model: Decoder,
    pairs: Sequence[Pair],
    method: OfPairs,
    recipe: Recipe,
    seed: int,
    *,
    reference: Tensor | None = None,
) -> None:
    """Train `model` on all of `pairs`.

    Args:
        reference: log-probabilities of chosen and rejected in turn; None for the model's own.
    """
    data = Pairs("forms", pairs, [], vocab_size=conjugations().vocab_size)
    if reference is None:
        learn_pairs(model, data, method, recipe, seed=seed)
        return
    data.reference = {"train": reference.view(-1, 2)}
    train(model, data, recipe, seed=seed, loss=PairLoss(method))


def on_ratings(
    model: Decoder, rated: Sequence[Rated], method: KTO, recipe: Recipe, seed: int
) -> None:
    """Train `model` on all of `rated`."""
    data = Ratings("forms", rated, [], vocab_size=conjugations().vocab_size)
    learn_ratings(model, data, method, recipe, seed=seed)


def on_shown(model: Decoder, demos: Sequence[Demonstration], recipe: Recipe, seed: int) -> None:
    """Fine-tune `model` on right forms."""
    data = Demonstrations("forms", demos, [], vocab_size=conjugations().vocab_size)
    learn_demonstrations(model, data, recipe, seed=seed)


def read(model: Decoder, reference: Decoder, *, pairs: Sequence[Pair] | None = None) -> Measures:
    """Held-out forms that `model` gets right, and what became of held-out pairs."""
    model.eval()
    pairs = pairs_of("held-out", 0, n_each=2) if pairs is None else pairs
    data = Pairs("held-out", pairs, pairs, vocab_size=conjugations().vocab_size)
    data.refer(reference)
    found = displacement(model, data.held_out())
    assert found is not None
    assert found.margin is not None
    assert found.chosen_change is not None
    assert found.rejected_change is not None
    assert found.both_fell is not None
    return {
        "right": right(model),
        "ranked": found.accuracy,
        "mean_ranked": found.mean_accuracy,
        "chosen_change": found.chosen_change,
        "rejected_change": found.rejected_change,
        "margin": found.margin,
        "both_fell": found.both_fell,
    }


@torch.no_grad()
def right(model: Decoder) -> float:
    """The share of held-out forms that greedy decoding gets right to the letter."""
    data = conjugations()
    total = evaluate(model, data.held_out("test"))
    total = total + evaluate(model, data.held_out("validation"))
    return total.overall.exact_match


def predicted(*metrics: str) -> Any:
    """Quality is what cost cannot see."""

    def of(setting: Setting) -> list[Prediction]:
        return list(unseen(setting, *metrics))

    return of


QUICK = Budget(
    n_seeds=8,
    n_steps=150,
    batch_size=32,
    learning_rates=(3e-3,),
    sizes={"d_model": 64, "updates": 60, "pairs": 16},
    seconds=1.5,
    setup_seconds=10.0,
)
SMOKE = replace(
    QUICK,
    n_seeds=3,
    n_steps=30,
    sizes={"d_model": 32, "updates": 4, "pairs": 4},
    seconds=0.3,
    setup_seconds=2.0,
)
FULL = replace(
    QUICK,
    n_seeds=10,
    n_steps=400,
    sizes={"d_model": 96, "updates": 300, "pairs": 32},
    seconds=25.0,
    setup_seconds=90.0,
)
BUDGETS = {"smoke": SMOKE, "quick": QUICK, "full": FULL}
