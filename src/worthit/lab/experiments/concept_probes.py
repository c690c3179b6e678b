"""Language, sentiment, truth and refusal in SmolLM2: what a probe reads that words do not tell.

A probe is fitted to one form of text and judged on words it never saw, in the same form and in
another. Beside it stand a bag of words, the mean embedding and shuffled labels, on the same splits.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from worthit.lab.claims import Metric, at_most, superior
from worthit.lab.context import Context
from worthit.lab.experiment import (
    Arm,
    Budget,
    Curve,
    Custom,
    Expectation,
    Experiment,
    Matched,
    Measures,
)
from worthit.lab.experiments import _concepts as concepts
from worthit.lab.predict import unseen
from worthit.techniques.interpretability.linear_probe import ALAIN_2016

SAME = Metric(id="same", name="AUROC on other words", better="higher", margin=0.05)
OTHER = Metric(id="other", name="AUROC in another form", better="higher", margin=0.05)
ECE = Metric(id="ece", name="calibration error in another form", margin=0.05)
CONCEPTS = ("language", "sentiment", "refusal", "truth")


def run(context: Context, arm: Arm, seed: int) -> Measures:
    """The mean over the concepts, each by itself, and the probe's AUROC layer by layer."""
    subject: concepts.Subject = context.shared
    found: dict[str, dict[str, float]] = {}
    curves: dict[str, Curve] = {}
    for concept in context.budget.sizes["concepts"]:
        split = concepts.split(concept, seed)
        parts = [split.fit, split.same, next(iter(split.other.values()))]
        z, same, other = (concepts.labels(part) for part in parts)
        if arm.id == "words":
            x, y, w = (concepts.bag_of_words(split.fit, part) for part in parts)
        else:
            by_layer = [subject.of(concept, part) for part in parts]
            layer = 0 if arm.id == "embedding" else concepts.MIDDLE
            if arm.id == "probe":
                layer = concepts.best_layer(by_layer[0], split.fit, seed)
                curves[f"AUROC by layer: {concept}"] = depth(by_layer, z, other)
            x, y, w = (states[layer] for states in by_layer)
        if arm.id == "shuffled":
            z = z[torch.randperm(len(z), generator=torch.Generator().manual_seed(seed))]
        reader = concepts.probe_reader(x, z)
        scale = concepts.calibrated(concepts.probe_reader, x, split.fit, seed)
        found[concept] = {
            "same": concepts.judged(reader, y, same),
            "other": concepts.judged(reader, w, other),
            "ece": concepts.calibration_error(reader, scale, w, other),
        }
    means = {k: concepts.mean(f[k] for f in found.values()) for k in ("same", "other", "ece")}
    each = {f"{k}: {c}": v for c, numbers in found.items() for k, v in numbers.items()}
    return {**means, **each, **curves}


def depth(by_layer: list[dict[int, Tensor]], z: Tensor, other: Tensor) -> Curve:
    """AUROC in another form, by layer."""
    fit, _, judged = by_layer
    return tuple(
        (float(layer), concepts.judged(concepts.probe_reader(x, z), judged[layer], other))
        for layer, x in fit.items()
    )


QUICK = Budget(n_seeds=5, sizes={"concepts": CONCEPTS}, seconds=5.0, setup_seconds=80.0)
EXPERIMENT = Experiment(
    id="concept-probes",
    technique="linear-probe",
    question="What do SmolLM2's layers tell a probe that the words of the text do not?",
    expectation=Expectation(
        statement="Linear separability rises with depth: language, sentiment, harm and truth are "
        "read off a layer where words that were never seen tell nothing.",
        source=ALAIN_2016,
        refuted_if="over the four, a bag of words or the mean embedding does as well as the "
        "layers, in the form that was fitted or in another one",
        worth_it=True,
    ),
    how=Custom(run=run),
    matched=Matched(
        what=("nothing",),
        because="one model; every arm is the same regression, fitted and judged on the same texts, "
        "and a layer is chosen on the fitted ones",
    ),
    arms=(
        Arm(id="words", label="bag of words"),
        Arm(id="embedding", label="mean embedding"),
        Arm(id="shuffled", label="layer 15, labels shuffled"),
        Arm(id="probe", label="layer chosen on fitted texts"),
    ),
    metrics=(SAME, OTHER, ECE),
    claims=(
        superior(SAME, "probe", by=0.1),
        superior(OTHER, "probe", by=0.1),
        superior(OTHER, "probe", against="embedding"),
        at_most(SAME, "shuffled", 0.65),
    ),
    budgets={
        "smoke": replace(
            QUICK, n_seeds=2, sizes={"concepts": ("language",)}, seconds=1.0, setup_seconds=8.0
        ),
        "quick": QUICK,
        "full": replace(QUICK, n_seeds=20),
    },
    predicted=lambda setting: unseen(setting, "same", "other", "ece"),
    setup=concepts.prepared,
    means={
        "confirmed": "The layers tell more than the words, also in a form that the probe was not "
        "fitted to. Read each concept by itself: their mean hides which of them carries over.",
        "refuted": "In one of the two, words or the mean embedding do nearly as well as the "
        "layers, or carry over as well: most of what such a probe reads was in the text.",
    },
)
