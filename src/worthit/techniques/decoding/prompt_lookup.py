"""Prompt look-up: the last few tokens are searched in the prompt, what followed there is drafted.

Changes: `runtime.speculation`, with drafts that cost nothing.
Relieves: weights read once for each token, where the output repeats its input.
Does nothing when: the output does not copy (chat, creative text).
Costs: nothing to train or to store; wasted verification where guesses are wrong.

Held equal: the output distribution. Acceptance follows `workload.copy_rate`, the share of output
tokens that stand verbatim in the prompt.
"""

from __future__ import annotations

from worthit.spec.case import Case, Range, Speculation
from worthit.techniques._change import require_serving
from worthit.techniques._record import Evidence, Source, Technique
from worthit.techniques.decoding._draft import (
    BOTTLENECK,
    LEVIATHAN_2022,
    with_draft,
    without_draft,
)

SAXENA_2023 = Source(
    cite="Saxena 2023",
    title="Prompt Lookup Decoding",
    id="github.com/apoorvumang/prompt-lookup-decoding",
)
YANG_2023 = Source(
    cite="Yang et al. 2023",
    title="Inference with Reference: Lossless Acceleration of Large Language Models",
    id="arXiv:2304.04487",
    where="section 3",
)

# Copied tokens come in runs. If every token of a run is kept and none between runs, a step yields
# 1 / (1 - c + c / (g + 1)) tokens; the constant acceptance that yields as many is close to 0.85 c
# (within .05 for drafts of 5, up to c = .8). Tokens copied one by one would give c itself; a run
# that is found only after its first tokens, less.
RUNS, FOUND_LATE = 0.85, 0.6
# A copy ends somewhere: even pure copying is not accepted for ever.
MOST = 0.97


def acceptance(copy_rate: float) -> Range:
    """The chance that a looked-up token is kept, from the share of tokens that are copied."""
    return Range(
        mid=min(RUNS * copy_rate, MOST),
        low=min(FOUND_LATE * copy_rate, MOST),
        high=min(copy_rate, MOST),
    )


def apply(case: Case, *, draft_len: int = 5) -> Case:
    """Return `case` drafting up to `draft_len` tokens from its own prompt."""
    work = require_serving(case, "prompt-lookup")
    return with_draft(
        case,
        "prompt-lookup",
        Speculation(draft_len=draft_len, acceptance=acceptance(work.copy_rate)),
    )


def is_present(case: Case) -> bool:
    """Whether drafts are looked up: free, and one continuation at a time."""
    drafted = case.runtime.speculation
    return drafted is not None and not (
        drafted.draft_scale or drafted.draft_layers or drafted.head_params or drafted.is_parallel
    )


TECHNIQUE = Technique(
    id="prompt-lookup",
    name="Prompt look-up decoding",
    relieves=("decode-weights", "decode-cache", "launch-overhead"),
    bottleneck=BOTTLENECK,
    module="worthit.decode.speculative.lookup:PromptLookup",
    parity=(
        "plain decoding: text token for token, and the law of drawn text "
        "(tests/decode/speculative/test_loop.py)",
    ),
    experiment="worthit.lab.experiments.prompt_lookup:EXPERIMENT",
    apply=apply,
    is_present=is_present,
    remove=without_draft,
    adoption="drop-in",
    cost_of_adoption="One engine flag; a draft length, best adapted to what was accepted so far.",
    nothing_when=(
        "The output copies little of the prompt, or the batch is compute-bound; without a match "
        "nothing is drafted and nothing is lost but the search."
    ),
    pitfalls=(
        "Matching single tokens drafts junk: look for three, then two.",
        "Take the most recent match, not the first.",
        "Measured on chat with drafts of ten it slowed a CPU model down to 0.72 times: cap the "
        "draft by what verification costs there.",
        "State `workload.copy_rate` from your own logs; 0 means that nobody measured it.",
    ),
    sources=(SAXENA_2023, YANG_2023, LEVIATHAN_2022),
    evidence=(
        Evidence(
            claim="2 to 4 times faster on tasks whose output repeats the input (summaries, "
            "question answering over documents, editing), output unchanged.",
            source=SAXENA_2023,
        ),
        Evidence(
            claim="More than twice as fast where outputs share spans with retrieved references.",
            source=YANG_2023,
        ),
    ),
    orientation={
        "en": "When a model edits code, summarises or quotes, much of what it writes stands in the "
        "prompt already. Prompt look-up finds the last few words there, proposes what came next, "
        "and lets the model verify the proposal in one pass. There is no draft model, no training "
        "and no memory; the gain is exactly as large as the copying.",
        "es": "Cuando un modelo edita código, resume o cita, gran parte de lo que escribe ya está "
        "en el texto de entrada. Este método busca ahí las últimas palabras, propone lo que venía "
        "después y deja que el modelo lo compruebe en una sola pasada. No hay modelo auxiliar, ni "
        "entrenamiento, ni memoria extra; se gana exactamente tanto como se copia.",
    },
    diagram=(
        "tokens so far",
        "+find the last n-gram in the prompt, take what followed",
        "~model: one token a pass => draft_len + 1 tokens a pass",
        "+accept while they agree, roll the cache back",
    ),
)
