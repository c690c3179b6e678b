"""What the experiments on concepts in SmolLM2 share: its states, read once, and readers of them.

`worthit.lab.tasks.concepts` has the texts. Seeds are splits: readers are fitted to half of the
groups of one form and judged on the other half, on groups whose words they never saw, and on
another form. States are those after the last token, or the mean of all but the first.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from worthit.decode.tokenizer import Tokenizer, load_tokenizer
from worthit.interp.calibration import Platt, auroc, expected_calibration_error, platt
from worthit.interp.directions import difference_in_means
from worthit.interp.probe import fit_probe
from worthit.interp.texts import Position, encode_all, states
from worthit.lab.context import Context
from worthit.lab.experiments._smollm2 import MODEL
from worthit.lab.tasks.concepts import FORMS, Example, examples, halves
from worthit.nn.decoder import Decoder
from worthit.nn.load import load_model

# Layer 0, and every third after: where concepts are read.
LAYERS = (0, 3, 6, 9, 12, 15, 18, 21, 24, 27, 30)
MIDDLE = 15
# Of a probe's mean squared weights: with more channels than texts, little is ever enough.
PENALTY = 0.1
# Sentences decide where they end; of a language, every word does.
POSITIONS: dict[str, Position] = {
    "language": "mean",
    "sentiment": "mean",
    "refusal": "last",
    "truth": "last",
}
# From features `(n, d)` to scores `(n,)`, higher for the positive side.
Reader = Callable[[Tensor], Tensor]


def point_of(layer: int) -> str:
    """The stream after `layer` layers."""
    return "embed" if layer == 0 else f"layers.{layer - 1}.resid_post"


@dataclass
class Subject:
    """The model, its tokenizer, and what was read so far: states and log-probabilities, by text."""

    model: Decoder
    tokenizer: Tokenizer
    seen: dict[tuple[str, str], dict[str, Tensor]] = field(default_factory=dict)
    asked: dict[tuple[str, str], float] = field(default_factory=dict)

    def states(self, texts: Sequence[str], position: Position) -> dict[int, Tensor]:
        """By layer, the states `(n, d_model)` of some texts."""
        new = list(dict.fromkeys(text for text in texts if (text, position) not in self.seen))
        points = [point_of(layer) for layer in LAYERS]
        if new:
            ids = encode_all(self.tokenizer, new)
            found = states(self.model, ids, points, position=position)
            for i, text in enumerate(new):
                self.seen[text, position] = {point: found[point][i] for point in points}
        return {
            layer: torch.stack([self.seen[text, position][point_of(layer)] for text in texts])
            for layer in LAYERS
        }

    def of(self, concept: str, rows: Sequence[Example]) -> dict[int, Tensor]:
        """The states of a concept's texts where it is read; at layer 0 the mean of the words."""
        texts = [row.text for row in rows]
        found = self.states(texts, POSITIONS[concept])
        return {**found, 0: self._words(texts)}

    @torch.inference_mode()
    def _words(self, texts: Sequence[str]) -> Tensor:
        """The mean embedding of each text; its last token is a full stop."""
        table = self.model.embedding.weight
        return torch.stack([table[row].mean(0) for row in encode_all(self.tokenizer, texts)])


# One model for all experiments of a process: nobody changes it.
_LOADED: list[Subject] = []


def loaded() -> Subject:
    """SmolLM2 in fp32 with plain weights, frozen."""
    if not _LOADED:
        model = load_model(MODEL, dtype="fp32", packed=False).eval()
        _LOADED.append(Subject(model.requires_grad_(requires_grad=False), load_tokenizer(MODEL)))
    return _LOADED[0]


def prepared(context: Context) -> Subject:
    """The `setup` of experiments that read concepts: two forms of each, read all at once."""
    subject = loaded()
    for concept in context.budget.sizes["concepts"]:
        texts = [row.text for form in FORMS[concept][:2] for row in examples(concept, form)]
        subject.states(texts, POSITIONS[concept])
    return subject


@dataclass(frozen=True)
class Split:
    """What a reader is fitted to, and what it is judged on: `same` form, and each `other`."""

    concept: str
    fit: list[Example]
    same: list[Example]
    other: dict[str, list[Example]]


def split(concept: str, seed: int) -> Split:
    """Half of the groups of the first form to fit; no group that was fitted is judged."""
    first, *others = FORMS[concept]
    fit, same = halves(examples(concept, first), seed)
    known = {row.group for row in fit}
    return Split(
        concept,
        fit,
        same,
        {form: [r for r in examples(concept, form) if r.group not in known] for form in others},
    )


def labels(rows: Sequence[Example]) -> Tensor:
    """1 where a text is of the positive side, `(n,)`."""
    return torch.tensor([row.is_positive for row in rows]).long()


def bag_of_words(fit: Sequence[Example], rows: Sequence[Example]) -> Tensor:
    """How often each word of `fit` comes in each of `rows`, `(n, words)`."""
    known = sorted({word for row in fit for word in _words(row.text)})
    places = {word: i for i, word in enumerate(known)}
    counts = torch.zeros(len(rows), len(known))
    for i, row in enumerate(rows):
        for word in _words(row.text):
            if word in places:
                counts[i, places[word]] += 1
    return counts


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold())


def probe_reader(x: Tensor, z: Tensor) -> Reader:
    """A logistic regression."""
    return fit_probe(x, z, penalty=PENALTY).scores


def means_reader(x: Tensor, z: Tensor) -> Reader:
    """The projection on the difference of the means."""
    v = difference_in_means(x[z == 1], x[z == 0]).double()
    return lambda y: y.double() @ v


def among(rows: Sequence[Example], some: Sequence[Example]) -> Tensor:
    """Which of `rows` are of a group of `some`, `(n,)` booleans."""
    groups = {row.group for row in some}
    return torch.tensor([row.group in groups for row in rows])


def best_layer(x: dict[int, Tensor], rows: Sequence[Example], seed: int) -> int:
    """The layer whose probe does best on groups that it was not fitted to: two halves, crossed."""
    here, z = among(rows, halves(rows, seed + 1)[0]), labels(rows)
    found = {
        layer: sum(
            judged(probe_reader(h[part], z[part]), h[~part], z[~part]) for part in (here, ~here)
        )
        for layer, h in x.items()
        if layer
    }
    return max(found, key=lambda layer: found[layer])


def judged(reader: Reader, x: Tensor, z: Tensor) -> float:
    """AUROC of a reader."""
    return auroc(reader(x).numpy(), z.numpy())


def calibrated(
    fit: Callable[[Tensor, Tensor], Reader], x: Tensor, rows: Sequence[Example], seed: int
) -> Platt:
    """Scores as probabilities, by groups that each reader was not fitted to: two halves, crossed.

    Scores of the rows that a reader was fitted to are too good to calibrate on.
    """
    here, z = among(rows, halves(rows, seed + 1)[0]), labels(rows)
    score = torch.zeros(len(rows), dtype=torch.float64)
    for part in (here, ~here):
        score[~part] = fit(x[part], z[part])(x[~part]).double()
    return platt(score.numpy(), z.numpy())


def calibration_error(reader: Reader, scale: Platt, x: Tensor, z: Tensor) -> float:
    """ECE of a reader's scores as probabilities."""
    return expected_calibration_error(scale(reader(x).numpy()), z.numpy(), n_bins=5)


def mean(values: Iterable[float]) -> float:
    """Their mean."""
    found = list(values)
    return sum(found) / len(found)
