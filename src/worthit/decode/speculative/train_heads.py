"""Heads for a model, from the model alone: `worthit train-heads`.

The model writes (`own_outputs`), heads learn to foresee it (`head_losses`), and how much they
foresee of texts that they did not learn from is counted. What it takes is timed before it is begun.
All that is made on the way stands in `OUT.work`: a run that was stopped goes on from there, and OUT
appears at the end, whole.
"""

from __future__ import annotations

import itertools
import json
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from worthit.decode.corpus import read_text
from worthit.decode.speculative.head_losses import (
    N_STEPS,
    Lesson,
    Teacher,
    agreement,
    lesson_loss,
    warm_start,
)
from worthit.decode.speculative.heads import (
    DRAFT_VOCAB,
    Heads,
    HeadsConfig,
    Kind,
    likely_tokens,
    make_heads,
    save_heads,
    spread_taps,
    target_facts,
)
from worthit.decode.speculative.own_outputs import Outputs, block
from worthit.decode.tokenizer import Tokenizer, load_tokenizer
from worthit.errors import InputError
from worthit.nn.decoder import Decoder
from worthit.nn.inference import optimize
from worthit.nn.load import checkpoint_path, load_model
from worthit.train.batch import Batch
from worthit.train.loop import train
from worthit.train.progress import Update
from worthit.train.recipe import Recipe

OnWork = Callable[[str, int, int], None]
DEFAULT_MINUTES = 10.0
# Times that every text is learned from.
N_PASSES = 2.0
# One block of texts in so many is not learned from.
HELD_OUT = 8
# Steps timed before a run, for its estimate.
TIMED_STEPS = 6


