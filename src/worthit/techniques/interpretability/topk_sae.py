"""TopK sparse autoencoder: the k largest latents of each input are kept, and no penalty is paid.

Changes: how latents are made few: counted, not penalised.
Relieves: opacity, without a sweep of penalties and without shrunk magnitudes.
Does nothing when: the property has a name and labels; or inputs need very different numbers of
latents.
Costs: activations of millions of tokens, and a training a layer; k is to be chosen.
"""

from __future__ import annotations

from worthit.spec.case import Case
from worthit.techniques._record import Evidence, Technique
from worthit.techniques.interpretability._autoencoder import (
    CHANIN_2024,
    COST,
    GAO_2024,
    KANTAMNENI_2025,
    NOTHING_WHEN,
    PITFALLS,
)
from worthit.techniques.interpretability._inside import is_looked_into, left_alone, looked_into


def apply(case: Case) -> Case:
    """Return `case` with such an autoencoder on a layer."""
    return looked_into(case, "topk-sae")


def is_present(case: Case) -> bool:
    """Whether it is what the model is looked into by."""
    return is_looked_into(case, "topk-sae")


def remove(case: Case) -> Case:
    """Return `case` left alone."""
    return left_alone(case)


TECHNIQUE = Technique(
    id="topk-sae",
    name="TopK sparse autoencoder",
    relieves=("opacity",),
    bottleneck=(
        "A penalty says how much sparsity costs, not how many latents are on: each number "
        "takes a sweep, and all magnitudes are shrunk."
    ),
    apply=apply,
    is_present=is_present,
    remove=remove,
    adoption="calibrate",
    cost_of_adoption=COST,
    nothing_when=NOTHING_WHEN,
    pitfalls=(
        (
            "Every input gets k latents, whether it needs two or two hundred: quiet "
            "inputs get noise."
        ),
        *PITFALLS,
    ),
    sources=(
        GAO_2024,
        CHANIN_2024,
        KANTAMNENI_2025,
    ),
    evidence=(
        Evidence(
            claim=(
                "At a fixed number of latents it reconstructs better than a rectified "
                "autoencoder with a penalty, and the gap grows with size."
            ),
            source=GAO_2024,
        ),
        Evidence(
            claim=("With an auxiliary loss on dead latents few die even among 16 million."),
            source=GAO_2024,
        ),
    ),
    orientation={
        "en": (
            "Instead of paying a price for each latent that is on, keep the k strongest "
            "and set all others to zero. The number you wanted is then the number you "
            "get, nothing pulls the survivors towards zero, and two autoencoders can be "
            "compared at the same k. What it cannot do is spend more on a difficult token "
            "than on an easy one."
        ),
        "es": (
            "En lugar de pagar un precio por cada latente activo, quédate con los k más "
            "fuertes y pon los demás a cero. El número que querías es el que obtienes, "
            "nada empuja a los supervivientes hacia cero y dos autoencoders se comparan "
            "con la misma k. Lo que no puede es gastar más en un token difícil que en uno "
            "fácil."
        ),
    },
    diagram=(
        "h = W (x - b) + c",
        "+f = the k largest of h",
        "y = f D + b",
        "+dead latents explain what is left",
    ),
    module="worthit.interp.sae.topk:TopKSae",
    parity=(
        "sae_lens training classes: loss and every gradient, live and dead latents, in full and "
        "at few places (tests/interp/sae/test_kinds.py)",
        "sae_lens: folders, written and read (tests/interp/sae/test_files.py)",
    ),
    experiment="worthit.lab.experiments.topk_sae:EXPERIMENT",
)
