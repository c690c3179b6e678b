"""SAE steering: the decoder row of one latent of a sparse autoencoder is the direction.

Changes: nothing of the weights; the stream is moved along one latent.
Relieves: control: a behaviour for which there are no contrast pairs.
Does nothing when: no latent stands for the behaviour, or it only detects it.
Costs: an autoencoder of that layer, and a search through its latents.
"""

from __future__ import annotations

from worthit.spec.case import Case
from worthit.techniques._record import Evidence, Source, Technique
from worthit.techniques.interpretability._inside import is_looked_into, left_alone, looked_into

TEMPLETON_2024 = Source(
    cite="Templeton et al. 2024",
    title="Scaling Monosemanticity: Extracting Interpretable Features from Claude 3 Sonnet",
    id="transformer-circuits.pub/2024/scaling-monosemanticity",
    where="section Influence on Behavior",
)
WU_2025 = Source(
    cite="Wu et al. 2025",
    title="AxBench: Steering LLMs? Even Simple Baselines Outperform Sparse Autoencoders",
    id="arXiv:2501.17148",
)
ARAD_2025 = Source(
    cite="Arad et al. 2025",
    title="SAEs Are Good for Steering -- If You Select the Right Features",
    id="arXiv:2505.20063",
)


def apply(case: Case) -> Case:
    """Return `case` with a latent of an autoencoder steered."""
    return looked_into(case, "sae-steering")


def is_present(case: Case) -> bool:
    """Whether a latent is steered."""
    return is_looked_into(case, "sae-steering")


def remove(case: Case) -> Case:
    """Return `case` left alone."""
    return left_alone(case)


TECHNIQUE = Technique(
    id="sae-steering",
    name="SAE steering",
    relieves=("control",),
    bottleneck=(
        "The behaviour can be pointed at in examples of a latent, and nobody has pairs "
        "that differ in it alone."
    ),
    apply=apply,
    is_present=is_present,
    remove=remove,
    adoption="calibrate",
    cost_of_adoption=(
        "An autoencoder of the layer (minutes for a small model, GPU-days for a large "
        "one), and a search through its latents."
    ),
    nothing_when=("Contrast pairs exist: then a difference in means costs less and steers better."),
    pitfalls=(
        "Latents that fire on a concept need not write it: choose by their effect on "
        "the output, not by their examples.",
        "Steer along the decoder row; replacing the stream by the reconstruction adds "
        "its error to every token.",
        "One concept is often split over several latents, so that one of them moves little.",
        "Compare with a difference in means of the texts on which the latent fires.",
    ),
    sources=(
        TEMPLETON_2024,
        WU_2025,
        ARAD_2025,
    ),
    evidence=(
        Evidence(
            claim="Clamping single latents changes what a production model talks about, as a "
            "bridge that it came to identify with.",
            source=TEMPLETON_2024,
        ),
        Evidence(
            claim="Over many concepts prompting, fine-tuning and mean differences all steer "
            "better than latents.",
            source=WU_2025,
        ),
        Evidence(
            claim="Chosen by their effect on the output, latents come close to supervised methods.",
            source=ARAD_2025,
        ),
    ),
    orientation={
        "en": "A sparse autoencoder splits a layer into thousands of latents, many of which "
        "fire on something one can name. Pushing the model along one of them brings "
        "that thing up: a bridge, a mood, a language. No pairs have to be written, "
        "which is its appeal. In fair comparisons a plain difference of means steers "
        "better wherever pairs can be had, so this is for discovery, or where you "
        "cannot say beforehand what you are looking for.",
        "es": "Un autocodificador disperso descompone una capa en miles de latentes, muchos "
        "de los cuales se activan con algo que se puede nombrar. Empujar el modelo a "
        "lo largo de uno lo hace aparecer: un puente, un ánimo, un idioma. No hay que "
        "escribir pares, y ese es su atractivo. En comparaciones justas, una "
        "diferencia de medias dirige mejor donde hay pares: esto sirve para descubrir, "
        "o cuando no sabes de antemano qué buscas.",
    },
    diagram=(
        "stream h, and a trained autoencoder of its layer",
        "+v = decoder row of the latent that does what is wanted",
        "~h => h + strength * v",
    ),
    module="worthit.interp.directions:from_sae",
    parity=("rows by hand (tests/interp/test_directions.py)",),
    experiment="worthit.lab.experiments.sae_steering:EXPERIMENT",
)
