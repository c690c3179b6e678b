"""BatchTopK sparse autoencoder: k latents an input on average, shared out over a batch.

Changes: who gets the latents: the strongest of a batch, not of each input.
Relieves: opacity, with a mean number of latents set, and none forced on quiet inputs.
Does nothing when: all inputs need about the same number: then TopK is the same.
Costs: activations of millions of tokens, and a training a layer; a threshold is learnt for use.
"""

from __future__ import annotations

from worthit.spec.case import Case
from worthit.techniques._record import Evidence, Technique
from worthit.techniques.interpretability._autoencoder import (
    BUSSMANN_2024,
    COST,
    GAO_2024,
    NOTHING_WHEN,
    PITFALLS,
)
from worthit.techniques.interpretability._inside import is_looked_into, left_alone, looked_into


def apply(case: Case) -> Case:
    """Return `case` with such an autoencoder on a layer."""
    return looked_into(case, "batchtopk-sae")


def is_present(case: Case) -> bool:
    """Whether it is what the model is looked into by."""
    return is_looked_into(case, "batchtopk-sae")


def remove(case: Case) -> Case:
    """Return `case` left alone."""
    return left_alone(case)


TECHNIQUE = Technique(
    id="batchtopk-sae",
    name="BatchTopK sparse autoencoder",
    relieves=("opacity",),
    bottleneck=(
        "TopK gives every input the same number of latents, and inputs differ in how much "
        "there is to say about them."
    ),
    apply=apply,
    is_present=is_present,
    remove=remove,
    adoption="calibrate",
    cost_of_adoption=COST,
    nothing_when=NOTHING_WHEN,
    pitfalls=(
        (
            "In use there is no batch: a threshold learnt in training stands in for it; "
            "an autoencoder that is used with the batch rule depends on its neighbours."
        ),
        *PITFALLS,
    ),
    sources=(
        BUSSMANN_2024,
        GAO_2024,
    ),
    evidence=(
        Evidence(
            claim=(
                "At the same mean number of latents it explains more than TopK, on a par "
                "with JumpReLU."
            ),
            source=BUSSMANN_2024,
        ),
    ),
    orientation={
        "en": (
            "Take all latents of all inputs of a batch, and keep the k times batch size "
            "strongest. A token that is hard to describe gets more of them, an easy one "
            "fewer, and the mean is the number you asked for. To use it on one token at a "
            "time, the smallest value that was kept in training becomes a threshold, "
            "which makes it a JumpReLU autoencoder with the same threshold for all."
        ),
        "es": (
            "Toma todos los latentes de todas las entradas de un lote y quédate con los k "
            "por tamaño de lote más fuertes. Un token difícil de describir recibe más, "
            "uno fácil menos, y la media es el número pedido. Para usarlo con un solo "
            "token, el menor valor conservado al entrenar se vuelve un umbral, lo que lo "
            "convierte en un autoencoder JumpReLU con el mismo umbral para todos."
        ),
    },
    diagram=(
        "h = W (x - b) + c, of n inputs",
        "+f = the k n largest of all h",
        "y = f D + b",
        "+in use: f = h where h > the mean least",
    ),
    module="worthit.interp.sae.batchtopk:BatchTopKSae",
    parity=(
        "sae_lens training classes: loss and every gradient, live and dead latents, in full and "
        "at few places (tests/interp/sae/test_kinds.py)",
        "sae_lens: folders, written and read (tests/interp/sae/test_files.py)",
    ),
    experiment="worthit.lab.experiments.batchtopk_sae:EXPERIMENT",
)
