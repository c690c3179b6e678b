"""What `worthit steer`, `probe`, `patch` and `edit` do: files in, one record out."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from worthit.decode.corpus import sequences
from worthit.decode.generate import generate
from worthit.decode.tokenizer import Tokenizer, load_tokenizer
from worthit.decode.tokenizer_files import save_tokenizer
from worthit.errors import InputError
from worthit.interp import patch as patching
from worthit.interp.calibration import auroc
from worthit.interp.detect import ask, detect
from worthit.interp.directions import Direction, from_pairs, load_direction, random_like
from worthit.interp.edit import find_edit, score_edit, second_moment
from worthit.interp.hooks import intervene
from worthit.interp.points import expand, width
from worthit.interp.probe import probe_layers
from worthit.interp.steering import Intervention, ablate, add, without_direction, written
from worthit.interp.texts import (
    Position,
    Texts,
    encode_all,
    fact_of,
    kind_of,
    read_rows,
    residual_points,
    states,
)
from worthit.nn.decoder import Decoder
from worthit.nn.load import checkpoint_path, load_model
from worthit.nn.save import save_model

OnWork = Callable[[str, int, int], None]
# Of contrast pairs: this share is held out, to see whether the direction parts new ones.
HELD_OUT = 0.25
FEWEST_PAIRS = 4
# Rows of text whose keys an edit's covariance is of, and tokens of a row.
N_ROWS, ROW = 24, 128


@dataclass(frozen=True)
class Subject:
    """A model to look into, with its tokenizer; its weights are plain, fp32 and frozen."""

    name: str
    model: Decoder
    tokenizer: Tokenizer

    def encode(self, text: str, *, is_chat: bool | None = None) -> list[int]:
        """A prompt's ids; as a chat where the model has a template, unless told otherwise."""
        if is_chat is None:
            is_chat = self.tokenizer.chat_template is not None
        if is_chat:
            return self.tokenizer.encode_chat([{"role": "user", "content": text}])
        return self.tokenizer.encode(text)


def load(name: str) -> Subject:
    """The model called `name`: weights unpacked to fp32, since they are read and changed."""
    path = checkpoint_path(name)
    model = load_model(path, dtype="fp32", packed=False).eval()
    model.requires_grad_(requires_grad=False)
    return Subject(name, model, load_tokenizer(path))


def point_of(model: Decoder, layer: int | None, point: str | None) -> str:
    """The point that is meant: by name, by layer, or the middle of the model."""
    if point is not None:
        if layer is not None:
            raise InputError("--layer and --point both say where; give one")
        found = expand(model, point)
        if len(found) != 1:
            raise InputError(f"--point: must be one point, got {len(found)} of {point!r}")
        return found[0]
    chosen = len(model.layers) // 2 if layer is None else layer
    return expand(model, f"layers.{chosen}.resid_post")[0]


# --- steer ---------------------------------------------------------------------------------------


def direction_of(
    subject: Subject,
    *,
    pairs: Texts | None,
    file: str | Path | None,
    point: str,
    position: Position = "last",
    on_work: OnWork | None = None,
) -> tuple[Direction, dict[str, Any]]:
    """A direction from contrast pairs or from a file, and what is known of it."""
    if (pairs is None) == (file is None):
        raise InputError("a direction comes from --pairs or from --direction: give one of them")
    if file is not None:
        direction = load_direction(file)
        if len(direction.vector) != width(subject.model, direction.point):
            raise InputError(
                f"{file}: is {len(direction.vector)} wide, and {direction.point} of this model is "
                f"{width(subject.model, direction.point)}"
            )
        return direction, {"from": str(file)}
    assert pairs is not None
    rows = read_rows(pairs, "pairs")
    if len(rows) < FEWEST_PAIRS:
        raise InputError(f"{pairs}: needs {FEWEST_PAIRS} pairs or more, got {len(rows)}")
    sides = []
    for side in ("positive", "negative"):
        ids = encode_all(subject.tokenizer, [row[side] for row in rows])
        say = None if on_work is None else (lambda i, n, s=side: on_work(f"{s} texts", i, n))
        sides.append(states(subject.model, ids, [point], position=position, on_progress=say)[point])
    n_held = max(round(HELD_OUT * len(rows)), 1)
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))
    held, fit = order[:n_held], order[n_held:]
    trial = from_pairs(sides[0][fit], sides[1][fit], point)
    along = torch.cat([sides[0][held], sides[1][held]]) @ trial.unit
    parts = auroc(along.tolist(), [1] * n_held + [0] * n_held)
    direction = from_pairs(
        sides[0], sides[1], point, note=f"{len(rows)} pairs of {Path(str(pairs)).name}"
    )
    stream = float(torch.cat(sides).norm(dim=-1).mean())
    facts = {
        "from": str(pairs),
        "n_pairs": len(rows),
        "position": position,
        "stream_norm": stream,
        "share_of_stream": direction.norm / stream,
        "held_out_auroc": parts,
        "n_held_out": n_held,
    }
    return direction, facts


