"""Gated sparse autoencoder: whether a latent is on is decided apart from how large it is.

Changes: where the L1 penalty acts: on gates, not on magnitudes.
Relieves: opacity, without the shrinkage of an L1 penalty.
Does nothing when: magnitudes do not matter to you, or absorption is the trouble: gates still pay
for each latent.
Costs: activations of millions of tokens, and a training a layer.
"""

from __future__ import annotations

from worthit.spec.case import Case
from worthit.techniques._record import Evidence, Technique
from worthit.techniques.interpretability._autoencoder import (
    CHANIN_2024,
    COST,
    NOTHING_WHEN,
    PITFALLS,
    RAJAMANOHARAN_GATED,
)
from worthit.techniques.interpretability._inside import is_looked_into, left_alone, looked_into


def apply(case: Case) -> Case:
    """Return `case` with such an autoencoder on a layer."""
    return looked_into(case, "gated-sae")


def is_present(case: Case) -> bool:
    """Whether it is what the model is looked into by."""
    return is_looked_into(case, "gated-sae")


def remove(case: Case) -> Case:
    """Return `case` left alone."""
    return left_alone(case)


TECHNIQUE = Technique(
    id="gated-sae",
    name="Gated sparse autoencoder",
    relieves=("opacity",),
    bottleneck=(
        "An L1 penalty makes latents few by making them small: reconstructions shrink "
        "towards the mean."
    ),
    apply=apply,
    is_present=is_present,
    remove=remove,
    adoption="calibrate",
    cost_of_adoption=COST,
    nothing_when=NOTHING_WHEN,
    pitfalls=(
        (
            "In sae_lens gradients of the auxiliary reconstruction reach the decoder, "
            "which the paper freezes there: results differ slightly."
        ),
        *PITFALLS,
    ),
    sources=(
        RAJAMANOHARAN_GATED,
        CHANIN_2024,
    ),
    evidence=(
        Evidence(
            claim=(
                "Half as many latents are needed for the same loss of the model, and "
                "shrinkage is gone."
            ),
            source=RAJAMANOHARAN_GATED,
        ),
        Evidence(
            claim=("Absorption is found in every kind that was looked at."),
            source=CHANIN_2024,
        ),
    ),
    orientation={
        "en": (
            "An L1 penalty has two effects that come together: latents become few, and "
            "they become too small. Gated separates them. One half of the encoder decides "
            "whether a latent is on and pays the penalty; the other, which shares its "
            "matrix, says how large it is and pays nothing. A second reconstruction, from "
            "the gates alone, teaches the gates what is worth being on."
        ),
        "es": (
            "Una penalización L1 tiene dos efectos que vienen juntos: los latentes se "
            "hacen pocos y se hacen demasiado pequeños. Gated los separa. Una mitad del "
            "codificador decide si un latente está activo y paga la penalización; la "
            "otra, que comparte su matriz, dice cuán grande es y no paga nada. Una "
            "segunda reconstrucción, solo con las puertas, les enseña qué merece estar "
            "activo."
        ),
    },
    diagram=(
        "pi = W (x - b) + c",
        "+f = 1[pi > 0] relu(e^r W (x - b) + m)",
        "y = f D + b",
        "+loss: |x - y|^2 + lambda sum relu(pi) + |x - relu(pi) D - b|^2",
    ),
    module="worthit.interp.sae.gated:GatedSae",
    parity=(
        "sae_lens training classes: loss and every gradient, live and dead latents, in full and "
        "at few places (tests/interp/sae/test_kinds.py)",
        "sae_lens: folders, written and read (tests/interp/sae/test_files.py)",
    ),
    experiment="worthit.lab.experiments.gated_sae:EXPERIMENT",
)
