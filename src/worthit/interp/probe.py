"""Linear probes: what a layer's activations say about a label, and what that is worth.

Alain & Bengio 2016, "Understanding intermediate layers using linear classifier probes",
arXiv:1610.01644. The classifier is scikit-learn's logistic regression. A probe's accuracy alone
means little (Hewitt & Liang 2019, "Designing and Interpreting Probes with Control Tasks",
arXiv:1909.03368): `probe_layers` puts beside it

- the most frequent label, which takes no model at all;
- layer 0, the embedding: what is readable there was in the words, not in the model;
- shuffled labels: what the probe fits by itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from worthit.errors import InputError, MissingCapability
from worthit.interp.calibration import interval_of_mean

PENALTY = 1e-2


@dataclass(frozen=True)
class Probe:
    """`softmax(x weight^T + bias)` over `labels`.

    Attributes:
        weight: `(k, d)`; one row where there are two labels, towards the second.
        bias: `(k,)`.
        labels: in the order of `unique`.
    """

    weight: Tensor
    bias: Tensor
    labels: tuple[Any, ...]

    def scores(self, x: Tensor) -> Tensor:
        """`(n, k)` before the softmax; `(n,)` where there are two labels."""
        y = x.to(self.weight) @ self.weight.T + self.bias
        return y[:, 0] if len(self.weight) == 1 else y

    def probability(self, x: Tensor) -> Tensor:
        """Of the second label where there are two, `(n,)`; of each, `(n, k)`, otherwise."""
        y = self.scores(x)
        return torch.sigmoid(y) if y.ndim == 1 else y.softmax(-1)

    def predict(self, x: Tensor) -> Tensor:
        """The place of the likeliest label in `labels`, `(n,)`."""
        y = self.scores(x)
        return (y > 0).long() if y.ndim == 1 else y.argmax(-1)

    def accuracy(self, x: Tensor, z: Tensor) -> float:
        """The share of rows whose label it says."""
        return float((self.predict(x) == _places(z, self.labels)).double().mean())

    @property
    def direction(self) -> Tensor:
        """The normal `(d,)` towards the second of two labels."""
        if len(self.weight) != 1:
            raise InputError(f"a probe of {len(self.labels)} labels has no single direction")
        return self.weight[0]


def fit_probe(
    x: Tensor, z: Tensor, *, penalty: float = PENALTY, is_standardised: bool = True
) -> Probe:
    """Logistic regression of labels `z` `(n,)` on `x` `(n, d)`.

    Args:
        penalty: of the mean squared weights; the weights act on standardised columns.
        is_standardised: columns are brought to mean 0 and deviation 1 for the fit; the weights
            that are returned act on `x` as it is.

    Raises:
        InputError: one label, or numbers that are not finite.
        MissingCapability: scikit-learn is not installed.
    """
    try:
        from sklearn.linear_model import LogisticRegression
    except ImportError:
        raise MissingCapability(
            "probes need the extra 'interp'", "pip install 'worthit[interp]'"
        ) from None
    if len(x) != len(z):
        raise InputError(f"z: must have one label a row of x, got {len(z)} for {len(x)}")
    if not bool(torch.isfinite(x).all()):
        raise InputError("x: holds numbers that are not finite")
    labels = tuple(z.unique().tolist())
    if len(labels) < 2:
        raise InputError(f"z: must have two labels or more, got {labels}")
    x = x.detach().double()
    mean, scale = x.mean(0), torch.ones(x.shape[1], dtype=x.dtype)
    if is_standardised:
        deviation = x.std(0)
        scale = torch.where(deviation > 1e-8 * deviation.max(), deviation, 1.0)
    model = LogisticRegression(C=1 / (penalty * len(x)), max_iter=1000)
    model.fit(((x - mean) / scale).numpy(), z.numpy())
    weight = torch.from_numpy(model.coef_) / scale
    bias = torch.from_numpy(model.intercept_) - weight @ mean
    return Probe(weight, bias, labels)


def _places(z: Tensor, labels: tuple[Any, ...]) -> Tensor:
    known = torch.tensor(labels)
    return torch.searchsorted(known, z.to(known))


@dataclass(frozen=True)
class LayerReading:
    """What a probe at one point reads, on rows that it was not fitted to."""

    point: str
    accuracy: float
    low: float
    high: float
    shuffled: float


@dataclass(frozen=True)
class ProbeReport:
    """A probe at several points, beside what needs no model.

    Attributes:
        layers: from first to last.
        majority: the share of the most frequent label among the held-out rows.
        best: the point that reads best, chosen on a part of the fitting rows.
    """

    layers: tuple[LayerReading, ...]
    majority: float
    best: str
    n_fit: int
    n_test: int
    cautions: tuple[str, ...] = ()
    probes: Mapping[str, Probe] = field(default_factory=dict, repr=False)

    def of(self, point: str) -> LayerReading:
        """What was read at `point`."""
        return next(layer for layer in self.layers if layer.point == point)

    def to_json(self) -> dict[str, Any]:
        """The record of `worthit probe --json`, without its header."""
        return {
            "points": [vars(layer) | {} for layer in self.layers],
            "majority": self.majority,
            "best": self.best,
            "n_fit": self.n_fit,
            "n_test": self.n_test,
            "cautions": list(self.cautions),
        }


def split(
    z: Tensor, *, share: float, seed: int, groups: Sequence[str] | None = None
) -> tuple[Tensor, Tensor]:
    """Row numbers to fit and to hold out: `share` of each label is held out, one row at least.

    With `groups`, a group of each row, it is `share` of the groups that is held out, whole.

    Raises:
        InputError: a label with a single row, or one that stands on one side of the groups alone.
    """
    generator = torch.Generator().manual_seed(seed)
    if groups is not None:
        return _split_groups(z, groups, share, generator)
    fit, held = [], []
    for label in z.unique().tolist():
        rows = (z == label).nonzero()[:, 0]
        if len(rows) < 2:
            raise InputError(f"label {label!r}: needs two rows or more, got {len(rows)}")
        rows = rows[torch.randperm(len(rows), generator=generator)]
        n = min(max(round(share * len(rows)), 1), len(rows) - 1)
        held.append(rows[:n])
        fit.append(rows[n:])
    return torch.cat(fit), torch.cat(held)


def _split_groups(
    z: Tensor, groups: Sequence[str], share: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    names = sorted(set(groups))
    order = torch.randperm(len(names), generator=generator).tolist()
    n = min(max(round(share * len(names)), 1), len(names) - 1)
    out = {names[i] for i in order[:n]}
    is_held = torch.tensor([group in out for group in groups])
    fit, held = (~is_held).nonzero()[:, 0], is_held.nonzero()[:, 0]
    for part in (fit, held):
        if len(z[part].unique()) < len(z.unique()):
            raise InputError(
                f"groups: some label is in few of the {len(names)} groups, and was left out of one "
                "side of the split; give each group texts of every label"
            )
    return fit, held


def probe_layers(
    states: Mapping[str, Tensor],
    z: Tensor,
    *,
    share: float = 0.3,
    seed: int = 0,
    groups: Sequence[str] | None = None,
) -> ProbeReport:
    """Probe every point, with its controls, on the same rows.

    Args:
        states: `(n, d)` by point, from first to last; the first is layer 0, the baseline.
        z: `(n,)` labels as whole numbers.
        share: held out, of each label, or of the groups.
        groups: of each row, what must stay on one side: a template, a pair, a person.
    """
    fit, held = split(z, share=share, seed=seed, groups=groups)
    own = None if groups is None else [groups[i] for i in fit.tolist()]
    inner, tune = (fit[part] for part in split(z[fit], share=0.25, seed=seed + 1, groups=own))
    shuffled = z[fit][torch.randperm(len(fit), generator=torch.Generator().manual_seed(seed))]
    majority = float(torch.stack([(z[held] == c).double().mean() for c in z.unique()]).max())
    readings, probes, tuned = [], {}, {}
    for point, x in states.items():
        probe = probes[point] = fit_probe(x[fit], z[fit])
        is_right = (probe.predict(x[held]) == _places(z[held], probe.labels)).double()
        low, high = interval_of_mean(is_right.numpy(), seed=seed)
        nonsense = float("nan")
        if len(shuffled.unique()) > 1:
            nonsense = fit_probe(x[fit], shuffled).accuracy(x[held], z[held])
        readings.append(LayerReading(point, float(is_right.mean()), low, high, shuffled=nonsense))
        tuned[point] = fit_probe(x[inner], z[inner]).accuracy(x[tune], z[tune])
    best = max(tuned, key=lambda point: tuned[point])
    report = ProbeReport(
        layers=tuple(readings),
        majority=majority,
        best=best,
        n_fit=len(fit),
        n_test=len(held),
        probes=probes,
    )
    return ProbeReport(**{**vars(report), "cautions": tuple(_cautions(report))})


def _cautions(report: ProbeReport) -> list[str]:
    """What a reader of the accuracy should know first."""
    first, best = report.layers[0], report.of(report.best)
    said = []
    if best.low <= report.majority:
        said.append(
            f"At {best.point} the interval [{best.low:.2f}, {best.high:.2f}] holds the share of "
            f"the most frequent label, {report.majority:.2f}: nothing is shown to be read."
        )
    elif first.point != best.point and best.low <= first.accuracy:
        said.append(
            f"{first.point} reads {first.accuracy:.2f} already: what {best.point} reads "
            f"({best.accuracy:.2f}) may be in the words alone."
        )
    if np.isfinite(best.shuffled) and best.shuffled > report.majority + 0.1:
        said.append(
            f"With shuffled labels it still says {best.shuffled:.2f}: fitting and held-out rows "
            "share something, duplicates for instance."
        )
    return said
