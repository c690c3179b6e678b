"""Which method fits checkpoints, and with what density and scale, by what was read of them.

Rules, each with its number, its threshold and where that is from. They are about what is visible in
weights; quality is not, so every answer is provisional until the merged model is measured.

    weights at right angles, no base         never: another start, other coordinates
    not near the base                        never: not fine-tuned from it
    one task vector                          linear: a share of one fine-tuning
    task vectors along one direction         linear: nothing conflicts
    at right angles, two of them             task arithmetic: nothing to resolve
    otherwise                                TIES: conflicts among what is large
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from worthit.merge.reading import Reading, Vector

# Checkpoints of two random starts have weights at right angles; of one start, above 0.9.
UNRELATED = 0.3
RELATED = 0.9
# Task vectors whose cosine is below this do not touch. Ilharco et al. 2023 find those of different
# tasks close to orthogonal; where that ends is ours to set, and an experiment's to correct.
SEPARATE = 0.25
# From here on, two task vectors are one direction with noise, as those of one task and two seeds.
SAME = 0.5
# Share of differing signs among what is large in both, below which an election has little to do.
# Independent signs differ in 0.5.
CONFLICT = 0.25
# Entries whose steps stay below this survive the loss of 90 % and more (Yu et al. 2023: 0.002 to
# 0.005 after fine-tuning); above the second, hardly any (0.03 after further pre-training).
DARE_SMALL = 0.005
DARE_LARGE = 0.03
# Of two task vectors, one so many times longer decides sums and elections alone.
UNEVEN = 3.0
DARE_DENSITY = 0.1

Verdict = Literal["apply", "defer", "never"]


@dataclass(frozen=True, kw_only=True)
class Advice:
    """What to do with the checkpoints.

    Attributes:
        verdict: `apply` (try this), `defer` (something is missing) or `never`.
        method: of a recipe; None where none fits.
        parameters: of that method, as a recipe has them; `weight` by model.
        reasons: why, each with its number and the threshold it was held against.
        others: methods that are worth trying beside it, each with its reason.
        cautions: what may go wrong.
        check_with: what puts it to the test.
    """

    verdict: Verdict
    method: str | None
    parameters: Mapping[str, Any] = field(default_factory=dict)
    reasons: tuple[str, ...] = ()
    others: Mapping[str, str] = field(default_factory=dict)
    cautions: tuple[str, ...] = ()
    evidence: str = "predicted"
    check_with: str = ""

    def to_json(self) -> dict[str, Any]:
        """The advice's part of the record of `worthit judge --merge`."""
        return {
            "verdict": self.verdict,
            "method": self.method,
            "parameters": dict(self.parameters),
            "reasons": list(self.reasons),
            "others": dict(self.others),
            "cautions": list(self.cautions),
            "evidence": self.evidence,
            "check_with": self.check_with,
        }


CHECK = "every task's own held-out set: each checkpoint, the base and the merge"


def advise(reading: Reading) -> Advice:
    """The method for the checkpoints that were read."""
    if reading.problems:
        return Advice(
            verdict="never",
            method=None,
            reasons=("They cannot be merged entry by entry as they are.", *reading.problems),
            others={"passthrough": "takes whole layers, and needs only equal widths"}
            if _has_equal_widths(reading)
            else {},
        )
    if reading.recipe.base_model is None:
        return _without_base(reading)
    far = [(m, c) for m, c in reading.to_base.items() if c < UNRELATED]
    if far:
        model, cosine = far[0]
        return Advice(
            verdict="never",
            method=None,
            reasons=(
                f"{model} was not fine-tuned from {reading.recipe.base_model}: the cosine of their "
                f"weights is {cosine:.2f}, below {UNRELATED}; a difference from it means nothing.",
            ),
        )
    still = [v.model for v in reading.vectors if v.length == 0]
    if still:
        return Advice(
            verdict="defer",
            method=None,
            reasons=(f"{still[0]} equals the base: it has nothing to add; leave it out.",),
        )
    return _with_base(reading)


def _has_equal_widths(reading: Reading) -> bool:
    return reading.n_params > 0 and not any("mean different" in p for p in reading.problems)


