"""Speculative decoding: a small model drafts tokens, the large one verifies them in one pass.

Changes: `runtime.speculation`, with a draft model of `draft_scale` times the parameters.
Relieves: weights read once for each token; one reading now yields several tokens.
Does nothing when: the batch is large enough to be compute-bound, or nothing waits for memory.
Costs: a second model in memory, of the same vocabulary; acceptance that varies with the text.

Held equal: the output distribution (rejection sampling is exact). The speed-up is
(1 - a^(g+1)) / (1 - a) tokens over g draft passes and one pass over g + 1 tokens.
"""

from __future__ import annotations

from worthit.spec.case import Case, Range, Speculation
from worthit.techniques._record import Evidence, Technique
from worthit.techniques.decoding._draft import (
    BOTTLENECK,
    CHEN_2023,
    LEVIATHAN_2022,
    with_draft,
    without_draft,
)

# Leviathan et al. 2022 measure .53 (T5-small, summaries, sampling) to .82 (T5-large, translation,
# greedy) for drafts of about 0.7 to 7 % of the target's size.
ACCEPTANCE = Range(mid=0.7, low=0.53, high=0.82)


def apply(
    case: Case,
    *,
    draft_len: int = 4,
    draft_scale: float = 0.05,
    acceptance: Range = ACCEPTANCE,
) -> Case:
    """Return `case` with `draft_len` tokens drafted by a model `draft_scale` times the size."""
    return with_draft(
        case,
        "speculative-decoding",
        Speculation(draft_len=draft_len, acceptance=acceptance, draft_scale=draft_scale),
    )


def is_present(case: Case) -> bool:
    """Whether a second model drafts."""
    drafted = case.runtime.speculation
    return drafted is not None and drafted.draft_scale > 0


TECHNIQUE = Technique(
    id="speculative-decoding",
    name="Speculative decoding with a draft model",
    relieves=("decode-weights", "decode-cache", "launch-overhead"),
    bottleneck=BOTTLENECK,
    module="worthit.decode.speculative.draft_model:DraftModel",
    parity=(
        "plain decoding: text token for token, and the law of drawn text "
        "(tests/decode/speculative/test_loop.py)",
        "the acceptance rule written out, by chi-square on pairs of tokens "
        "(tests/decode/speculative/test_accept.py)",
    ),
    apply=apply,
    experiment="worthit.lab.experiments.speculative_decoding:EXPERIMENT",
    is_present=is_present,
    remove=without_draft,
    adoption="drop-in",
    cost_of_adoption=(
        "A small model with the very same tokenizer (a sibling of the family), its weights and "
        "its own cache; draft length tuned on your traffic."
    ),
    nothing_when=(
        "The batch times the draft length passes the device's critical batch, the model is small "
        "enough to be bound by launches or arithmetic, or no small model agrees with it."
    ),
    pitfalls=(
        "It pays at batch 1 to 8 and often loses at 32: every drafted token is verified, kept or "
        "not. Judge it at your batch.",
        "In a mixture of experts, verifying several tokens reads more experts.",
        "Draft and target must apply the same temperature, truncation and penalties, or the output "
        "distribution changes.",
        "On a CPU with quantized weights a pass over 8 tokens costs about two of one token: "
        "measure that curve first.",
        "Recurrent layers need their state saved at every drafted token to undo a rejection.",
        "The formula's own median error against its authors' measurements is about 15 %, the "
        "worst 47 %.",
    ),
    sources=(LEVIATHAN_2022, CHEN_2023),
    evidence=(
        Evidence(
            claim="Outputs follow the target's distribution exactly; T5-XXL is 2.3 to 3.4 times "
            "faster at batch 1 with T5-small as the draft.",
            source=LEVIATHAN_2022,
        ),
        Evidence(
            claim="Chinchilla 70B decodes 2 to 2.5 times faster with a 4B draft, samples unchanged "
            "in distribution.",
            source=CHEN_2023,
        ),
    ),
    orientation={
        "en": "A large model at batch one spends its time fetching weights, not computing. Let a "
        "small model guess the next few tokens, and let the large one check all of them in a "
        "single pass, which costs about as much as producing one. Accepted guesses are free "
        "tokens; at the first rejection the large model's own token is used, chosen so that the "
        "distribution of the text is exactly the same. It trades idle arithmetic for memory "
        "traffic, so it stops paying once the batch leaves no arithmetic idle.",
        "es": "Un modelo grande con un solo usuario pasa el tiempo trayendo pesos, no calculando. "
        "Se deja que un modelo pequeño adivine los próximos tokens y que el grande los compruebe "
        "todos en una sola pasada, que cuesta casi lo mismo que producir uno. Los aciertos son "
        "tokens gratis; en el primer rechazo se usa el token del modelo grande, elegido de modo "
        "que la distribución del texto sea exactamente la misma. Cambia aritmética ociosa por "
        "tráfico de memoria, así que deja de compensar cuando el lote ya ocupa toda la aritmética.",
    },
    diagram=(
        "tokens so far",
        "+draft model: draft_len tokens, one after another",
        "~target: one token a pass => draft_len + 1 tokens a pass",
        "+accept with min(1, p / q), resample at the first rejection",
        "+roll both caches back to what was kept",
        "1 to draft_len + 1 tokens",
    ),
)
