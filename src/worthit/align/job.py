"""What `worthit align` is asked for, and everything that can be wrong with it before any training.

A job names a model, data, an output folder and a method. `prepare` loads the model, reads the data
in the shape that the method learns from, and says what it will cost; `worthit.align.run` does it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from worthit.align.constitution import Principle, read_constitution
from worthit.align.learn import recipe
from worthit.align.lora import add_lora
from worthit.align.sequences import Demonstration, Pair, Rated
from worthit.align.text import Encoded, encode
from worthit.decode.tokenizer import Tokenizer, load_tokenizer
from worthit.errors import InputError, unknown_name
from worthit.nn import Decoder
from worthit.nn.load import checkpoint_path, load_model
from worthit.spec.preferences import Example, Preferences, Shape, read_preferences
from worthit.train import Recipe

# The shapes of data that each method learns from, the one it was made for first.
TAKES: dict[str, tuple[Shape, ...]] = {
    "dpo": ("pair",),
    "ipo": ("pair",),
    "simpo": ("pair",),
    "orpo": ("pair",),
    "reward": ("pair",),
    "kto": ("binary", "pair"),
    "spin": ("demonstration",),
    "rlaif": ("prompt", "pair", "demonstration"),
    "constitutional-ai": ("prompt", "demonstration"),
    "grpo": ("demonstration", "prompt"),
    "ppo": ("demonstration", "prompt"),
}
METHODS = tuple(TAKES)
# Learning rates that the papers and their libraries start from; adapters take larger ones.
RATES = {"orpo": 8e-6, "reward": 1e-5}
USUAL_RATE, ADAPTER_FACTOR = 1e-6, 20.0
# How the shapes read in a message.
NAMES: dict[Shape, str] = {
    "pair": "pairs (chosen, rejected)",
    "binary": "rated answers (prompt, completion, label)",
    "demonstration": "demonstrations (prompt, completion)",
    "prompt": "prompts",
}
ADVICE: dict[Shape, str] = {
    "pair": "dpo, ipo, simpo, orpo, kto, reward or rlaif",
    "binary": "kto",
    "demonstration": "spin, rlaif, constitutional-ai, grpo or ppo",
    "prompt": "rlaif, constitutional-ai, grpo or ppo",
}


@dataclass(frozen=True, kw_only=True)
class Job:
    """What is asked for.

    Attributes:
        settings: of the method, by the names of its record (`beta`, `gamma`, `kind`, ...).
        n_epochs, n_steps: how long; the second where it is given.
        lr: None for the method's usual one.
        lora, alpha: the rank of adapters and their scale; rank 0 trains every weight.
        dtype: of the weights as they are loaded; bf16 for adapters alone.
        precision: of products.
        max_length: tokens of a prompt with an answer; None for the model's context.
        max_tokens, temperature: of answers that the model gives.
        held_out: the share of prompts that is not trained on.
        judge: the model that labels (`rlaif`, `constitutional-ai`); None is the model itself.
        certainty: how sure a label must be.
        criterion: what a better answer is, for the judge.
        constitution: a file of principles.
        reward: `exact`, or the folder of a reward model.
    """

    source: str
    data: Path
    out: Path
    method: str = "dpo"
    settings: dict[str, Any] = field(default_factory=dict)
    n_epochs: float = 1.0
    n_steps: int | None = None
    batch_size: int = 16
    n_accumulate: int = 1
    lr: float | None = None
    lora: int = 0
    alpha: float | None = None
    dtype: str = "fp32"
    precision: str = "fp32"
    max_length: int | None = None
    max_tokens: int = 128
    temperature: float = 1.0
    held_out: float = 0.05
    seed: int = 0
    judge: str | None = None
    certainty: float = 0.6
    criterion: str | None = None
    constitution: Path | None = None
    reward: str | None = None
    checkpoint_every_s: float = 60.0


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What it will take, before it is begun.

    Attributes:
        step_s: seconds of an update, from one that was tried; None where none was.
        n_updates: of all stages together, at most.
        memory_bytes: weights, gradients and optimizer.
    """

    n_updates: int
    memory_bytes: int
    n_learning: int
    step_s: float | None = None

    @property
    def seconds(self) -> float | None:
        """Of all updates; references, answers and labels come on top."""
        return None if self.step_s is None else self.step_s * self.n_updates


@dataclass(kw_only=True)
class Prepared:
    """A job with its model loaded and its data in ids."""

    job: Job
    path: Path
    model: Decoder
    tokenizer: Tokenizer
    data: Preferences
    encoded: Encoded
    examples: list[Example]
    recipe: Recipe
    max_length: int
    estimate: Estimate
    constitution: tuple[Principle, ...] = ()
    warnings: list[str] = field(default_factory=list)

    @property
    def n(self) -> int:
        """Examples that are learned from."""
        e = self.encoded
        return max(len(e.pairs), len(e.rated), len(e.shown), len(e.prompts))


