"""Detecting wrong answers: uncertainty of the logits, agreement of samples, probes of states.

| feature | what | source |
|---|---|---|
| `entropy` | of the first token of the answer, in nats | Kadavath et al. 2022, arXiv:2207.05221 |
| `surprise` | mean -log p of the answer's tokens | Malinin & Gales 2020, arXiv:2002.07650 |
| `margin` | minus the lead of the first token over the second, in log p | |
| `disagreement` | entropy over different answers of samples | Kuhn et al. 2023, arXiv:2302.09664 |
| `probe` | logistic regression on the stream where the answer begins | Azaria & Mitchell 2023 |

Kuhn et al. cluster answers by entailment; here two answers are one where they are the same words
but for case, articles and punctuation, which asks for short answers. Every feature is calibrated
and judged on other questions; controls are a probe at layer 0 and one with shuffled labels.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from worthit.decode.generate import generate
from worthit.decode.sampling import Sampling
from worthit.errors import InputError
from worthit.interp.calibration import DetectorReport, area_under_risk, judge_detector
from worthit.interp.hooks import capture
from worthit.interp.probe import fit_probe, split

if TYPE_CHECKING:
    from worthit.decode.tokenizer import Tokenizer
    from worthit.nn.decoder import Decoder

FEATURES = ("entropy", "surprise", "margin", "disagreement")
# Of errors and of right answers, each: below this nothing can be calibrated and judged.
FEWEST = 8


@dataclass(frozen=True)
class Answered:
    """One question, what was said to it, and how surely.

    Attributes:
        is_wrong: whether none of the right answers stands in what was said.
        features: by name; higher is less sure.
        states: `(d,)` by point, at the last token of the prompt.
    """

    question: str
    said: str
    is_wrong: bool
    features: Mapping[str, float]
    states: Mapping[str, Tensor]


def ask(
    model: Decoder,
    tokenizer: Tokenizer,
    questions: Sequence[tuple[str, Sequence[str]]],
    *,
    points: Sequence[str],
    max_tokens: int = 12,
    n_samples: int = 0,
    temperature: float = 1.0,
    seed: int = 0,
    encode: Callable[[str], list[int]] | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[Answered]:
    """Ask every question greedily, and `n_samples` times at `temperature`.

    Args:
        questions: each with its right answers.
        points: whose states are kept.
        encode: a question to ids; the tokenizer's own by default.
    """
    encode = encode or tokenizer.encode
    answered = []
    for i, (question, right) in enumerate(questions):
        ids = encode(question)
        said = generate(model, ids, max_tokens=max_tokens, tokenizer=tokenizer, stop=("\n",))[0]
        features, kept = _uncertainty(model, ids, said.ids, points)
        if n_samples:
            others = generate(
                model,
                [ids] * n_samples,
                max_tokens=max_tokens,
                tokenizer=tokenizer,
                stop=("\n",),
                sampling=Sampling(temperature=temperature),
                seed=seed + i,
            )
            features["disagreement"] = answer_entropy([other.text or "" for other in others])
        text = said.text or ""
        answered.append(Answered(question, text.strip(), not is_right(text, right), features, kept))
        if on_progress is not None:
            on_progress(i + 1, len(questions))
    return answered


@torch.inference_mode()
def _uncertainty(
    model: Decoder, ids: list[int], said: list[int], points: Sequence[str]
) -> tuple[dict[str, float], dict[str, Tensor]]:
    whole = torch.tensor([[*ids, *said[:-1]]], device=model.device)
    with capture(model, points, is_detached=True) as seen:
        logits = model(whole)[0, len(ids) - 1 :].float()
    p = logits.log_softmax(-1)
    best = p[0].topk(2).values
    chosen = [float(p[i, token]) for i, token in enumerate(said)]
    features = {
        "entropy": float(-(p[0].exp() * p[0]).sum()),
        "surprise": -sum(chosen) / len(chosen) if chosen else 0.0,
        "margin": float(best[1] - best[0]),
    }
    return features, {name: seen[name][0, len(ids) - 1].float().clone() for name in points}


def plain(text: str) -> str:
    """A text without case, articles and punctuation.

    >>> plain("  The Paris, of course!")
    'paris of course'
    """
    words = re.findall(r"\w+", text.casefold())
    return " ".join(w for w in words if w not in ("the", "a", "an"))


def is_right(said: str, right: Sequence[str]) -> bool:
    """Whether one of the right answers stands in what was said, as whole words."""
    words = f" {plain(said)} "
    return any(f" {plain(answer)} " in words for answer in right)


def answer_entropy(texts: Sequence[str]) -> float:
    """Entropy in nats over the different answers among samples.

    >>> round(answer_entropy(["Paris", "paris.", "Rome", "Rome"]), 4)
    0.6931
    """
    counts = np.array([*Counter(plain(t) for t in texts).values()], float)
    p = counts / counts.sum()
    return float(-(p * np.log(p)).sum())


@dataclass(frozen=True)
class Detection:
    """Every detector on the same held-out questions.

    Attributes:
        reports: by name; `probe@point`, `shuffled@point` among them.
        n_fit: questions that probes and calibration were fitted to.
    """

    reports: Mapping[str, DetectorReport]
    n_fit: int
    accuracy: float
    cautions: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Its part of the record of `worthit probe`."""
        return {
            "accuracy": self.accuracy,
            "n_fit": self.n_fit,
            "detectors": [
                {**report.to_json(), "area_under_risk": area_under_risk(report.curve)}
                for report in self.reports.values()
            ],
            "cautions": list(self.cautions),
        }


