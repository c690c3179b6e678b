"""Time updates of DPO beside TRL: the same weights, pairs, batches and optimizer, in turns.

    python benchmarks/learning/bench_dpo.py --out benchmarks/results/dpo.json
    python benchmarks/learning/bench_dpo.py --d-model 64 --layers 2 --steps 4 --rounds 2   # a try

Both sides start from one random Llama, saved once, and their weights after the same updates must
agree before anything is timed. A round is `--steps` updates of each side, in an order that is drawn
anew; a time is what each side says of its own loop (`History.wall_s`, `train_runtime`), so that
loading, tokenizing and setting up are in neither. Log-probabilities of the reference are computed
beforehand on both sides. AdamW without decay, fp32, no dropout, one line of log at the end; TRL's
trainer runs as its users run it on a CPU.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import statistics
import tempfile
import warnings
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Its trainers report when asked; here nobody asks.
os.environ.setdefault("TQDM_DISABLE", "1")

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers

from worthit.align import DPO, Pair, Pairs, learn_pairs, recipe
from worthit.nn.load import load_model

END = 1
BETA = 0.1
# Sums in another order: fp32 after a few updates.
AGREE = {"rtol": 2e-3, "atol": 2e-5}


def main() -> None:
    """Check, time, print, and write a record."""
    options = _options()
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore")
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        pairs = made_up_pairs(options)
        _llama(options).save_pretrained(home / "model")
        difference = check(home, pairs, options)
        sides = {"worthit": _ours, "trl": _theirs}
        seconds: dict[str, list[float]] = {name: [] for name in sides}
        order = random.Random(0)
        for round_ in range(-1, options.rounds):  # the first one warms up
            for name in order.sample(list(sides), len(sides)):
                spent = sides[name](home, pairs, options)[0]
                if round_ >= 0:
                    seconds[name].append(spent / options.steps)
    record = _record(options, seconds, difference)
    print(_text(record))
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def check(home: Path, pairs: Sequence[Pair], options: argparse.Namespace) -> float:
    """The largest difference of a weight after the same updates; raises where it is one."""
    _, mine = _ours(home, pairs, options)
    _, theirs = _theirs(home, pairs, options)
    (home / "trained").mkdir()
    theirs.save_pretrained(home / "trained")
    expected = load_model(home / "trained")
    start = load_model(home / "model")
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


def _ours(
    home: Path, pairs: Sequence[Pair], options: argparse.Namespace
) -> tuple[float, torch.nn.Module]:
    model = load_model(home / "model", dtype="fp32")
    data = _InOrder("made up", pairs, [], vocab_size=options.vocab)
    data.refer(model)
    data.refer = lambda model, cache=None: None  # type: ignore[method-assign]  # done, untimed
    settings = recipe(
        options.steps,
        batch_size=options.batch,
        lr=options.lr,
        schedule="constant",
        warmup_steps=0,
        eval_every=0,
        log_every=options.steps,
    )
    learned = learn_pairs(model, data, DPO(beta=BETA), settings, seed=0)
    return learned.history.wall_s, model


def _theirs(home: Path, pairs: Sequence[Pair], options: argparse.Namespace) -> tuple[float, Any]:
    import trl
    from datasets import Dataset
    from torch.utils.data import SequentialSampler

    model = transformers.AutoModelForCausalLM.from_pretrained(home / "model", dtype=torch.float32)
    rows = [
        {
            "prompt": _words(p.prompt),
            "chosen": " " + _words(p.chosen[:-1]),
            "rejected": " " + _words(p.rejected[:-1]),
        }
        for p in pairs
    ]
    arguments = trl.DPOConfig(
        output_dir=str(home / "trl"),
        beta=BETA,
        loss_type=["sigmoid"],
        per_device_train_batch_size=options.batch,
        max_steps=options.steps,
        learning_rate=options.lr,
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
        processing_class=_tokenizer(options.vocab),
    )
    trainer._get_train_sampler = lambda dataset=None: SequentialSampler(trainer.train_dataset)
    trainer.remove_callback(transformers.PrinterCallback)
    done = trainer.train()
    return done.metrics["train_runtime"], trainer.model


def made_up_pairs(options: argparse.Namespace) -> list[Pair]:
    """Random words, with answers of unequal lengths."""
    drawn = random.Random(0)

    def words(low: int, high: int) -> tuple[int, ...]:
        return tuple(drawn.randrange(3, options.vocab) for _ in range(drawn.randint(low, high)))

    half = options.length // 2
    return [
        Pair(
            prompt=words(half, half),
            chosen=(*words(half // 2, half - 1), END),
            rejected=(*words(half // 2, half - 1), END),
        )
        for _ in range(options.steps * options.batch)
    ]


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


def _llama(options: argparse.Namespace) -> Any:
    torch.manual_seed(0)
    n_heads = max(options.d_model // 64, 1)
    config = transformers.LlamaConfig(
        vocab_size=options.vocab,
        hidden_size=options.d_model,
        intermediate_size=8 * options.d_model // 3 // 8 * 8,
        num_hidden_layers=options.layers,
        num_attention_heads=n_heads,
        num_key_value_heads=n_heads,
        max_position_embeddings=2 * options.length,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=END,
        tie_word_embeddings=False,
    )
    return transformers.LlamaForCausalLM(config)


def _record(
    options: argparse.Namespace, seconds: dict[str, list[float]], difference: float
) -> dict[str, Any]:
    import trl

    ratios = [t / o for t, o in zip(seconds["trl"], seconds["worthit"], strict=True)]
    return {
        "what": "seconds of an update of DPO",
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "machine": platform.processor() or platform.machine(),
        "threads": options.threads,
        "versions": {
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "trl": trl.__version__,
        },
        "model": {"d_model": options.d_model, "layers": options.layers, "vocab": options.vocab},
        "batch": {"pairs": options.batch, "length": options.length},
        "steps": options.steps,
        "rounds": options.rounds,
        "largest_difference_of_a_weight": difference,
        "step_s": {name: _spread(values) for name, values in seconds.items()},
        "speedup": _spread(ratios),
    }


def _spread(values: Sequence[float]) -> dict[str, float]:
    ordered = sorted(values)
    last = len(ordered) - 1
    return {
        "median": statistics.median(ordered),
        "p20": ordered[round(0.2 * last)],
        "p80": ordered[round(0.8 * last)],
    }


def _text(record: dict[str, Any]) -> str:
    lines = [f"{record['what']}, {record['rounds']} rounds in turns, {record['threads']} thread(s)"]
    for name, s in record["step_s"].items():
        lines.append(
            f"  {name:<8} {1000 * s['median']:8.1f} ms [{1000 * s['p20']:.1f}, "
            f"{1000 * s['p80']:.1f}], {1 / s['median']:.2f} updates/s"
        )
    s = record["speedup"]
    lines.append(f"  {s['median']:.2f} times as fast [{s['p20']:.2f}, {s['p80']:.2f}]")
    return "\n".join(lines)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--d-model", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--vocab", type=int, default=4096)
    parser.add_argument("--length", type=int, default=128, help="tokens of a prompt and an answer")
    parser.add_argument("--batch", type=int, default=8, help="pairs an update")
    parser.add_argument("--steps", type=int, default=10, help="updates a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--lr", type=float, default=1e-5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