def _without_base(reading: Reading) -> Advice:
    nearest = min(reading.pairs, key=lambda p: p.of_weights)
    said = f"the cosine of the weights of {nearest.one} and {nearest.two} is"
    if nearest.of_weights < UNRELATED:
        return Advice(
            verdict="never",
            method=None,
            reasons=(
                f"Trained from different starts: {said} {nearest.of_weights:.2f}, below "
                f"{UNRELATED}. The same function then has its units in another order, and a mean "
                "of unrelated units is noise.",
            ),
            cautions=("Units can be matched first (arXiv:2209.04836); that is not done here.",),
        )
    n = len(reading.models)
    method = "slerp" if n == 2 else "linear"
    ask = "Name the base_model if there is one: task vectors tell far more than weights do."
    return Advice(
        verdict="defer",
        method=method,
        parameters={"t": 0.5} if n == 2 else {"weight": dict.fromkeys(reading.models, 1 / n)},
        reasons=(
            f"Without a base only means can be taken: {said} {nearest.of_weights:.3f}"
            + (f", above {RELATED}: one start." if nearest.of_weights >= RELATED else "."),
            f"{'Two checkpoints' if n == 2 else f'{n} checkpoints'}: {method}.",
        ),
        cautions=(ask,),
        check_with=CHECK,
    )


def _with_base(reading: Reading) -> Advice:
    """The rules for task vectors, in the order of the module's table."""
    vectors, pairs = reading.vectors, reading.pairs
    if len(vectors) == 1:
        found = _one_vector(reading, vectors[0])
    else:
        cosines = [p.cosine for p in pairs if p.cosine is not None and not math.isnan(p.cosine)]
        lowest, highest = min(cosines, default=0.0), max(cosines, default=0.0)
        conflict = max((p.conflict for p in pairs if p.conflict is not None), default=0.0)
        shown = _two(lowest) if len(cosines) == 1 else f"{_two(lowest)} to {_two(highest)}"
        if lowest >= SAME:
            found = _one_direction(reading, shown)
        elif highest < SEPARATE and (len(vectors) == 2 or conflict < CONFLICT):
            found = _separate(reading, shown, conflict)
        else:
            found = _conflicting(reading, shown, conflict)
    return replace(found, cautions=_cautions(reading), check_with=CHECK)


def _one_vector(reading: Reading, only: Vector) -> Advice:
    return Advice(
        verdict="apply",
        method="linear",
        parameters={"weight": {reading.recipe.base_model: 0.5, only.model: 0.5}},
        reasons=(
            f"One task vector, {_percent(only.length)} of the base's length: what can be chosen is "
            "how much of it to keep (arXiv:2109.01903). Start in the middle.",
        ),
    )


def _one_direction(reading: Reading, shown: str) -> Advice:
    return Advice(
        verdict="apply",
        method="linear",
        parameters={"weight": dict.fromkeys(reading.models, 1 / len(reading.models))},
        reasons=(
            f"Task vectors point one way: cosine {shown}, above {SAME}. That is one task learned "
            "more than once, and the mean of it is a model soup (arXiv:2203.05482).",
        ),
        others={"model_stock": "sets its own ratio from the same cosines (arXiv:2403.19522)"},
    )


def _separate(reading: Reading, shown: str, conflict: float) -> Advice:
    weights = _weights(reading.vectors)
    scale = _scale(reading, weights)
    reasons = [
        f"Task vectors do not touch: cosine {shown}, below {SEPARATE}; their sum keeps each "
        "(arXiv:2212.04089).",
        f"Lambda {scale:.2g} makes the sum as long as one task vector; the best one is found on "
        "held-out data, between 0.3 and 1.",
    ]
    others = _dare(reading.vectors)
    if conflict >= CONFLICT:
        reasons.append(
            f"Among what is large in both, {_percent(conflict)} of the signs differ, and 50 % do "
            "by chance: with two models an election can only drop one side."
        )
        others = {"ties": "where the sum loses one task on your data"} | others
    return Advice(
        verdict="apply",
        method="task_arithmetic",
        parameters={"weight": weights, "lambda": round(scale, 2)},
        reasons=tuple(reasons),
        others=others,
    )


def _conflicting(reading: Reading, shown: str, conflict: float) -> Advice:
    weights = _weights(reading.vectors)
    scale = _scale(reading, weights)
    densities = {v.model: round(v.density, 2) for v in reading.vectors}
    held = "; ".join(f"{_percent(v.density)} of {v.model}" for v in reading.vectors)
    return Advice(
        verdict="apply",
        method="ties",
        parameters={"weight": weights, "density": densities, "lambda": 1.0},
        reasons=(
            f"{len(reading.vectors)} task vectors with cosine {shown}; among what is large in two "
            f"of them up to {_percent(conflict)} of the signs differ (threshold "
            f"{_percent(CONFLICT)}): an election decides them one by one (arXiv:2306.01708).",
            f"Density: 90 % of the squared length lies in the largest {held}.",
        ),
        others={"task_arithmetic": f"as the baseline, with lambda {scale:.2g}"}
        | _dare(reading.vectors),
    )


