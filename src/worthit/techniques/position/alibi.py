"""ALiBi: scores fall linearly with distance, each head at a slope of its own.

Changes: the position scheme; no parameters. Matched: everything else. `context_len` stays what was
trained: how far beyond it the model still works is for an experiment to say.
Relieves: quality, and the need to train on sequences as long as those that will be read.
Does nothing when: the layers read in order anyway (recurrent mixers).
Costs: training anew; far content fades by design.
"""

from __future__ import annotations

from worthit.spec.case import Case
from worthit.spec.model import Position
from worthit.techniques._record import Evidence, Technique
from worthit.techniques.position._positions import (
    KAZEMNEJAD_2023,
    PRESS_2021,
    is_kind,
    set_position,
    without_position,
)


def apply(case: Case) -> Case:
    """Return `case` with linear biases instead of positions."""
    return set_position(case, "alibi", Position(kind="alibi"))


def is_present(case: Case) -> bool:
    """Whether scores carry a bias linear in distance."""
    return is_kind(case, "alibi")


def remove(case: Case) -> Case:
    """Return `case` without the bias, told nothing about order."""
    return without_position(case)


TECHNIQUE = Technique(
    id="alibi",
    name="Attention with linear biases (ALiBi)",
    relieves=("quality",),
    bottleneck="Models fail on texts longer than they were trained on, and long training is dear.",
    apply=apply,
    module="worthit.nn.position.alibi:bias",
    experiment="worthit.lab.experiments.alibi:EXPERIMENT",
    parity=("transformers 5.23 `build_alibi_tensor` of BLOOM (tests/nn/position/test_added.py)",),
    is_present=is_present,
    remove=remove,
    adoption="retrain",
    cost_of_adoption="A training run, on sequences that may be shorter than those served.",
    nothing_when=(
        "Texts stay within the trained length, or answers need facts from far back: the bias hides "
        "what is distant instead of reaching it."
    ),
    pitfalls=(
        "Low perplexity at great length comes from looking nearby: retrieval over the whole "
        "context does not follow.",
        "Head counts that are not powers of two need the slopes of the next ones interleaved.",
        "Cached decoding must build the bias over the length of the cache; an error there is "
        "silent.",
        "In 16 bits large biases lose the small differences between near keys.",
    ),
    sources=(PRESS_2021,),
    evidence=(
        Evidence(
            claim="A 1.3B model trained at 1024 tokens reaches at 2048 the perplexity of a "
            "sinusoidal one trained there, in 11 % less time and memory.",
            source=PRESS_2021,
        ),
        Evidence(
            claim="On synthetic reasoning tasks it generalises to longer inputs worse than a "
            "learned relative bias and than no positions.",
            source=KAZEMNEJAD_2023,
        ),
    ),
    orientation={
        "en": "Nothing is added to the tokens; every head subtracts from its scores an amount "
        "proportional to the distance, steep in some heads and gentle in others. A text longer "
        "than those of training then looks familiar, since what is far was always faint. That is "
        "also the limit: the model reads on calmly, and largely forgets what stood early.",
        "es": "No se suma nada a los tokens; cada cabeza resta a sus puntuaciones una cantidad "
        "proporcional a la distancia, con pendiente fuerte en unas y suave en otras. Un texto más "
        "largo que los del entrenamiento resulta entonces familiar, porque lo lejano siempre fue "
        "tenue. Ese es también el límite: el modelo sigue leyendo con calma y olvida en buena "
        "parte lo que estaba al principio.",
    },
    diagram=(
        "q, k",
        "scores q k",
        "+subtract slope * (i - j), one slope a head",
        "softmax, times v",
    ),
)
