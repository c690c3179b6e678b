"""Budget forcing: a model is kept thinking when it would stop, and stopped when it would not.

Changes: `runtime.rounds`: tokens said for each token of the output.
Relieves: one answer that is wrong too often, where the model can find its own mistakes.
Does nothing when: the model was never trained to think again: it repeats itself.
Costs: tokens one after another, so that they add to the time an answer takes.

Held equal: the model. Cutting thinking short is the same technique with fewer tokens.
"""

from __future__ import annotations

from dataclasses import replace

from worthit.spec.case import Case
from worthit.techniques._record import Evidence, Technique
from worthit.techniques.reasoning._answers import (
    HUANG_2023,
    MUENNIGHOFF_2025,
    SNELL_2024,
    answered_once,
    is_reasoned,
    reasoned,
)


def apply(case: Case, *, rounds: float = 2.0) -> Case:
    """Return `case` thinking `rounds` times as long as the model would."""
    return reasoned(case, "budget-forcing", rounds=rounds, checks=("short", "exact", "learned"))


def is_present(case: Case) -> bool:
    """Whether thinking is forced to a length."""
    return is_reasoned(case, "budget-forcing")


def remove(case: Case) -> Case:
    """Return `case` thinking as long as the model likes."""
    return answered_once(case)


TECHNIQUE = Technique(
    id="budget-forcing",
    name="Budget forcing",
    relieves=("single-answer",),
    bottleneck=(
        "A thinking model decides for itself how long it thinks: too short for hard questions, and "
        "without end for some."
    ),
    apply=apply,
    is_present=is_present,
    remove=remove,
    adoption="calibrate",
    cost_of_adoption=(
        "A model that thinks and has a token for the end of it; a few lines in the sampler; and a "
        "sweep of budgets on your own questions."
    ),
    nothing_when=(
        "The model does not think aloud, is done thinking (more waits repeat what stands there), "
        "or the question needs knowledge and not thought."
    ),
    pitfalls=(
        "Gains end after a few waits: then it loops, or talks itself out of a right answer.",
        "Compare at equal tokens: a vote over as many tokens is often the better buy, and runs "
        "side by side where this runs one after another.",
        "A cut must leave room for the answer, and must close the thinking as training did.",
        "It says nothing about models that never saw text that doubts itself.",
    ),
    module="worthit.reason.think:budget_forcing",
    experiment="worthit.lab.experiments.budget_forcing:EXPERIMENT",
    parity=(
        "every prompt, limit and text token by token (tests/reason/test_think.py)",
        "without force it is plain decoding (tests/reason/test_think.py)",
    ),
    sources=(MUENNIGHOFF_2025, SNELL_2024, HUANG_2023),
    evidence=(
        Evidence(
            claim="Keeping s1-32B thinking takes it from 50 % to 57 % on AIME24; accuracy grows "
            "with the budget and levels off.",
            source=replace(MUENNIGHOFF_2025, where="abstract"),
        ),
        Evidence(
            claim="Asked to look again without outside feedback, models correct little and spoil "
            "right answers: GPT-3.5 and GPT-4 lose accuracy on GSM8K.",
            source=replace(HUANG_2023, where="section 3"),
        ),
    ),
    orientation={
        "en": "A model trained to think before it answers ends its thinking with a special token. "
        "Take that token away and write Wait in its place, and it goes on, sometimes finding its "
        "own mistake; put the token in early, and it must answer with what it has. So one knob "
        "sets how many tokens an answer may cost. It works as far as the model has learned to "
        "doubt itself, and it adds to the time of every answer, which drawing several side by side "
        "does not.",
        "es": "Un modelo entrenado para pensar antes de responder cierra su razonamiento con un "
        "token especial. Si se quita ese token y se escribe «Espera» en su lugar, sigue pensando y "
        "a veces halla su propio error; si se pone antes, debe responder con lo que tiene. Así un "
        "solo mando fija cuántos tokens puede costar una respuesta. Funciona hasta donde el modelo "
        "aprendió a dudar, y alarga cada respuesta, cosa que no hace sacar varias en paralelo.",
    },
    diagram=(
        "prompt",
        "thinking",
        "~end of thinking: the model's choice => taken away, and Wait put in, `n` times",
        "+at the limit: end of thinking put in",
        "answer",
    ),
)