@dataclass(frozen=True, kw_only=True)
class Job:
    """What is asked for.

    Attributes:
        n_tokens: of the model's own text; None for as many as `minutes` allow.
        data: a file of prompts, one a line, to be answered instead of the model's own questions.
        n_heads: of medusa.
        rows, length: of a block of text: texts that go on together, and their tokens.
        depth: after which layer an exit reads, as a share of all.
    """

    source: str
    out: Path
    kind: Kind = "eagle"
    n_tokens: int | None = None
    minutes: float | None = None
    data: Path | None = None
    seed: int = 0
    n_heads: int = 3
    draft_vocab: int = DRAFT_VOCAB
    rows: int = 48
    length: int = 256
    depth: float = 1 / 3
    batch_rows: int = 8
    lr: float = 1e-3
    n_passes: float = N_PASSES


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How much of everything, and how long it should take here.

    Attributes:
        n_blocks: of text; the last ones are held out.
        write_s, learn_s: seconds, from a few steps timed just now.
        disk_bytes: of features, until the end.
    """

    n_blocks: int
    n_tokens: int
    n_steps: int
    write_s: float
    learn_s: float
    disk_bytes: int

    @property
    def seconds(self) -> float:
        """Expected time."""
        return self.write_s + self.learn_s


@dataclass(kw_only=True)
class Prepared:
    """A job with its model in memory, ready to run: as it was loaded, and made fast for text."""

    job: Job
    model: Decoder
    writer: Decoder
    tokenizer: Tokenizer
    config: HeadsConfig
    prompts: list[str]
    plan: Plan


def prepare(job: Job) -> Prepared:
    """Load, time, and plan; nothing is written.

    Raises:
        InputError: settings out of range, something in the place of `out`, or a run in `OUT.work`
            of other settings.
    """
    _check(job)
    path = checkpoint_path(job.source)
    tokenizer = load_tokenizer(path)
    prompts = [] if job.data is None else _prompts(job.data)
    model = load_model(path, dtype="fp32", packed=False).requires_grad_(requires_grad=False)
    writer = optimize(load_model(path, dtype="bf16", packed=False))
    return prepare_with(job, model, writer, tokenizer, prompts)


def prepare_with(
    job: Job, model: Decoder, writer: Decoder, tokenizer: Tokenizer, prompts: Sequence[str] = ()
) -> Prepared:
    """`prepare` with models that are in memory: one in fp32 to make heads of, one that writes."""
    config = config_of(job, model)
    saved = _work(job) / "plan.json"
    if saved.is_file():
        stated = json.loads(saved.read_text(encoding="utf-8"))
        if stated["job"] != _about(job):
            raise InputError(
                f"{_work(job)}: holds a run of other settings; remove it to start over, or give "
                "those it was begun with"
            )
        plan = Plan(**stated["plan"])
    else:
        plan = planned(job, model, writer, tokenizer, config)
    return Prepared(
        job=job,
        model=model,
        writer=writer,
        tokenizer=tokenizer,
        config=config,
        prompts=list(prompts),
        plan=plan,
    )


def config_of(job: Job, model: Decoder) -> HeadsConfig:
    """The heads that `job` asks for."""
    last = len(model.layers) - 1
    taps: tuple[int, ...] = (last,)
    if job.kind == "eagle":
        taps = spread_taps(model)
    elif job.kind == "exit":
        taps = (min(last - 1, max(0, round(job.depth * (last + 1)) - 1)), last)
    return HeadsConfig(
        kind=job.kind,
        taps=taps,
        draft_vocab=min(job.draft_vocab, model.spec.vocab_size),
        n_heads=job.n_heads if job.kind == "medusa" else 1,
        target=target_facts(model),
    )


def planned(
    job: Job, model: Decoder, writer: Decoder, tokenizer: Tokenizer, config: HeadsConfig
) -> Plan:
    """From a few steps of writing and of learning, timed now, to all of them."""
    stamps = [time.perf_counter()]
    sample = block(
        writer,
        tokenizer,
        config.taps,
        rows=job.rows,
        length=max(TIMED_STEPS, 8),
        seed=job.seed,
        on_step=lambda: stamps.append(time.perf_counter()),
    )
    write_s = (stamps[-1] - stamps[2]) / (len(stamps) - 3) / job.rows  # a token
    heads = fresh_heads(job, model, config, torch.arange(config.draft_vocab))
    n = min(job.batch_rows * job.length, 512) // sample.ids.shape[1] + 1
    lesson = Lesson(
        sample.ids[:1].repeat(1, n),
        torch.ones(1, n * sample.ids.shape[1], dtype=torch.bool),
        sample.features[:1].repeat(1, n, 1),
    )
    teacher = Teacher(model, heads)
    learn_s = float("inf")
    for _ in range(2):
        started = time.perf_counter()
        _loss(heads, teacher, lesson).backward()
        learn_s = min(learn_s, (time.perf_counter() - started) / lesson.ids.numel())
    # Of a text about half is the model's own choice, and only that is learned.
    per_token = write_s + job.n_passes * learn_s
    n_tokens = job.n_tokens
    if n_tokens is None:
        n_tokens = int(60 * (job.minutes or DEFAULT_MINUTES) / per_token)
    each = job.rows * job.length
    n_blocks = max(2, round(n_tokens / each))
    n_learned = n_blocks - max(1, n_blocks // HELD_OUT)
    n_steps = max(1, round(job.n_passes * n_learned * job.rows / job.batch_rows))
    width = len(config.taps) * model.spec.d_model
    return Plan(
        n_blocks=n_blocks,
        n_tokens=n_blocks * each,
        n_steps=n_steps,
        write_s=n_blocks * each * write_s,
        learn_s=n_steps * job.batch_rows * job.length * learn_s,
        disk_bytes=n_blocks * each * width * 2,
    )


def run(prepared: Prepared, on_work: OnWork | None = None) -> dict[str, Any]:
    """Write, learn, count, save: the record of `worthit train-heads`."""
    job, plan = prepared.job, prepared.plan
    say = on_work or (lambda what, done, of: None)
    work = _work(job)
    work.mkdir(parents=True, exist_ok=True)
    _write_json(work / "plan.json", {"job": _about(job), "plan": asdict(plan)})
    started = time.perf_counter()
    blocks = list(written(prepared, work, say))
    write_s = time.perf_counter() - started
    heads, score = learned(prepared, blocks, work / "learning", say)
    learn_s = time.perf_counter() - started - write_s
    trained = {
        "n_tokens": plan.n_tokens,
        "n_steps": plan.n_steps,
        "seed": job.seed,
        "prompts": None if job.data is None else job.data.name,
        "write_s": round(write_s, 1),
        "learn_s": round(learn_s, 1),
        **score,
    }
    heads.config = replace(heads.config, trained=trained)
    save_heads(heads, job.out)
    shutil.rmtree(work, ignore_errors=True)
    return {
        "schema": "worthit.train-heads/1",
        "model": job.source,
        "out": str(job.out),
        "kind": job.kind,
        "taps": list(heads.config.taps),
        "draft_vocab": heads.config.draft_vocab,
        "n_params": sum(p.numel() for p in heads.parameters()),
        "trained": trained,
        "estimate": {**asdict(plan), "seconds": plan.seconds},
    }


def written(prepared: Prepared, work: Path, say: OnWork) -> Iterator[Outputs]:
    """The blocks of text, those that are on disk from there."""
    from safetensors.torch import load_file, save_file

    job, n = prepared.job, prepared.plan.n_blocks
    for i in range(n):
        path = work / f"outputs-{i:05d}.safetensors"
        if not path.is_file():
            made = block(
                prepared.writer,
                prepared.tokenizer,
                prepared.config.taps,
                rows=job.rows,
                length=job.length,
                seed=1_000 * job.seed + i,
                prompts=prepared.prompts,
                on_step=_counting(say, i * job.length, n * job.length),
            )
            partial = path.with_suffix(".part")
            save_file({k: v.contiguous() for k, v in vars(made).items()}, partial)
            partial.replace(path)
        yield Outputs(**load_file(path))


def _counting(say: OnWork, done: int, of: int) -> Callable[[], None]:
    steps = itertools.count(done + 1)
    return lambda: say("the model writes", next(steps), of)


def fresh_heads(job: Job, model: Decoder, config: HeadsConfig, ids: Tensor) -> Heads:
    """Heads before they learn anything, the same for a seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(job.seed)
        heads = make_heads(config, model).take_head(model, ids)
        warm_start(heads, model)
    return heads


