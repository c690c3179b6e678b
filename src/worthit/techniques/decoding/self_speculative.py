"""Self-speculative decoding: the model's own first layers draft, all of its layers verify.

Changes: `runtime.speculation`, with a draft of `draft_layers` of the layers.
Relieves: weights read once for each token, without a second model.
Does nothing when: the early layers were never trained to predict; then it slows decoding down.
Costs: fine-tuning with layer dropout and an early-exit loss (LayerSkip).

Held equal: the output distribution. No memory is added: draft and target share weights and cache.
"""

from __future__ import annotations

from worthit.errors import NotApplicable
from worthit.spec.case import Case, Range, Speculation
from worthit.techniques._record import Evidence, Source, Technique
from worthit.techniques.decoding._draft import (
    BOTTLENECK,
    LEVIATHAN_2022,
    with_draft,
    without_draft,
)

ELHOUSHI_2024 = Source(
    cite="Elhoushi et al. 2024",
    title="LayerSkip: Enabling Early Exit Inference and Self-Speculative Decoding",
    id="arXiv:2404.16710",
    where="sections 4.1 to 4.3",
)
ZHANG_2023 = Source(
    cite="Zhang et al. 2023",
    title="Draft & Verify: Lossless Large Language Model Acceleration via Self-Speculative "
    "Decoding",
    id="arXiv:2309.08168",
    where="section 3",
)

# LayerSkip's released Llama 2 7B checkpoint reports .79 on summaries, its 1.5B example .02: the
# range covers fine-tuned models, and says little about one that is not.
ACCEPTANCE = Range(mid=0.65, low=0.4, high=0.79)
LEAST_LAYERS = 4


def apply(
    case: Case,
    *,
    draft_len: int = 4,
    draft_layers: float = 0.25,
    acceptance: Range = ACCEPTANCE,
) -> Case:
    """Return `case` drafting with the share `draft_layers` of its own layers."""
    n_layers = case.model.n_layers
    if n_layers < LEAST_LAYERS:
        raise NotApplicable(
            f"self-speculative drafts with the first layers of a deep model, got {n_layers}; it "
            f"needs {LEAST_LAYERS} or more"
        )
    speculation = Speculation(draft_len=draft_len, acceptance=acceptance, draft_layers=draft_layers)
    return with_draft(case, "self-speculative", speculation)


def is_present(case: Case) -> bool:
    """Whether the model's own layers draft."""
    drafted = case.runtime.speculation
    return drafted is not None and drafted.draft_layers > 0


TECHNIQUE = Technique(
    id="self-speculative",
    name="Self-speculative decoding",
    relieves=("decode-weights", "decode-cache", "launch-overhead"),
    bottleneck=BOTTLENECK,
    module="worthit.decode.speculative.shallow:SharedExit",
    parity=(
        "plain decoding: text token for token, and the law of drawn text "
        "(tests/decode/speculative/test_loop.py)",
    ),
    experiment="worthit.lab.experiments.self_speculative:EXPERIMENT",
    apply=apply,
    is_present=is_present,
    remove=without_draft,
    adoption="finetune",
    cost_of_adoption=(
        "Continued training with layer dropout and an early-exit loss; a training-free variant "
        "that skips middle layers needs a search for which ones instead."
    ),
    nothing_when=(
        "The model was not trained to exit early (acceptance near zero: several times slower), "
        "is shallow, or the batch is compute-bound."
    ),
    pitfalls=(
        "On an untrained exit it loses badly: 0.12 to 0.19 times the speed was measured on a 135M "
        "model, and the authors' own 1.5B example is 3.2 times slower.",
        "A quarter of the layers plus the output head for each drafted token is dearer than a "
        "small draft model: acceptance must be high to pay.",
        "Reuse the keys and values of the first layers in verification, or the saving is lost.",
    ),
    sources=(ELHOUSHI_2024, ZHANG_2023, LEVIATHAN_2022),
    evidence=(
        Evidence(
            claim="With the training recipe, up to 2.16 times on CNN/DM summaries, 1.82 on code "
            "and 2.0 on semantic parsing, verified by the full model.",
            source=ELHOUSHI_2024,
        ),
        Evidence(
            claim="Skipping a searched set of middle layers, without training: up to 1.99 times "
            "on Llama 2 models.",
            source=ZHANG_2023,
        ),
    ),
    orientation={
        "en": "Instead of a second model, the first layers of the same model make the guess and "
        "the remaining ones check it. Nothing is added to memory, and the cache of the shared "
        "layers is computed once. But a network that was never asked to answer from its middle "
        "answers badly there: the method stands or falls with training for early exit.",
        "es": "En lugar de un segundo modelo, las primeras capas del mismo modelo proponen y las "
        "restantes comprueban. No se añade nada a la memoria y la caché de las capas compartidas "
        "se calcula una sola vez. Pero una red a la que nunca se pidió responder desde su mitad "
        "responde mal desde ahí: el método depende por completo de haberla entrenado para salir "
        "antes.",
    },
    diagram=(
        "tokens so far",
        "+draft: first draft_layers of the layers, then final norm and output head",
        "+draft_len tokens, one after another",
        "~all layers: one token a pass => draft_len + 1 tokens a pass",
        "+accept or resample, roll the cache back",
    ),
)
