"""What the experiments that look inside share: small grammar tutors, their states, what they say.

Two layers of width 64 learn to conjugate and to identify tenses. Everything about a question is
known: verb, tense, person, language, regularity. Directions and erasers act where the answer is
made, on the last token of the prompt and on every token after it, so that what is changed is what
the model knows and not what it reads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from worthit.decode.generate import tokens_of
from worthit.interp.hooks import intervene
from worthit.interp.texts import states
from worthit.lab import models
from worthit.lab.context import Context
from worthit.lab.experiment import Budget
from worthit.lab.tasks import task
from worthit.lab.tasks._verbs import TENSES
from worthit.lab.tasks.grammar_tutor import END, Example, GrammarTutor, decode, encode
from worthit.lab.training import ticking
from worthit.nn.decoder import Decoder
from worthit.nn.tokens import Tokens
from worthit.spec.model import ModelSpec
from worthit.train import Recipe, seeded, train_many

POINT = "layers.0.resid_post"
LONGEST_ANSWER = 16
Shift = Callable[[Tensor], Tensor]

QUICK = Budget(
    n_seeds=5,
    n_steps=400,
    batch_size=64,
    learning_rates=(1e-2,),
    sizes={"d_model": 64, "n_layers": 2},
    seconds=2.0,
    setup_seconds=70.0,
)
SMOKE = replace(QUICK, n_seeds=2, n_steps=150, seconds=2.0, setup_seconds=15.0)
FULL = replace(QUICK, n_seeds=10, n_steps=2000, seconds=5.0, setup_seconds=600.0)
BUDGETS = {"smoke": SMOKE, "quick": QUICK, "full": FULL}


def data() -> GrammarTutor:
    """Conjugating and identifying tenses."""
    made = task("grammar-tutor", tasks=("conjugate", "identify"))
    assert isinstance(made, GrammarTutor)
    return made


def spec_of(budget: Budget) -> ModelSpec:
    """Two layers with learned positions: wide enough to know every form."""
    found = data()
    return models.decoder(
        budget.sizes["d_model"],
        n_layers=budget.sizes["n_layers"],
        vocab_size=found.vocab_size,
        context_len=found.seq_len,
    )


# Tutors of this process, by what they were trained with: experiments that run one after another
# look into the same ones.
_TRAINED: dict[tuple[object, ...], dict[int, Decoder]] = {}


def tutors(context: Context) -> dict[int, Decoder]:
    """A trained tutor for each seed; nobody may change them."""
    budget = context.budget
    sizes = tuple(sorted(budget.sizes.items()))
    key = (budget.n_steps, budget.batch_size, budget.learning_rates, sizes, context.seeds)
    if key not in _TRAINED:
        _TRAINED[key] = _train(context, budget)
    return _TRAINED[key]


def _train(context: Context, budget: Budget) -> dict[int, Decoder]:
    recipe = Recipe(
        n_steps=budget.n_steps,
        batch_size=budget.batch_size,
        lr=budget.learning_rates[0],
        warmup_steps=budget.n_steps // 10,
        weight_decay=0.0,
        eval_every=0,
    )
    spec = spec_of(budget)
    runs = train_many(
        seeded(spec),
        data(),
        recipe,
        context.seeds,
        folder=context.folder / "tutors",
        progress=ticking(context.tick, len(context.seeds)),
    )
    made: dict[int, Decoder] = {}
    for run in runs:
        model = run.into(seeded(spec)(run.seed))
        assert isinstance(model, Decoder)
        made[run.seed] = model.requires_grad_(requires_grad=False)
    return made


def asked(kind: str, *, split: str = "train", **wanted: str) -> list[Example]:
    """Questions of a kind, `conjugate` or `identify`, with the given `tense`, `person`, ..."""
    return [
        e
        for e in data().examples[split]
        if e.task == kind and all(getattr(e, name) == value for name, value in wanted.items())
    ]


def halves(rows: Sequence[Example], seed: int) -> tuple[list[Example], list[Example]]:
    """Two halves by verb: what is fitted on one is judged on verbs that it never saw."""
    names = sorted({e.verb.infinitives["en"] for e in rows})
    order = torch.randperm(len(names), generator=torch.Generator().manual_seed(seed)).tolist()
    first = {names[i] for i in order[: len(names) // 2]}
    parts: tuple[list[Example], list[Example]] = ([], [])
    for e in rows:
        parts[e.verb.infinitives["en"] not in first].append(e)
    return parts


def at_answer(model: Decoder, rows: Sequence[Example], point: str = POINT) -> Tensor:
    """The states `(n, d_model)` from which each answer's first token is made."""
    return states(model, [encode(e.prompt) for e in rows], [point], batch=128)[point]


def shifted(shift: Shift) -> Callable[[Tensor, Tokens], Tensor]:
    """`shift` where an answer is made: the last token of every pass."""

    def moved(h: Tensor, _: Tokens) -> Tensor:
        return torch.cat([h[:, :-1], shift(h[:, -1:])], dim=1)

    return moved


def say(
    model: Decoder,
    rows: Sequence[Example],
    shifts: Mapping[str, Shift] | None = None,
    *,
    longest: int = LONGEST_ANSWER,
) -> list[str]:
    """Greedy answers to all questions, with each point's last token shifted."""
    functions = {point: shifted(shift) for point, shift in (shifts or {}).items()}
    with intervene(model, functions):
        steps = list(tokens_of(model, [encode(e.prompt) for e in rows], max_tokens=longest))
    return [decode([*ids, END]) for ids in zip(*steps, strict=True)]


def form(e: Example, *, tense: str | None = None, person: str | None = None) -> str:
    """The form of the same verb in another tense or person."""
    return e.verb.forms[e.language][tense or e.tense, person or e.person]


def tense_pairs() -> list[tuple[str, str]]:
    """Every tense with every other: where from, where to."""
    return [(a, b) for a in TENSES for b in TENSES if a != b]


def moved(model: Decoder, rows: Sequence[Example], shift: Shift, tense: str) -> float:
    """The share of `rows`, questions for a tense, that are answered with `tense` when shifted."""
    said = say(model, rows, {POINT: shift}, longest=1)
    return share([answer == f"<{tense}>" for answer in said])


def share(flags: Sequence[bool]) -> float:
    """The share that is true."""
    return sum(flags) / len(flags)
