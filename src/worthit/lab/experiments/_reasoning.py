"""What the experiments on test-time compute share: a small model that works sums out, and samples.

A small decoder learns worked sums and is stopped while it still errs: as soon as so many of its
steps are right on validation questions. It answers questions of the test split through the engine,
whose samples share their prompt; every answer and every step has an exact check. All arms of a seed
read the same model, and those that choose among samples the same samples.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from worthit.decode.engine import Engine, EngineConfig
from worthit.lab import models, predict
from worthit.lab.claims import Metric
from worthit.lab.context import Context, Setting, fitted
from worthit.lab.experiment import Budget, Prediction
from worthit.lab.reasoning import Kind, sums
from worthit.lab.tasks import task, worked_sums
from worthit.reason import Chosen, Generator, best_of_n
from worthit.reason.curve import of_samples
from worthit.reason.verify import by_logprob
from worthit.spec.model import ModelSpec
from worthit.train import Recipe, seeded, train
from worthit.train.batch import Batch, Data

# Sixty questions of a seed are some points of noise: a margin below that would be about them.
ACCURACY = Metric(id="accuracy", name="questions answered right", better="higher", margin=0.05)
TOKENS = Metric(
    id="tokens", name="tokens said a question", unit="tokens", scale="ratio", margin=0.05
)
# An engine of a tiny model is quickest with many sequences.
CONFIG = EngineConfig(max_sequences=128, max_batch_tokens=1024, block_tokens=4, n_blocks=8192)
UPDATES_BETWEEN_LOOKS = 5
MOST_STARTS = 5
COLON = worked_sums.encode(":")[0]


@dataclass
class Student:
    """A trained model with its questions, and its samples once they are drawn."""

    generator: Generator
    kind: Kind
    samples: list[Chosen] = field(default_factory=list)


class _Learned(Exception):
    """Enough steps are right."""


def step_accuracy(model: nn.Module, rows: Batch) -> float:
    """The share of steps whose result is right, what stands before them being right."""
    with torch.inference_mode():
        best = model(rows.input_ids).argmax(-1)
    at = (rows.input_ids == COLON) & (rows.targets >= 0)
    return float((best[at] == rows.targets[at]).float().mean())


def teach(model: nn.Module, data: Data, recipe: Recipe, *, seed: int, until: float) -> bool:
    """Train `model` until the share `until` of its steps is right, or to the end of the recipe.

    Whether it came so far.
    """
    rows = next(iter(data.held_out("validation")))
    n = 0

    def look(model: nn.Module) -> None:
        nonlocal n
        n += 1
        if n % UPDATES_BETWEEN_LOOKS == 0 and step_accuracy(model, rows) >= until:
            raise _Learned

    with contextlib.suppress(_Learned):
        train(model, data, recipe, seed=seed, after_step=look)
        return False
    return True


def students(context: Context) -> dict[int, Student]:
    """A student for each seed, kept in the experiment's folder."""
    found = {}
    for i, seed in enumerate(context.seeds):
        context.tick(i / len(context.seeds), f"teaching student {i + 1}")
        found[seed] = student(context, seed)
    return found


def student(context: Context, seed: int) -> Student:
    """The student of a seed."""
    budget = context.budget
    sizes = budget.sizes
    n_terms, n_tries = sizes["terms"], sizes.get("tries", 0)
    data = task("worked-sums", n_terms=n_terms, n_tries=n_tries)
    spec = model_of(budget, data)
    model = seeded(spec)(seed)
    path = context.folder / f"student-{seed}.safetensors"
    if path.exists():
        model.load_state_dict(load_file(path))
    else:
        recipe = Recipe(
            n_steps=budget.n_steps,
            batch_size=budget.batch_size,
            lr=budget.learning_rates[0],
            matrix_lr=2 * budget.learning_rates[0],
            # AdamW takes several times as long to find the table of sums.
            optimizer="muon",
            schedule="constant",
            warmup_steps=min(20, budget.n_steps),
            eval_every=0,
        )
        # Some initial weights never find the table of sums: others are drawn in their place.
        for i in range(MOST_STARTS):
            model = seeded(spec)(seed + 1000 * i)
            if teach(model, data, recipe, seed=seed, until=sizes["percent_right"] / 100):
                break
        save_file({k: v.contiguous() for k, v in model.state_dict().items()}, path)
    engine = Engine(model.eval().requires_grad_(False), None, CONFIG)
    return Student(
        generator=Generator(engine, worked_sums.decode, (worked_sums.END,)),
        kind=sums(sizes["questions"], n_terms=n_terms, seed=seed),
    )


