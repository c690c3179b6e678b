"""What a set of preferences is like: size, duplicates, contradictions, label noise, biases.

Everything is read off the text: no model and no tokenizer, so lengths are in characters. Texts are
compared with runs of blanks as one. A share stands with a 95 % interval (Wilson 1927).

Two ways to label noise, the share of labels that are the wrong way round, e:

- **Judged twice.** Two labels of one comparison, each wrong by chance and on its own, differ with
  probability d = 2 e (1 - e), so e = (1 - sqrt(1 - 2 d)) / 2. Rows that are copies of one judgement
  count as agreement and make it too small; without repeats there is no estimate.
- **At most.** A judge of any kind agrees with labels that are flipped at random in a share e in at
  most 1 - e of them. The judge is a linear model of words and length, trained on one half and
  tested on the other; it bounds flips at random, not errors that follow a rule.
"""

from __future__ import annotations

import math
import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence

import numpy as np

from worthit.spec._preference_judge import agreement
from worthit.spec.preference_facts import PreferenceFacts, Share, TraitShare
from worthit.spec.preferences import Preferences, plain, read_preferences

Z95 = 1.959963984540054

TRAITS: dict[str, Callable[[str], object]] = {
    "list": re.compile(r"^\s*(?:[-*+•]|\d{1,3}[.)])\s+\S", re.MULTILINE).search,
    "heading": re.compile(r"^#{1,6}\s+\S", re.MULTILINE).search,
    "bold": re.compile(r"\*\*[^*\s][^*\n]*\*\*").search,
    "code": re.compile(r"```|^ {4}\S", re.MULTILINE).search,
    "table": re.compile(r"^\s*\|?\s*:?-{3,}:?\s*\|", re.MULTILINE).search,
}


def read_facts(path: str | os.PathLike[str]) -> PreferenceFacts:
    """The facts of a file of preferences; see `read_preferences` for what may be wrong with it."""
    return facts_of(read_preferences(path))


def facts_of(preferences: Preferences) -> PreferenceFacts:
    """Read the facts off a set of preferences; nothing in it is changed."""
    examples = preferences.examples
    prompts = [_normal(plain(e.prompt)) for e in examples]
    chosen = [_normal(plain(e.chosen)) for e in examples]
    rejected = [_normal(plain(e.rejected)) for e in examples]
    labels = [e.label for e in examples]
    rows = Counter(zip(prompts, chosen, rejected, labels, strict=True))
    chars = [
        len(plain(e.prompt)) + len(plain(answer)) for e in examples for answer in e.answers or ("",)
    ]
    shared = {
        "shape": preferences.shape,
        "n": len(examples),
        "n_prompts": len(set(prompts)),
        "duplicates": len(examples) - len(rows),
        "is_chat": preferences.is_chat,
        "mean_chars": sum(chars) / len(chars),
        "max_chars": max(chars),
        "source": preferences.source,
    }
    better = [plain(e.chosen) for e in examples]
    if preferences.shape == "pair":
        worse = [plain(e.rejected) for e in examples]
        votes = [
            ((p, min(c, r), max(c, r)), c < r)
            for p, c, r in zip(prompts, chosen, rejected, strict=True)
        ]
        steps = np.log(
            [max(len(b), 1) / max(len(w), 1) for b, w in zip(better, worse, strict=True)]
        )
        found = {
            **_judged(votes),
            "noise_at_most": _at_most(agreement(prompts, better, worse)),
            "longer": _longer_chosen(better, worse),
            "length_correlation": _within_pairs(steps),
            "length_ratio": math.exp(float(steps.mean())),
            "formatting": _pair_traits(better, worse),
        }
    elif preferences.shape == "binary":
        good = np.array([bool(label) for label in labels])
        lengths = np.log([max(len(b), 1) for b in better])
        found = {
            **_judged([((p, c), bool(x)) for p, c, x in zip(prompts, chosen, labels, strict=True)]),
            "longer": chance_of_larger(lengths, good),
            "length_correlation": _correlation(lengths, good),
            "formatting": _binary_traits(better, good),
            "desirable": float(good.mean()),
        }
    else:
        found = {}
    return PreferenceFacts(**shared, **found)  # type: ignore[arg-type]  # by name


def _normal(text: str) -> str:
    return " ".join(text.split())


# --- labels --------------------------------------------------------------------------------------


def _judged(votes: Sequence[tuple[tuple[str, ...], bool]]) -> dict[str, object]:
    """Contradictions, and noise where something was judged more than once."""
    by_question: dict[tuple[str, ...], list[bool]] = defaultdict(list)
    for question, vote in votes:
        by_question[question].append(vote)
    repeated = [found for found in by_question.values() if len(found) > 1]
    # Of all pairs of labels of one comparison, the share that differ; each comparison counts once.
    apart = [2 * sum(v) * (len(v) - sum(v)) / (len(v) * (len(v) - 1)) for v in repeated]
    return {
        "contradictions": sum(0 < sum(v) < len(v) for v in repeated),
        "judged_twice": len(repeated),
        "noise": noise_of(sum(apart) / len(apart), len(apart)) if apart else None,
    }


