"""Sparse autoencoder: activations as sums of a few of many learnt directions, under an L1 penalty.

Changes: nothing of the model; its activations can be read as a few latents of thousands.
Relieves: opacity: single neurons answer to many unrelated things.
Does nothing when: the property has a name and labels: a probe is cheaper and as good.
Costs: activations of millions of tokens, and a training a layer.
"""

from __future__ import annotations

from worthit.spec.case import Case
from worthit.techniques._record import Evidence, Technique
from worthit.techniques.interpretability._autoencoder import (
    BRICKEN_2023,
    CHANIN_2024,
    COST,
    HUBEN_2023,
    KANTAMNENI_2025,
    NOTHING_WHEN,
    PAULO_2025,
    PITFALLS,
)
from worthit.techniques.interpretability._inside import is_looked_into, left_alone, looked_into


def apply(case: Case) -> Case:
    """Return `case` with such an autoencoder on a layer."""
    return looked_into(case, "sae")


def is_present(case: Case) -> bool:
    """Whether it is what the model is looked into by."""
    return is_looked_into(case, "sae")


def remove(case: Case) -> Case:
    """Return `case` left alone."""
    return left_alone(case)


TECHNIQUE = Technique(
    id="sae",
    name="Sparse autoencoder (L1)",
    relieves=("opacity",),
    bottleneck=(
        "Neurons answer to many unrelated things; what directions a layer uses, and how "
        "many, nobody knows beforehand."
    ),
    apply=apply,
    is_present=is_present,
    remove=remove,
    adoption="calibrate",
    cost_of_adoption=COST,
    nothing_when=NOTHING_WHEN,
    pitfalls=(
        (
            "The penalty shrinks every latent that is on: magnitudes are underestimated, "
            "and weak features fall silent."
        ),
        *PITFALLS,
    ),
    sources=(
        HUBEN_2023,
        BRICKEN_2023,
        CHANIN_2024,
        PAULO_2025,
        KANTAMNENI_2025,
    ),
    evidence=(
        Evidence(
            claim=(
                "Latents are easier to describe than neurons and than other "
                "decompositions of the same size."
            ),
            source=HUBEN_2023,
        ),
        Evidence(
            claim=(
                "A latent of a general feature stays off where a latent of a special case "
                "fires (absorption), in every kind and size looked at."
            ),
            source=CHANIN_2024,
        ),
        Evidence(
            claim=(
                "Two trainings on the same data from different starts share only part of "
                "their latents."
            ),
            source=PAULO_2025,
        ),
    ),
    orientation={
        "en": (
            "A layer of the model describes each token by a few hundred numbers, but it "
            "knows of many more things than that, so each number has several meanings. A "
            "sparse autoencoder rewrites the description with thousands of numbers of "
            "which only a few may be non-zero; that they may not all speak at once makes "
            "each of them choose one meaning. You then read a latent by the texts in "
            "which it is strongest. The L1 penalty is the simplest way to make them few, "
            "and the one with the most side effects: it makes all numbers too small."
        ),
        "es": (
            "Una capa del modelo describe cada token con unos cientos de números, pero "
            "conoce muchas más cosas, así que cada número tiene varios significados. Un "
            "autoencoder disperso reescribe la descripción con miles de números de los "
            "que solo unos pocos pueden ser distintos de cero; como no pueden hablar "
            "todos a la vez, cada uno escoge un significado. Un latente se lee por los "
            "textos en los que es más fuerte. La penalización L1 es la forma más simple "
            "de que sean pocos, y la de más efectos secundarios: los hace todos demasiado "
            "pequeños."
        ),
    },
    diagram=(
        "f = relu(W (x - b) + c)",
        "y = f D + b",
        "+loss: |x - y|^2 + lambda sum f |d|",
    ),
    module="worthit.interp.sae.standard:StandardSae",
    parity=(
        "sae_lens training classes: loss and every gradient, live and dead latents, in full and "
        "at few places (tests/interp/sae/test_kinds.py)",
        "sae_lens: folders, written and read (tests/interp/sae/test_files.py)",
    ),
    experiment="worthit.lab.experiments.sae:EXPERIMENT",
)
