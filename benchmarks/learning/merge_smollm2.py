"""Two short fine-tunes of SmolLM2 on different texts, merged by `worthit merge`, and what it says.

    python benchmarks/learning/merge_smollm2.py FOLDER [--steps 12] [--methods linear]

One variant reads English verb forms with their Spanish translations, the other the standard
library's source; each by adapters that are then merged into the weights. Base, variants and merges
are scored on text of both kinds that neither has read, and answer one prompt of each. It takes
about three minutes of one core and 3 GB of disk in the folder, which is left for you to look at. A
model whose folder is there is not made again, and what was scored stays in `record.json`: the same
command goes on where it was stopped, and other --methods are added. For other steps or rows take
another folder.
"""

from __future__ import annotations

import argparse
import inspect
import json
import shutil
import statistics
import textwrap
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

import worthit
from worthit.align.lora import add_lora
from worthit.align.lora import merge as merge_adapters
from worthit.cli.main import run
from worthit.decode.tokenizer import Tokenizer, load_tokenizer
from worthit.decode.tokenizer_files import save_tokenizer
from worthit.lab.tasks._verbs import PERSONS, PRONOUNS, TENSES, verbs

BASE = "smollm2-135m-instruct"
SEQ_LEN, BATCH = 64, 4
RANK, RATE = 8, 2e-3
RECIPES = {
    "task_arithmetic": "merge_method: task_arithmetic\nparameters: {weight: 0.7}",
    "ties": "merge_method: ties\nparameters: {weight: 1.0, density: 0.5}",
    "linear": "merge_method: linear\nparameters: {weight: 0.5}",
}
PROMPTS = {"forms": "English: he will learn. Spanish:", "source": "def mean(data):\n"}


def texts() -> dict[str, tuple[str, str]]:
    """By kind, what is trained on and what is held out."""
    lines = [
        f"English: {PRONOUNS['en'][p]} {verb.forms['en'][tense, person]}. "
        f"Spanish: {PRONOUNS['es'][p]} {verb.forms['es'][tense, person]}.\n"
        for verb in verbs()
        for tense in TENSES
        for p, person in enumerate(PERSONS)
    ]
    order = torch.randperm(len(lines), generator=torch.Generator().manual_seed(0)).tolist()
    mixed = [lines[i] for i in order]
    return {
        "forms": ("".join(mixed[60:]), "".join(mixed[:60])),
        "source": (inspect.getsource(statistics), inspect.getsource(textwrap)),
    }


def rows(text: str, tokenizer: Tokenizer) -> torch.Tensor:
    """`(n, SEQ_LEN + 1)` tokens of a text, cut into rows."""
    ids = tokenizer.encode(text, has_special=False)
    n = len(ids) // (SEQ_LEN + 1)
    return torch.tensor(ids[: n * (SEQ_LEN + 1)]).view(n, SEQ_LEN + 1)


def loss_of(model: Any, batch: torch.Tensor) -> torch.Tensor:
    """Nats a token."""
    logits = model(batch[:, :-1])
    return functional.cross_entropy(logits.flatten(0, 1).float(), batch[:, 1:].flatten())


def variant(text: str, tokenizer: Tokenizer, folder: Path, n_steps: int) -> float:
    """Fine-tune the base on `text` and write it; seconds that took."""
    started = time.perf_counter()
    model = worthit.load_model(BASE, packed=False)
    add_lora(model, RANK, seed=0)
    learning = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=RATE, weight_decay=0.0)
    data, chance = rows(text, tokenizer), torch.Generator().manual_seed(0)
    model.train()
    for step in range(n_steps):
        picked = torch.randint(len(data), (BATCH,), generator=chance)
        loss = loss_of(model, data[picked])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        print(f"{folder.name}: step {step + 1} of {n_steps}, loss {float(loss):.3f}", flush=True)
    with torch.no_grad():
        merge_adapters(model)
    write(model, tokenizer, folder)
    return time.perf_counter() - started


def write(model: Any, tokenizer: Tokenizer, folder: Path) -> None:
    """A checkpoint folder with its tokenizer, which has its name once it is whole."""
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    worthit.save_model(model, part)
    save_tokenizer(tokenizer, part)
    part.rename(folder)


def look_at(folder: Path, held_out: dict[str, torch.Tensor]) -> dict[str, Any]:
    """Losses on both kinds of text, and what it says."""
    model = worthit.load_model(folder)
    tokenizer = load_tokenizer(folder)
    found: dict[str, Any] = {}
    with torch.no_grad():
        found["losses"] = {kind: float(loss_of(model, data)) for kind, data in held_out.items()}
        found["says"] = {
            kind: said(model, tokenizer, prompt, 12) for kind, prompt in PROMPTS.items()
        }
    return found


def said(model: Any, tokenizer: Tokenizer, prompt: str, n: int) -> str:
    """The likeliest continuation, `n` tokens."""
    ids = list(tokenizer.encode(prompt, has_special=False))
    start = len(ids)
    for _ in range(n):
        ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
    return tokenizer.decode(ids[start:])


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, merge, look."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--rows", type=int, default=4, help="held-out rows a kind")
    parser.add_argument("--methods", nargs="*", choices=list(RECIPES), default=list(RECIPES))
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    given.folder.mkdir(parents=True, exist_ok=True)
    about = {"steps": given.steps, "rows": given.rows}
    path = given.folder / "record.json"
    record: dict[str, Any] = {**about, "seconds": {}, "models": {}}
    if path.is_file():
        record = json.loads(path.read_text(encoding="utf-8"))
        if {key: record[key] for key in about} != about:
            parser.error(f"{path} is of other steps or rows; take another folder")
    tokenizer = load_tokenizer(BASE)
    kinds = texts()
    held_out = {kind: rows(text, tokenizer)[: given.rows] for kind, (_, text) in kinds.items()}

    def keep() -> None:
        text = json.dumps(record, indent=1, ensure_ascii=False) + "\n"
        path.write_text(text, encoding="utf-8")

    keep()
    if not (given.folder / "base").is_dir():
        write(worthit.load_model(BASE, packed=False), tokenizer, given.folder / "base")
    for kind, (text, _) in kinds.items():
        if not (given.folder / kind).is_dir():
            record["seconds"][kind] = variant(text, tokenizer, given.folder / kind, given.steps)
            keep()
    for name in given.methods:
        if not (given.folder / name).is_dir():
            made = given.folder / f"{name}.yml"
            sources = "".join(f"  - model: ./{kind}\n" for kind in kinds)
            base = "" if name == "linear" else "base_model: ./base\n"
            made.write_text(f"{RECIPES[name]}\n{base}models:\n{sources}", encoding="utf-8")
            assert run(["merge", str(made), str(given.folder / name)]) == 0
    for name in ("base", *kinds, *given.methods):
        if name not in record["models"]:
            record["models"][name] = look_at(given.folder / name, held_out)
            keep()
        print(name, json.dumps(record["models"][name], ensure_ascii=False), flush=True)


if __name__ == "__main__":
    main()