def detect(answered: Sequence[Answered], *, share: float = 0.5, seed: int = 0) -> Detection:
    """Judge all features and a probe at every point, on a `share` of questions held out.

    Raises:
        InputError: too few errors or right answers to say anything.
    """
    wrong = torch.tensor([a.is_wrong for a in answered]).long()
    n_wrong = int(wrong.sum())
    if min(n_wrong, len(wrong) - n_wrong) < FEWEST:
        raise InputError(
            f"questions: {n_wrong} of {len(wrong)} answers are wrong, and a detector needs "
            f"{FEWEST} or more of either kind; ask more, or harder or easier ones"
        )
    fit, held = split(wrong, share=share, seed=seed)
    scores: dict[str, np.ndarray[Any, Any]] = {}
    for name in FEATURES:
        if name in answered[0].features:
            scores[name] = np.array([a.features[name] for a in answered])
    points = list(answered[0].states)
    shuffle = fit[torch.randperm(len(fit), generator=torch.Generator().manual_seed(seed))]
    # Scores of a probe on the rows it was fitted to are too good to calibrate on: two halves.
    first, second = split(wrong[fit], share=0.5, seed=seed + 1)
    for point in points:
        x = torch.stack([a.states[point] for a in answered])
        crossed = np.zeros(len(answered))
        for a, b in ((first, second), (second, first)):
            crossed[fit[b]] = fit_probe(x[fit[a]], wrong[fit[a]]).scores(x[fit[b]]).numpy()
        crossed[held] = fit_probe(x[fit], wrong[fit]).scores(x[held]).numpy()
        scores[f"probe@{point}"] = crossed
        nonsense = fit_probe(x[fit], wrong[shuffle]).scores(x).numpy()
        scores[f"shuffled@{point}"] = nonsense
    y = wrong.numpy().astype(float)
    reports = {
        name: judge_detector(
            name, s[held], y[held], fit_score=s[fit], fit_is_wrong=y[fit], seed=seed
        )
        for name, s in scores.items()
    }
    return Detection(
        reports, len(fit), 1 - float(y.mean()), tuple(_cautions(reports, points, len(held)))
    )


def _cautions(
    reports: Mapping[str, DetectorReport], points: Sequence[str], n_held: int
) -> list[str]:
    said = []
    real = {n: r for n, r in reports.items() if not n.startswith("shuffled")}
    if all(r.is_useless for r in real.values()):
        said.append(
            "No interval of an AUROC lies above 0.5: nothing here is shown to detect an error."
        )
    best = max(real.values(), key=lambda r: r.auroc.value)
    cheap = max((r for n, r in real.items() if "@" not in n), key=lambda r: r.auroc.value)
    if best.name != cheap.name and best.auroc.low <= cheap.auroc.value:
        said.append(
            f"{best.name} ({best.auroc}) is not shown to beat {cheap.name} ({cheap.auroc}), which "
            "costs nothing."
        )
    first = reports.get(f"probe@{points[0]}") if points else None
    is_late = best.name.startswith("probe@") and best is not first
    if first is not None and is_late and best.auroc.low <= first.auroc.value:
        said.append(
            f"{first.name} reads {first.auroc.value:.2f} already: the question's words may be "
            "what tells."
        )
    if n_held < 50:
        said.append(f"{n_held} held-out questions leave wide intervals; 200 halve them.")
    return said