def _weights(vectors: Sequence[Vector]) -> dict[str, float]:
    """Equal weights, or where lengths are uneven, such that each counts alike; sum: the number."""
    lengths = [v.length for v in vectors]
    if max(lengths) < UNEVEN * min(lengths):
        return {v.model: 1.0 for v in vectors}
    inverse = [1 / length for length in lengths]
    return {
        v.model: round(len(vectors) * x / sum(inverse), 3)
        for v, x in zip(vectors, inverse, strict=True)
    }


def _scale(reading: Reading, weights: Mapping[str, float]) -> float:
    """The lambda at which the sum is as long as one task vector is on average."""
    vectors = reading.vectors
    index = {v.model: i for i, v in enumerate(vectors)}
    lengths = np.array([weights[v.model] * v.length for v in vectors])
    cosines = np.eye(len(vectors))
    for pair in reading.pairs:
        i, j = index[pair.one], index[pair.two]
        cosines[i, j] = cosines[j, i] = pair.cosine if pair.cosine is not None else 0.0
    total = math.sqrt(max(float(lengths @ cosines @ lengths), 0.0))
    return float(lengths.mean()) / total if total > 0 else 1.0


def _dare(vectors: Sequence[Vector]) -> dict[str, str]:
    """What DARE would find, by the size of the steps."""
    largest = max(v.p99 for v in vectors)
    steps = f"99 % of the steps are below {largest:.2g}"
    if largest <= DARE_SMALL:
        reason = f"within {DARE_SMALL}: most can be dropped, density {DARE_DENSITY}"
    elif largest <= DARE_LARGE:
        reason = f"between {DARE_SMALL} and {DARE_LARGE}: drop half at most"
    else:
        return {}
    return {"dare_ties": f"{steps}, {reason} (arXiv:2311.03099)"}


def _cautions(reading: Reading) -> tuple[str, ...]:
    found = list(reading.warnings)
    lengths = {v.model: v.length for v in reading.vectors}
    longest, shortest = max(lengths, key=lengths.__getitem__), min(lengths, key=lengths.__getitem__)
    if lengths[longest] >= UNEVEN * lengths[shortest]:
        ratio = lengths[longest] / lengths[shortest]
        found.append(
            f"{longest} moved {ratio:.1f} times as far as {shortest} (threshold {UNEVEN:g}): with "
            "equal weights it decides alone, so the weights are inverse to the lengths."
        )
    steps = max(v.p99 for v in reading.vectors)
    if steps > DARE_LARGE:
        found.append(
            f"Steps are large (99 % below {steps:.2g}, threshold {DARE_LARGE}): dropping entries "
            "at random (DARE) is expected to fail."
        )
    return tuple(found)


def recipe_text(reading: Reading, advice: Advice) -> str:
    """A recipe that does what is advised; empty where nothing is."""
    if advice.method is None or advice.verdict == "never":
        return ""
    per_model = {k: v for k, v in advice.parameters.items() if isinstance(v, Mapping)}
    shared = {k: v for k, v in advice.parameters.items() if k not in per_model}
    lines = [f"merge_method: {advice.method}"]
    models = list(reading.models)
    base = reading.recipe.base_model
    if advice.method == "slerp":
        lines.append(f"base_model: {models[0]}")
    elif base is not None and advice.method != "linear":
        lines.append(f"base_model: {base}")
    elif base is not None and base in per_model.get("weight", {}):
        models = [base, *models]
    lines.append("models:")
    for model in models:
        lines.append(f"  - model: {model}")
        own = {k: v[model] for k, v in per_model.items() if model in v}
        if own:
            inner = ", ".join(f"{k}: {v:g}" for k, v in own.items())
            lines.append(f"    parameters: {{{inner}}}")
    if shared:
        lines.append("parameters: {" + ", ".join(f"{k}: {v:g}" for k, v in shared.items()) + "}")
    return "\n".join(lines) + "\n"


def _percent(share: float) -> str:
    """A share as a reader wants it: `3.1 %`, `44 %`."""
    return f"{100 * share:.1f} %" if share < 0.1 else f"{100 * share:.0f} %"


def _two(number: float) -> str:
    """Two decimals; a minus in front of nothing is noise."""
    return f"{number:.2f}".replace("-0.00", "0.00")