def steered(
    subject: Subject,
    prompt: str,
    direction: Direction,
    *,
    strength: float = 1.0,
    is_ablation: bool = False,
    is_chat: bool | None = None,
    max_tokens: int = 40,
    seed: int = 0,
    on_work: OnWork | None = None,
) -> list[dict[str, Any]]:
    """What the model says as it is, steered, and along a random direction of the same length.

    Each comes with its perplexity under the model as it is: the price in fluency.
    """
    model, ids = subject.model, subject.encode(prompt, is_chat=is_chat)

    def functions(vector: Tensor) -> dict[str, Intervention]:
        if is_ablation:
            return dict.fromkeys(written(model), ablate(vector))
        return {direction.point: add(vector, strength)}

    arms: list[tuple[str, Mapping[str, Intervention]]] = [
        ("as it is", {}),
        ("steered", functions(direction.vector)),
        ("random", functions(random_like(direction.vector, seed))),
    ]
    said = []
    for i, (name, steering) in enumerate(arms):
        with intervene(model, steering):
            found = generate(model, ids, max_tokens=max_tokens, tokenizer=subject.tokenizer)[0]
        said.append(
            {
                "arm": name,
                "text": found.text,
                "ids": found.ids,
                "perplexity": continuation_perplexity(model, ids, found.ids),
            }
        )
        if on_work is not None:
            on_work("texts", i + 1, len(arms))
    return said


@torch.inference_mode()
def continuation_perplexity(model: Decoder, prompt: Sequence[int], said: Sequence[int]) -> float:
    """exp of the mean -log p of what was said after the prompt, under `model` as it is."""
    if not said:
        return float("nan")
    logits = model(torch.tensor([[*prompt, *said[:-1]]]))[0, len(prompt) - 1 :].float()
    p = logits.log_softmax(-1).gather(-1, torch.tensor(said)[:, None])
    return math.exp(-float(p.mean()))


def bake(subject: Subject, direction: Direction, out: str | Path) -> None:
    """Write the model without the direction into a new folder."""
    if Path(out).exists():
        raise InputError(f"{out}: is there already; name a new folder")
    _write(subject, without_direction(subject.model, direction.vector), Path(out))


# --- probe ---------------------------------------------------------------------------------------


