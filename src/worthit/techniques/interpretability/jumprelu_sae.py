"""JumpReLU sparse autoencoder: each latent has a threshold, and the number that is on is the cost.

Changes: how latents are made few: by thresholds that are trained.
Relieves: opacity, with magnitudes as they are and as many latents as an input needs.
Does nothing when: the training is too short for thresholds to settle: TopK needs no such time.
Costs: activations of millions of tokens, and a training a layer; bandwidth and penalty to be set.
"""

from __future__ import annotations

from worthit.spec.case import Case
from worthit.techniques._record import Evidence, Technique
from worthit.techniques.interpretability._autoencoder import (
    CHANIN_2024,
    COST,
    GAO_2024,
    NOTHING_WHEN,
    PITFALLS,
    RAJAMANOHARAN_JUMP,
)
from worthit.techniques.interpretability._inside import is_looked_into, left_alone, looked_into


def apply(case: Case) -> Case:
    """Return `case` with such an autoencoder on a layer."""
    return looked_into(case, "jumprelu-sae")


def is_present(case: Case) -> bool:
    """Whether it is what the model is looked into by."""
    return is_looked_into(case, "jumprelu-sae")


def remove(case: Case) -> Case:
    """Return `case` left alone."""
    return left_alone(case)


TECHNIQUE = Technique(
    id="jumprelu-sae",
    name="JumpReLU sparse autoencoder",
    relieves=("opacity",),
    bottleneck=(
        "A penalty on sizes shrinks them and lets weak noise through; a fixed number "
        "cannot follow what an input needs."
    ),
    apply=apply,
    is_present=is_present,
    remove=remove,
    adoption="calibrate",
    cost_of_adoption=COST,
    nothing_when=NOTHING_WHEN,
    pitfalls=(
        (
            "The threshold learns only from inputs within the bandwidth around it: too "
            "narrow, and the number of latents never moves; train the threshold itself, "
            "in fp32, not its logarithm."
        ),
        *PITFALLS,
    ),
    sources=(
        RAJAMANOHARAN_JUMP,
        GAO_2024,
        CHANIN_2024,
    ),
    evidence=(
        Evidence(
            claim=(
                "At a given number of latents it reconstructs as well as or better than "
                "Gated and TopK."
            ),
            source=RAJAMANOHARAN_JUMP,
        ),
        Evidence(
            claim=("A share of latents that are on very often appears, more than with Gated."),
            source=RAJAMANOHARAN_JUMP,
        ),
    ),
    orientation={
        "en": (
            "A latent counts only if it exceeds a threshold of its own, and above it it "
            "keeps its full size. What costs is that it is on, not how large it is. A "
            "step has no slope, so the threshold is trained by a trick: it is moved by "
            "the inputs that fall close to it. Among the kinds it gives the best "
            "reconstruction for a number of latents; it also wants the most care in "
            "training."
        ),
        "es": (
            "Un latente solo cuenta si supera su propio umbral, y por encima conserva "
            "todo su tamaño. Lo que cuesta es que esté activo, no cuán grande es. Un "
            "escalón no tiene pendiente, así que el umbral se entrena con un truco: lo "
            "mueven las entradas que caen cerca de él. De todos los tipos da la mejor "
            "reconstrucción para un número de latentes; también pide el mayor cuidado al "
            "entrenar."
        ),
    },
    diagram=(
        "h = W (x - b) + c",
        "+f = h where h > theta, else 0",
        "y = f D + b",
        "+loss: |x - y|^2 + lambda (how many are on)",
    ),
    module="worthit.interp.sae.jumprelu:JumpReluSae",
    parity=(
        "sae_lens training classes: loss and every gradient, live and dead latents, in full and "
        "at few places (tests/interp/sae/test_kinds.py)",
        "sae_lens: folders, written and read (tests/interp/sae/test_files.py)",
    ),
    experiment="worthit.lab.experiments.jumprelu_sae:EXPERIMENT",
)
