"""A small judge of pairs: how far words and length alone tell the chosen answer from the other.

A Bradley-Terry model, P(chosen) = sigmoid(w . (f(chosen) - f(rejected))), on hashed words. Prompts
are divided into two halves, so that none is trained and tested on; each half is judged by the model
of the other.
"""

from __future__ import annotations

import math
import re
import zlib
from collections import Counter
from collections.abc import Sequence

import numpy as np

N_FEATURES = 1 << 14
# Enough that the interval of a share is within 2 %.
N_PAIRS = 4000
# Below this a half has too few pairs to learn anything, and the bound says nothing.
LEAST_PAIRS = 40
N_EPOCHS = 4
RATE = 0.5
DECAY = 1e-3
_WORD = re.compile(r"\w+")

Features = tuple[
    np.ndarray[tuple[int], np.dtype[np.int64]], np.ndarray[tuple[int], np.dtype[np.float64]]
]


def agreement(
    prompts: Sequence[str], better: Sequence[str], worse: Sequence[str]
) -> tuple[int, int] | None:
    """Of how many pairs the judge names the chosen answer, and of how many in all.

    None where there are too few pairs, or too few prompts, to judge.
    """
    # Spread over the file, whose order may mean something; the same ones every time.
    step = max(len(prompts) // N_PAIRS, 1)
    picked = range(0, len(prompts), step)[:N_PAIRS]
    halves: tuple[list[Features], list[Features]] = ([], [])
    seen: set[str] = set()
    for i in picked:
        key = prompts[i] + "\0" + min(better[i], worse[i]) if prompts[i] == "" else prompts[i]
        seen.add(key)
        halves[zlib.crc32(key.encode()) >> 8 & 1].append(_difference(better[i], worse[i]))
    if min(map(len, halves)) < LEAST_PAIRS // 2 or len(seen) < LEAST_PAIRS:
        return None
    right = 0.0
    for train, test in (halves, halves[::-1]):
        w = _fit(train)
        scores = [float(w[index] @ value) for index, value in test]
        # An answer that the judge cannot tell apart is a coin.
        right += sum(0.5 if s == 0 else s > 0 for s in scores)
    return int(right), len(picked)


def _difference(better: str, worse: str) -> Features:
    counts: Counter[int] = Counter()
    for text, sign in ((better, 1), (worse, -1)):
        for word, n in Counter(w.casefold() for w in _WORD.findall(text)).items():
            # Of a word said often, the logarithm; the first feature is kept for the length.
            place = 1 + zlib.crc32(word.encode()) % (N_FEATURES - 1)
            counts[place] += sign * (1 + math.log(n))  # type: ignore[assignment]  # a float
    counts[0] = math.log(max(len(better), 1) / max(len(worse), 1))  # type: ignore[assignment]
    kept = {place: value for place, value in counts.items() if value}
    index = np.fromiter(kept, np.int64, len(kept))
    value = np.fromiter(kept.values(), np.float64, len(kept))
    size = math.sqrt(float(value @ value))
    return index, value / size if size else value


def _fit(pairs: Sequence[Features]) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Logistic regression through the origin by stochastic gradients, in a fixed order."""
    w = np.zeros(N_FEATURES)
    order = np.random.default_rng(0).permutation(len(pairs))
    for epoch in range(N_EPOCHS):
        rate = RATE / (1 + epoch)
        for i in order:
            index, value = pairs[i]
            score = float(w[index] @ value)
            w[index] += rate * (value / (1 + math.exp(min(score, 50.0))) - DECAY * w[index])
    return w