def probed(
    subject: Subject,
    path: Texts,
    *,
    points: Sequence[str] = (),
    position: Position = "last",
    n_samples: int = 0,
    on_work: OnWork | None = None,
) -> dict[str, Any]:
    """Probe labelled texts at every layer, or detect wrong answers to questions."""
    kind = kind_of(path, ("labels", "questions"))
    rows = read_rows(path, kind)
    wanted = expand(subject.model, list(points)) if points else residual_points(subject.model)
    if kind == "questions":
        middle, last = wanted[len(wanted) // 2], wanted[-1]
        chosen = wanted if points else list(dict.fromkeys([wanted[0], middle, last]))
        questions = [
            (row["question"], [row["answer"]] if isinstance(row["answer"], str) else row["answer"])
            for row in rows
        ]
        answered = ask(
            subject.model,
            subject.tokenizer,
            questions,
            points=chosen,
            n_samples=n_samples,
            encode=subject.encode,
            on_progress=None if on_work is None else lambda i, n: on_work("questions", i, n),
        )
        found = detect(answered).to_json()
        answers = [
            {"question": a.question, "said": a.said, "is_wrong": a.is_wrong} for a in answered
        ]
        return {"kind": "questions", "n": len(rows), **found, "answers": answers}
    names = sorted({str(row["label"]) for row in rows})
    if len(names) < 2:
        raise InputError(f"{path}: needs two labels or more, got {names}")
    z = torch.tensor([names.index(str(row["label"])) for row in rows])
    ids = encode_all(subject.tokenizer, [row["text"] for row in rows])
    say = None if on_work is None else (lambda i, n: on_work("texts", i, n))
    found_states = states(subject.model, ids, wanted, position=position, on_progress=say)
    groups = [str(row.get("group", i)) for i, row in enumerate(rows)]
    has_groups = len(set(groups)) < len(rows)
    report = probe_layers(found_states, z, groups=groups if has_groups else None)
    return {"kind": "labels", "n": len(rows), "labels": names, "position": position} | (
        report.to_json()
    )


# --- patch ---------------------------------------------------------------------------------------


def patched(
    subject: Subject,
    path: Texts,
    *,
    points: Sequence[str] = ("layers.*.resid_pre",),
    kind: patching.Kind = "denoising",
    is_estimate: bool = False,
    on_work: OnWork | None = None,
) -> dict[str, Any]:
    """Patch every pair of prompts in a file, pair by pair: they may differ in length."""
    rows = read_rows(path, "prompts")
    results, problems = [], []
    encoded = []
    for i, row in enumerate(rows, 1):
        clean, corrupt = encode_all(subject.tokenizer, [row["clean"], row["corrupt"]])
        right, wrong = (
            subject.tokenizer.encode(" " + row[k].strip(), has_special=False)[0]
            for k in ("right", "wrong")
        )
        if len(clean) != len(corrupt):
            problems.append(f"row {i}: clean has {len(clean)} tokens and corrupt {len(corrupt)}")
        if right == wrong:
            problems.append(f"row {i}: right and wrong begin with the same token")
        encoded.append((clean, corrupt, right, wrong))
    if problems:
        raise InputError(*problems, context=str(path))
    for i, (clean, corrupt, right, wrong) in enumerate(encoded):
        metric = patching.logit_difference([right], [wrong])
        a, b = torch.tensor([clean]), torch.tensor([corrupt])
        if is_estimate:
            found = patching.attribute(subject.model, a, b, metric, points, kind=kind)
        else:
            say = (
                None
                if on_work is None
                else (lambda done, of, i=i: on_work(f"pair {i + 1} of {len(rows)}", done, of))
            )
            found = patching.patch(subject.model, a, b, metric, points, kind=kind, on_progress=say)
        tokens = [subject.tokenizer.decode([t], has_special=True) for t in clean]
        differs = [j for j, (x, y) in enumerate(zip(clean, corrupt, strict=True)) if x != y]
        results.append(
            {
                **rows[i],
                "tokens": tokens,
                "differs": differs,
                **found.to_json(),
                "strongest": [
                    {"point": p, "place": list(w), "effect": e} for p, w, e in found.strongest(8)
                ],
            }
        )
    return {"points": list(points), "is_estimate": is_estimate, "pairs": results}


# --- edit ----------------------------------------------------------------------------------------


def edited(
    subject: Subject,
    path: Texts,
    *,
    layer: int,
    out: str | Path | None = None,
    n_steps: int = 20,
    max_tokens: int = 12,
    on_work: OnWork | None = None,
) -> dict[str, Any]:
    """Edit every fact of a file, each scored alone; all of them, one after another, into `out`."""
    if out is not None and Path(out).exists():
        raise InputError(f"{out}: is there already; name a new folder")
    model, tokenizer = subject.model, subject.tokenizer
    facts = [fact_of(row) for row in read_rows(path, "facts")]
    rows = sequences(tokenizer, N_ROWS, ROW, part="calibration").tolist()
    say = None if on_work is None else (lambda i, n: on_work("text", i, n))
    moment = second_moment(model, layer, rows, on_progress=say)
    found = []
    for i, fact in enumerate(facts):
        asked = tokenizer.encode(fact.prompt.format(fact.subject))
        before, said = score_edit(model, tokenizer, fact), _says(subject, asked, max_tokens)
        tell = None if on_work is None else (lambda d, n, i=i: on_work(f"fact {i + 1}", d, n))
        edit = find_edit(
            model, tokenizer, fact, moment, layer=layer, n_steps=n_steps, on_progress=tell
        )
        with edit.applied(model):
            after, says = score_edit(model, tokenizer, fact), _says(subject, asked, max_tokens)
        if out is not None:
            edit.apply(model)
        found.append(
            {
                "prompt": fact.prompt.format(fact.subject),
                "target": fact.target.strip(),
                "likelihood": edit.likelihood,
                "before": {"text": said, **before.to_json()},
                "after": {"text": says, **after.to_json()},
            }
        )
    record: dict[str, Any] = {"layer": layer, "facts": found, "out": None}
    if out is not None:
        _write(subject, model, Path(out))
        record["out"] = str(out)
        record["together"] = [score_edit(model, tokenizer, fact).to_json() for fact in facts]
    return record


def _write(subject: Subject, model: Decoder, out: Path) -> None:
    """A folder that loads: weights, config and tokenizer; it appears when it is complete."""
    partial = out.with_name(out.name + ".partial")
    save_model(model, partial)
    save_tokenizer(subject.tokenizer, partial)
    partial.rename(out)


def _says(subject: Subject, ids: list[int], max_tokens: int) -> str:
    return (
        generate(subject.model, ids, max_tokens=max_tokens, tokenizer=subject.tokenizer)[0].text
        or ""
    )