def model_of(budget: Budget, data: Data) -> ModelSpec:
    """Two layers of heads of 16."""
    # What stands in a row of training, and an answer behind it.
    room = data.seq_len + worked_sums.answer_length(budget.sizes["terms"])
    return fitted(models.decoder(budget.sizes["d_model"], context_len=room), data)


def samples(student: Student, n: int, seed: int) -> list[Chosen]:
    """`n` samples of each question, drawn when they are first asked for."""
    if not student.samples:
        student.samples = best_of_n(
            student.generator,
            student.kind.questions,
            score=by_logprob,
            read_answer=student.kind.read_answer,
            n=n,
            max_tokens=student.kind.max_tokens,
            seed=seed,
        )
    return student.samples


def among_samples(
    student: Student, strategy: str, k: int, n: int, seed: int
) -> dict[str, float | tuple[tuple[float, float], ...]]:
    """What `strategy` makes of `k` samples, over all subsets of `n`; and of fewer, as a curve."""
    drawn = samples(student, n, seed)
    ks = [2**i for i in range(n.bit_length()) if 2**i <= n]
    points = of_samples(
        drawn, student.kind.read_answer, sorted({*ks, k}), [one.scores for one in drawn]
    )
    own = [p for p in points if p.strategy == strategy]
    here = next(p for p in own if p.setting == k)
    curve = tuple((float(p.n_tokens), p.accuracy) for p in own)
    return {"accuracy": here.accuracy, "tokens": here.n_tokens, f"{strategy}, by tokens": curve}


def measures(chosen: Sequence[Chosen]) -> dict[str, float]:
    """Accuracy and tokens of what a strategy answered."""
    n = len(chosen)
    return {
        "accuracy": sum(one.is_right for one in chosen) / n,
        "tokens": sum(one.n_said for one in chosen) / n,
    }


def unseen(setting: Setting) -> Iterator[Prediction]:
    """Cost sees no accuracy."""
    yield from predict.unseen(setting, "accuracy")


def samples_cost(n: Callable[[str], float | None]) -> Callable[[Setting], Iterator[Prediction]]:
    """Predictions: accuracy unseen, tokens as many times the baseline's as `n` of an arm says."""

    def predicted(setting: Setting) -> Iterator[Prediction]:
        yield from unseen(setting)
        for arm in setting.experiment.variants:
            times = n(arm.id)
            if times is not None:
                yield Prediction(
                    metric="tokens", arm=arm.id, value=times, low=times, high=times, basis="counted"
                )

    return predicted


QUICK = Budget(
    n_seeds=6,
    n_steps=400,
    batch_size=32,
    learning_rates=(1e-2,),
    sizes={"d_model": 48, "terms": 4, "percent_right": 80, "questions": 64, "samples": 8},
    seconds=4.0,
    setup_seconds=45.0,
)


def budgets(**sizes: int) -> dict[str, Budget]:
    """The three budgets, with sizes of an experiment's own."""
    quick = replace(QUICK, sizes={**QUICK.sizes, **sizes})
    return {
        "smoke": replace(
            quick,
            n_seeds=3,
            n_steps=10,
            sizes={**quick.sizes, "d_model": 32, "questions": 8},
            seconds=0.5,
            setup_seconds=3.0,
        ),
        "quick": quick,
        "full": replace(
            quick,
            n_seeds=10,
            n_steps=1000,
            sizes={**quick.sizes, "questions": 400, "samples": 16},
            seconds=30.0,
            setup_seconds=120.0,
        ),
    }