def learned(
    prepared: Prepared, blocks: Sequence[Outputs], folder: Path | None, say: OnWork
) -> tuple[Heads, dict[str, Any]]:
    """Heads that have learned from all but the last blocks, and what they foresee of those."""
    job, model = prepared.job, prepared.model
    n_held = max(1, len(blocks) // HELD_OUT)
    data = Texts(blocks[:-n_held], model.spec.vocab_size)
    said = data.texts.ids[data.texts.is_said]
    config = prepared.config
    ids = likely_tokens(said, model.spec.vocab_size, config.draft_vocab)
    heads = fresh_heads(job, model, config, ids)
    teacher = Teacher(model, heads)
    recipe = Recipe(
        n_steps=prepared.plan.n_steps,
        batch_size=job.batch_rows,
        lr=job.lr,
        weight_decay=0.0,
        warmup_steps=min(20, prepared.plan.n_steps // 10),
        min_lr_ratio=0.05,
        precision="bf16",
        eval_every=0,
        checkpoint_every_s=30.0,
    )

    def note(update: Update) -> None:
        say("heads learn", update.step, update.n_steps)

    def loss(module: nn.Module, batch: Batch) -> Tensor:
        assert isinstance(module, Heads)
        return lesson_loss(module, teacher, data.lesson(batch))

    history = train(heads, data, recipe, seed=job.seed, folder=folder, loss=loss, progress=note)
    held = Texts(blocks[-n_held:], model.spec.vocab_size)
    score = foreseen(heads, held)
    coverage = torch.isin(held.texts.ids[held.texts.is_said], ids).float().mean()
    # Of the last batches that had anything to learn.
    losses = [step["loss"] for step in history.steps if step["loss"]][-5:]
    loss_then = sum(losses) / max(1, len(losses))
    return heads, {**score, "coverage": round(float(coverage), 4), "loss": round(loss_then, 4)}


def foreseen(heads: Heads, data: Texts, *, rows: int = 8) -> dict[str, Any]:
    """Of texts said greedily: the share of drafts whose first, second, ... token is right.

    `accepted` is their sum: the tokens that a chain of as many keeps on average.
    """
    kept = []
    greedy = data.texts.ids.shape[0] // 2
    for start in range(0, greedy, rows):
        which = list(range(2 * start, min(2 * (start + rows), 2 * greedy), 2))
        with torch.autocast("cpu", torch.bfloat16):
            kept.append(agreement(heads, data.rows(which)))
    right = torch.cat(kept, dim=1)
    shares = right.mean(dim=1).tolist() if right.shape[1] else [0.0] * right.shape[0]
    return {
        "acceptance": [round(share, 4) for share in shares],
        "accepted": round(sum(shares), 4),
        "n_drafts": int(right.shape[1]),
    }


class Texts:
    """Blocks of the model's own text, as what `train` draws batches from.

    A batch carries the numbers of its rows, as its groups; `lesson` finds their features.
    """

    name = "own-outputs"

    def __init__(self, blocks: Sequence[Outputs], vocab_size: int) -> None:
        self.vocab_size = vocab_size
        self.texts = Outputs(
            *(
                torch.cat([getattr(one, name) for one in blocks])
                for name in ("ids", "is_said", "features")
            )
        )
        self.seq_len = self.texts.ids.shape[1]

    def batch(self, generator: torch.Generator, size: int) -> Batch:
        """Rows at random."""
        rows = torch.randint(len(self.texts.ids), (size,), generator=generator)
        ids = self.texts.ids[rows]
        return Batch(ids, ids, tuple(str(row) for row in rows.tolist()))

    def held_out(self, split: str = "test") -> Iterator[Batch]:
        """None: what is held out are other blocks."""
        return iter(())

    def lesson(self, batch: Batch) -> Lesson:
        """The batch with its features."""
        return self.rows([int(row) for row in batch.groups])

    def rows(self, which: Sequence[int]) -> Lesson:
        """These rows."""
        texts = self.texts
        rows = list(which)
        return Lesson(texts.ids[rows], texts.is_said[rows], texts.features[rows].float())


def _loss(heads: Heads, teacher: Teacher, lesson: Lesson) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return lesson_loss(heads, teacher, replace(lesson, features=lesson.features.float()))


def _check(job: Job) -> None:
    problems = [
        f"{name}: must be at least {least}, got {value}"
        for name, value, least in (
            ("tokens", job.n_tokens, 1),
            ("heads", job.n_heads, 1),
            ("draft-vocab", job.draft_vocab, 1),
            ("rows", job.rows, 2),
            ("length", job.length, N_STEPS + 2),
        )
        if value is not None and value < least
    ]
    if job.minutes is not None and not job.minutes > 0:
        problems.append(f"minutes: must be positive, got {job.minutes}")
    if job.n_tokens is not None and job.minutes is not None:
        problems.append("tokens and minutes: give one of them, the other follows")
    if job.out.exists():
        problems.append(f"{job.out}: is there already; give a folder that is not")
    if not job.out.absolute().parent.is_dir():
        problems.append(f"{job.out}: its folder {job.out.absolute().parent} is not there")
    if problems:
        raise InputError(*problems)


def _prompts(path: Path) -> list[str]:
    lines = [line.strip() for line in read_text(path).splitlines() if line.strip()]
    if not lines:
        raise InputError(f"{path}: has no prompt; write one a line")
    return lines


def _work(job: Job) -> Path:
    return job.out.with_name(f"{job.out.name}.work")


def _about(job: Job) -> dict[str, Any]:
    return {k: str(v) if isinstance(v, Path) else v for k, v in asdict(job).items()}


def _write_json(path: Path, data: object) -> None:
    partial = path.with_suffix(".part")
    partial.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
    partial.replace(path)
