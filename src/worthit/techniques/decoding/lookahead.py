"""Lookahead decoding: the model guesses ahead of itself by Jacobi iteration, no drafter at all.

Changes: `runtime.speculation`, free drafts verified many at a time.
Relieves: weights read once for each token, without training or a second model.
Does nothing when: 121 tokens a step cost much more than one (any CPU, any large batch).
Costs: (window + guesses) (ngram - 1) extra tokens in every step.

Held equal: greedy output; sampling needs point-mass verification.
"""

from __future__ import annotations

from worthit.spec.case import Case, Range, Speculation
from worthit.techniques._record import Evidence, Source, Technique
from worthit.techniques.decoding._draft import (
    BOTTLENECK,
    LEVIATHAN_2022,
    with_draft,
    without_draft,
)

FU_2024 = Source(
    cite="Fu et al. 2024",
    title="Break the Sequential Dependency of LLM Inference Using Lookahead Decoding",
    id="arXiv:2402.02057",
    where="sections 3.1 to 3.4",
)

# With 5-grams .5 yields 1.9 tokens a step, .35 yields 1.5 and .65 yields 2.5: around the 1.5 to 2.3
# times that its authors report where extra tokens are nearly free.
ACCEPTANCE = Range(mid=0.5, low=0.35, high=0.65)


def apply(
    case: Case,
    *,
    ngram: int = 5,
    window: int = 15,
    guesses: int = 15,
    acceptance: Range = ACCEPTANCE,
) -> Case:
    """Return `case` with `window` columns of `ngram` - 1 levels and `guesses` n-grams verified.

    A step computes (window + guesses) (ngram - 1) tokens beside its own: as many branches of
    ngram - 1 positions as window and guesses together.
    """
    speculation = Speculation(
        draft_len=ngram - 1,
        acceptance=acceptance,
        is_parallel=True,
        branches=window + guesses,
    )
    return with_draft(case, "lookahead", speculation)


def is_present(case: Case) -> bool:
    """Whether drafts come in parallel and for free."""
    drafted = case.runtime.speculation
    return drafted is not None and drafted.is_parallel and drafted.head_params == 0


TECHNIQUE = Technique(
    id="lookahead",
    name="Lookahead decoding",
    relieves=("decode-weights", "decode-cache", "launch-overhead"),
    bottleneck=BOTTLENECK,
    module="worthit.decode.speculative.lookahead:Lookahead",
    parity=(
        "plain decoding: text token for token, and the law of drawn text "
        "(tests/decode/speculative/test_loop.py)",
        "a mask written out from the paper's rule: what each slot of the window sees "
        "(tests/decode/speculative/test_drafters.py)",
    ),
    experiment="worthit.lab.experiments.lookahead:EXPERIMENT",
    apply=apply,
    is_present=is_present,
    remove=without_draft,
    adoption="drop-in",
    cost_of_adoption=(
        "An engine that has it (few do) and its attention mask; window and n-gram length tuned to "
        "the idle arithmetic of the device."
    ),
    nothing_when=(
        "The device has no idle arithmetic: a CPU, a small accelerator, more than a few sequences "
        "in flight."
    ),
    pitfalls=(
        "About 120 extra tokens a step with the defaults for 7B: at batch 4 that is past the "
        "critical batch of most devices.",
        "The gain grows with the logarithm of the extra computation: doubling the window buys "
        "little.",
        "Every token of the window needs its own mask row; a wrong one changes the output "
        "silently.",
    ),
    sources=(FU_2024, LEVIATHAN_2022),
    evidence=(
        Evidence(
            claim="Up to 1.8 times on MT-Bench on one device, and up to 4 times on code when the "
            "window is spread over several devices; greedy output unchanged.",
            source=FU_2024,
        ),
    ),
    orientation={
        "en": "Generating greedily can be seen as solving a system of equations, one per future "
        "position, and such systems can be iterated in parallel from a wrong start. Lookahead "
        "decoding keeps a window of wrong guesses that improve from step to step, collects the "
        "n-grams that appear, and verifies those that fit the text so far. It needs nothing but "
        "the model, and pays with much extra arithmetic: worthwhile only where that is idle.",
        "es": "Generar de forma voraz equivale a resolver un sistema de ecuaciones, una por "
        "posición futura, y esos sistemas se pueden iterar en paralelo desde un comienzo erróneo. "
        "Este método mantiene una ventana de conjeturas que mejoran paso a paso, recoge los "
        "n-gramas que aparecen y comprueba los que encajan con el texto. No necesita nada más que "
        "el modelo y lo paga con mucha aritmética adicional: solo compensa donde esta sobra.",
    },
    diagram=(
        "tokens so far",
        "+window of guesses, improved by one Jacobi step a pass",
        "+pool of n-grams seen in the window",
        "~model: one token a pass => 1 + (window + guesses) (ngram - 1) tokens a pass",
        "+accept the longest n-gram that agrees",
    ),
)