def noise_of(differing: float, n: int) -> Share:
    """The share of wrong labels of which two differ in a share `differing` of `n` comparisons."""
    low, high = wilson(differing, n)
    e, e_low, e_high = ((1 - math.sqrt(max(1 - 2 * d, 0.0))) / 2 for d in (differing, low, high))
    return Share(share=e, low=e_low, high=e_high, n=n, by_chance=0.0)


def _at_most(agreed: tuple[int, int] | None) -> float | None:
    if agreed is None:
        return None
    right, n = agreed
    return 1 - wilson(right / n, n)[0]


def wilson(share: float, n: int) -> tuple[float, float]:
    """The 95 % interval of a share seen in `n` cases (Wilson 1927).

    >>> tuple(round(x, 3) for x in wilson(0.5, 100))
    (0.404, 0.596)
    """
    centre = share + Z95**2 / (2 * n)
    half = Z95 * math.sqrt(share * (1 - share) / n + Z95**2 / (4 * n * n))
    scale = 1 + Z95**2 / n
    return max((centre - half) / scale, 0.0), min((centre + half) / scale, 1.0)


def share_of(hits: int, n: int, by_chance: float = 0.5) -> Share | None:
    """`hits` of `n` as a share, or None of none."""
    if n == 0:
        return None
    low, high = wilson(hits / n, n)
    return Share(share=hits / n, low=low, high=high, n=n, by_chance=by_chance)


# --- biases --------------------------------------------------------------------------------------


def _longer_chosen(better: Sequence[str], worse: Sequence[str]) -> Share | None:
    longer = sum(len(b) > len(w) for b, w in zip(better, worse, strict=True))
    shorter = sum(len(b) < len(w) for b, w in zip(better, worse, strict=True))
    return share_of(longer, longer + shorter)


def _within_pairs(steps: np.ndarray[tuple[int], np.dtype[np.float64]]) -> float | None:
    """Correlation of being chosen with log length, each pair about its own mean.

    Within a pair the lengths stand at plus and minus half of their difference, and so does being
    chosen: what remains of the correlation is mean over root mean square of the differences.
    """
    rms = math.sqrt(float((steps**2).mean()))
    return float(steps.mean()) / rms if rms else None


def chance_of_larger(
    values: np.ndarray[tuple[int], np.dtype[np.float64]],
    good: np.ndarray[tuple[int], np.dtype[np.bool_]],
) -> Share | None:
    """The chance that a good answer's value is above a bad one's, ties as half (Mann, Whitney)."""
    a, b = values[good], np.sort(values[~good])
    if not len(a) or not len(b):
        return None
    below = np.searchsorted(b, a, "left") + np.searchsorted(b, a, "right")
    area = float(below.sum()) / (2 * len(a) * len(b))
    # Its spread: Hanley and McNeil 1982.
    q1, q2 = area / (2 - area), 2 * area**2 / (1 + area)
    variance = area * (1 - area) + (len(a) - 1) * (q1 - area**2) + (len(b) - 1) * (q2 - area**2)
    half = Z95 * math.sqrt(max(variance, 0.0) / (len(a) * len(b)))
    return Share(share=area, low=max(area - half, 0.0), high=min(area + half, 1.0), n=len(values))


def _correlation(
    lengths: np.ndarray[tuple[int], np.dtype[np.float64]],
    good: np.ndarray[tuple[int], np.dtype[np.bool_]],
) -> float | None:
    if lengths.std() == 0 or good.std() == 0:
        return None
    return float(np.corrcoef(lengths, good)[0, 1])


def _pair_traits(better: Sequence[str], worse: Sequence[str]) -> tuple[TraitShare, ...]:
    found = []
    for trait, has in TRAITS.items():
        marks = [(bool(has(b)), bool(has(w))) for b, w in zip(better, worse, strict=True)]
        share = share_of(marks.count((True, False)), sum(b != w for b, w in marks))
        if share is not None:
            found.append(TraitShare(trait=trait, chosen=share))
    return tuple(found)


def _binary_traits(
    answers: Sequence[str], good: np.ndarray[tuple[int], np.dtype[np.bool_]]
) -> tuple[TraitShare, ...]:
    found = []
    for trait, has in TRAITS.items():
        marked = np.array([bool(has(answer)) for answer in answers])
        n = int(marked.sum())
        # A trait that all or none have tells good from bad in neither way.
        share = share_of(int(good[marked].sum()), n, by_chance=float(good.mean()))
        if share is not None and n < len(answers):
            found.append(TraitShare(trait=trait, chosen=share))
    return tuple(found)