def prepare(job: Job) -> Prepared:
    """Load and check everything.

    Raises:
        UnknownName: no such method.
        InputError: data of another shape, options that the method has no use for, and what the
            readers of models and data find.
    """
    check(job)
    path = checkpoint_path(job.source)
    data = read_preferences(job.data)
    if data.shape not in TAKES[job.method]:
        wanted = " or ".join(NAMES[shape] for shape in TAKES[job.method])
        raise InputError(
            f"{job.method} learns from {wanted}, and {job.data.name} holds {NAMES[data.shape]}; "
            f"those are for --method {ADVICE[data.shape]}"
        )
    if job.reward == "exact" and data.shape != "demonstration":
        raise InputError(
            "--reward exact: compares with the completion of each prompt, and "
            f"{job.data.name} has none; give demonstrations, or a reward model"
        )
    principles = () if job.constitution is None else read_constitution(job.constitution)
    tokenizer = load_tokenizer(path)
    model = load_model(path, dtype=job.dtype, packed=False)
    room = model.spec.context_len
    max_length = min(job.max_length or room, room)
    encoded = encode(data, tokenizer, max_length=max_length)
    examples = [e for e in data if e.line not in set(encoded.too_long)]
    if job.lora:
        add_lora(model, job.lora, alpha=job.alpha, seed=job.seed)
    n = len(examples)
    steps = job.n_steps or max(1, math.ceil(job.n_epochs * (1 - job.held_out) * n / job.batch_size))
    found = recipe(
        steps,
        batch_size=job.batch_size,
        lr=job.lr or usual_rate(job),
        n_accumulate=job.n_accumulate,
        precision=job.precision,
        checkpoint_every_s=job.checkpoint_every_s,
    )
    return Prepared(
        job=job,
        path=path,
        model=model,
        tokenizer=tokenizer,
        data=data,
        encoded=encoded,
        examples=examples,
        recipe=found,
        max_length=max_length,
        estimate=_estimate(job, model, steps),
        constitution=principles,
        warnings=[*encoded.warnings, *_cautions(job, data, encoded)],
    )


def check(job: Job) -> None:
    """Raise for what is wrong without looking at any file."""
    if job.method not in METHODS:
        raise unknown_name("method", job.method, METHODS)
    is_online = job.method in ("grpo", "ppo")
    problems = []
    if job.dtype != "fp32" and not job.lora:
        problems.append(
            f"--dtype {job.dtype}: small steps are rounded away in 16 bits and nothing is learned; "
            "add --lora 8, whose adapters are fp32, or leave it out (--precision bf16 is safe)"
        )
    if is_online and job.reward is None:
        problems.append(
            f"--reward: {job.method} needs to know what is good: exact (the answer equals the "
            "completion in the data), or the folder of a model made with --method reward"
        )
    if not is_online and job.reward is not None:
        problems.append(f"--reward: {job.method} has no use for it; it is for grpo and ppo")
    if job.method == "constitutional-ai" and job.constitution is None:
        problems.append("--constitution: give a text file of principles, one a paragraph")
    if job.method != "constitutional-ai" and job.constitution is not None:
        problems.append(f"--constitution: {job.method} has no use for it")
    if job.judge is not None and job.method not in ("rlaif", "constitutional-ai"):
        problems.append(f"--judge: {job.method} has no use for it")
    if not 0 <= job.held_out < 1:
        problems.append(f"--held-out: must be at least 0 and below 1, got {job.held_out}")
    if not 0.5 <= job.certainty < 1:
        problems.append(f"--certainty: must be at least 0.5 and below 1, got {job.certainty}")
    for name in ("n_epochs", "batch_size", "max_tokens", "temperature"):
        if not getattr(job, name) > 0:
            option = "--" + name.removeprefix("n_").replace("_", "-")
            problems.append(f"{option}: must be positive, got {getattr(job, name)}")
    if problems:
        raise InputError(*problems)


def usual_rate(job: Job) -> float:
    """The learning rate that a method starts from."""
    return RATES.get(job.method, USUAL_RATE) * (ADAPTER_FACTOR if job.lora else 1.0)


def rated_of(prepared: Prepared) -> list[Rated]:
    """The data as rated answers; a pair is a good one and a bad one."""
    found = list(prepared.encoded.rated)
    for pair in prepared.encoded.pairs:
        found.append(Rated(prompt=pair.prompt, completion=pair.chosen, is_good=True))
        found.append(Rated(prompt=pair.prompt, completion=pair.rejected, is_good=False))
    return found


def prompts_of(prepared: Prepared) -> list[tuple[int, ...]]:
    """The prompts, in the order of the data."""
    e = prepared.encoded
    if e.prompts:
        return e.prompts
    rows: Sequence[Pair | Rated | Demonstration] = e.pairs or e.rated or e.shown
    return [row.prompt for row in rows]


def described(job: Job) -> dict[str, Any]:
    """A job as plain JSON types, for its record and to recognise its work."""
    return {k: str(v) if isinstance(v, Path) else v for k, v in asdict(job).items()}


def _estimate(job: Job, model: Decoder, n_steps: int) -> Estimate:
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    learning = sum(p.numel() for p in model.parameters() if p.requires_grad)
    rounds = int(job.settings.get("n_rounds", 3)) if job.method == "spin" else 1
    stages = 2 if job.method == "constitutional-ai" else rounds
    copies = 1
    if job.method in ("grpo", "ppo") and job.settings.get("beta", 0.0) and not job.lora:
        copies = 2
    # Gradient and two moments in fp32 of everything that learns.
    memory = copies * weights + 12 * learning
    return Estimate(n_updates=stages * n_steps, memory_bytes=memory, n_learning=learning)


def _cautions(job: Job, data: Preferences, encoded: Encoded) -> list[str]:
    found = []
    if data.ignored:
        found.append(f"columns not read: {', '.join(data.ignored)}")
    if job.method == "kto":
        good = sum(r.is_good for r in encoded.rated) + len(encoded.pairs)
        bad = len(encoded.rated) + 2 * len(encoded.pairs) - good
        if good and bad and not 1 / 3 <= good / bad <= 3:
            found.append(
                f"{good} good and {bad} bad answers: the rarer kind is weighted up to balance"
            )
        if job.batch_size < 4:
            found.append(
                f"batch size {job.batch_size}: KTO's KL is a mean over the batch, and noisy below 4"
            )
    if job.method in ("rlaif", "constitutional-ai") and job.judge is None:
        found.append("no --judge: the model judges its own answers, which a small one cannot")
    return found
