"""Activation addition: a direction times a strength is added to the stream while the model runs.

Changes: nothing of the weights; the stream at one layer is shifted at every token.
Relieves: control: more or less of a behaviour, without training.
Does nothing when: the behaviour is no direction at that layer, or the strength is small against
the stream.
Costs: an addition of the width a token; fluency, as the strength grows.
"""

from __future__ import annotations

from worthit.spec.case import Case
from worthit.techniques._record import Evidence, Source, Technique
from worthit.techniques.interpretability._inside import is_looked_into, left_alone, looked_into

TURNER_2023 = Source(
    cite="Turner et al. 2023",
    title="Steering Language Models With Activation Engineering",
    id="arXiv:2308.10248",
    where="algorithm 1",
)
RIMSKY_2023 = Source(
    cite="Rimsky et al. 2023",
    title="Steering Llama 2 via Contrastive Activation Addition",
    id="arXiv:2312.06681",
    where="section 3",
)
TAN_2024 = Source(
    cite="Tan et al. 2024",
    title="Analyzing the Generalization and Reliability of Steering Vectors",
    id="arXiv:2407.12404",
)


def apply(case: Case) -> Case:
    """Return `case` with a direction added to its stream."""
    return looked_into(case, "activation-addition", least_labels=16)


def is_present(case: Case) -> bool:
    """Whether a direction is added."""
    return is_looked_into(case, "activation-addition")


def remove(case: Case) -> Case:
    """Return `case` left alone."""
    return left_alone(case)


TECHNIQUE = Technique(
    id="activation-addition",
    name="Activation addition",
    relieves=("control",),
    bottleneck=(
        "Prompts are ignored or take up the context, and fine-tuning for every shade "
        "of behaviour is too much."
    ),
    apply=apply,
    is_present=is_present,
    remove=remove,
    adoption="drop-in",
    cost_of_adoption=(
        "A direction, and a sweep of layer and strength, with the perplexity of what "
        "is said beside every setting."
    ),
    nothing_when=(
        "The strength is a few hundredths of the length of the stream, or the "
        "behaviour is knowledge that the model lacks."
    ),
    pitfalls=(
        "State the strength against the length of the stream: 4 is nothing at a norm "
        "of 3000 and everything at 10.",
        "Leave the first token alone: it is an attention sink in many models, and its "
        "state is no text.",
        "What moves an average may move single prompts the other way: report the share "
        "that moves wrongly.",
        "Beyond some strength text degenerates before behaviour saturates: measure "
        "perplexity under the model as it was.",
        "A random direction of the same length changes text too: it is the control.",
    ),
    sources=(
        TURNER_2023,
        RIMSKY_2023,
        TAN_2024,
    ),
    evidence=(
        Evidence(
            claim="Behaviours of Llama 2 chat move in both directions, beyond system prompts "
            "and fine-tuning, at little cost to general ability.",
            source=RIMSKY_2023,
        ),
        Evidence(
            claim="Effects vary widely between inputs, and for several concepts steering "
            "backfires on many of them.",
            source=TAN_2024,
        ),
    ),
    orientation={
        "en": "While the model runs, a fixed arrow is added to its inner state, at one "
        "layer, for every token. A small push makes it a little more cheerful, a large "
        "one absurdly so, and a still larger one makes it babble. No weight changes, "
        "and the push can be switched for every request. That is the appeal: a dial. "
        "The price is that the dial is crude, differs between prompts, and costs "
        "fluency long before it does all you want.",
        "es": "Mientras el modelo funciona, se suma una flecha fija a su estado interno, en "
        "una capa, para cada token. Un empujón pequeño lo vuelve algo más alegre, uno "
        "grande lo hace hasta el absurdo y uno aún mayor lo hace balbucear. Ningún "
        "peso cambia, y el empujón puede variar en cada petición. Ese es su atractivo: "
        "un mando. El precio: es tosco, varía entre textos y cuesta fluidez mucho "
        "antes de dar todo lo deseado.",
    },
    diagram=(
        "stream h after one layer",
        "~h => h + strength * v, but for the first token",
        "later layers, unchanged",
    ),
    module="worthit.interp.steering:add",
    parity=(
        "the stream by hand; the same over a cache and with padding "
        "(tests/interp/test_steering.py)",
    ),
    experiment="worthit.lab.experiments.activation_addition:EXPERIMENT",
)
