"""Directional ablation: the stream cannot move along a direction any more, nor can the weights.

Changes: the component along a direction is removed wherever the model writes; baked in, every
matrix that writes.
Relieves: control: one behaviour is to go, everywhere.
Does nothing when: the behaviour does not run through one direction.
Costs: nothing at run time once it is baked in; whatever else used the direction.
"""

from __future__ import annotations

from worthit.spec.case import Case
from worthit.techniques._record import Evidence, Source, Technique
from worthit.techniques.interpretability._inside import is_looked_into, left_alone, looked_into

ARDITI_2024 = Source(
    cite="Arditi et al. 2024",
    title="Refusal in Language Models Is Mediated by a Single Direction",
    id="arXiv:2406.11717",
    where="equations 4 and 5",
)
BELROSE_2023 = Source(
    cite="Belrose et al. 2023",
    title="LEACE: Perfect linear concept erasure in closed form",
    id="arXiv:2306.03819",
)


def apply(case: Case) -> Case:
    """Return `case` with a direction ablated."""
    return looked_into(case, "directional-ablation", least_labels=16)


def is_present(case: Case) -> bool:
    """Whether a direction is ablated."""
    return is_looked_into(case, "directional-ablation")


def remove(case: Case) -> Case:
    """Return `case` left alone."""
    return left_alone(case)


TECHNIQUE = Technique(
    id="directional-ablation",
    name="Directional ablation (weight orthogonalisation)",
    relieves=("control",),
    bottleneck=(
        "A behaviour must not appear, whatever the prompt, and nothing may be added at run time."
    ),
    apply=apply,
    is_present=is_present,
    remove=remove,
    adoption="drop-in",
    cost_of_adoption=(
        "A direction, one pass over the matrices that write, and a check of everything "
        "else the model does."
    ),
    nothing_when=(
        "The behaviour is carried by several directions, or computed again from other ones."
    ),
    pitfalls=(
        "Where embedding and output head are one matrix, untie them first: the head "
        "reads, and must stay.",
        "Ablate at every layer and token, the first included: what one layer cannot "
        "write the next one may.",
        "The direction is common to texts that differ in more than the behaviour: "
        "check other abilities, and a random direction.",
        "It takes safety away as easily as it takes a habit: that is how refusals are "
        "removed, so that weights alone protect nothing.",
    ),
    sources=(
        ARDITI_2024,
        BELROSE_2023,
    ),
    evidence=(
        Evidence(
            claim="One direction ablated removes refusals from thirteen open chat models, "
            "with little effect on other abilities.",
            source=ARDITI_2024,
        ),
    ),
    orientation={
        "en": "If a behaviour runs through one direction of the model's inner state, it can "
        "be shut off by making sure that nothing is ever written along it. The same "
        "can be done once to the weights, so that the changed model is an ordinary "
        "model, as fast as before. It is blunt and permanent where addition is a dial. "
        "Whether it works depends on the behaviour really living in one direction, "
        "which for refusals, surprisingly, it largely does.",
        "es": "Si un comportamiento pasa por una sola dirección del estado interno, puede "
        "apagarse cuidando de que nada se escriba jamás en ella. Lo mismo puede "
        "hacerse una vez en los pesos, de modo que el modelo cambiado es uno "
        "corriente, tan rápido como antes. Es rotundo y permanente, donde la suma es "
        "un mando. Que funcione depende de que el comportamiento viva de verdad en una "
        "dirección; el rechazo, sorprendentemente, casi lo hace.",
    },
    diagram=(
        "what embedding, heads and feed-forwards write",
        "~h => h - (h . v) v, everywhere",
        "~or once: W => (I - v v^T) W in all that write",
    ),
    module="worthit.interp.steering:without_direction",
    parity=(
        "baked into the weights against ablation at run time: logits, tied and untied, "
        "biases, learned positions (tests/interp/test_steering.py)",
    ),
    experiment="worthit.lab.experiments.directional_ablation:EXPERIMENT",
)
