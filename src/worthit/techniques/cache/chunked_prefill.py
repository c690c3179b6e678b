"""Chunked prefill: a long prompt is computed in pieces that share steps with decoding.

Changes: `runtime.prefill_chunk`.
Relieves: the pause that running sequences suffer while a newcomer's prompt is computed.
Does nothing when: one sequence runs at a time, or prompts are shorter than a chunk.
Costs: an engine that mixes both phases; a somewhat later first token.

Held equal: the workload. It is judged on the longest gap between two tokens that a user sees while
another's prompt is prefilled; throughput hardly moves.
"""

from __future__ import annotations

from worthit.spec.case import Case
from worthit.techniques._change import require_serving, with_runtime
from worthit.techniques._record import Evidence, Technique
from worthit.techniques.cache._sources import AGRAWAL_2024


def apply(case: Case, *, chunk: int = 512) -> Case:
    """Return `case` with at most `chunk` prompt tokens in a step."""
    require_serving(case, "chunked-prefill")
    return with_runtime(case, prefill_chunk=chunk)


def is_present(case: Case) -> bool:
    """Whether prompts are chunked already."""
    return case.runtime.prefill_chunk is not None


def remove(case: Case) -> Case:
    """Return `case` computing a prompt in one piece."""
    return with_runtime(case, prefill_chunk=None)


TECHNIQUE = Technique(
    id="chunked-prefill",
    name="Chunked prefill",
    relieves=("prefill-stall",),
    bottleneck=(
        "While one long prompt is computed in one piece, every sequence that is decoding waits."
    ),
    apply=apply,
    experiment="worthit.lab.experiments.chunked_prefill:EXPERIMENT",
    is_present=is_present,
    remove=remove,
    adoption="drop-in",
    cost_of_adoption=(
        "One engine flag, and a token budget chosen from the gap that users tolerate; the first "
        "token of a long prompt comes somewhat later."
    ),
    nothing_when=(
        "One sequence is in flight, prompts are shorter than a chunk, or nobody watches tokens "
        "arrive (offline batches)."
    ),
    pitfalls=(
        "Chunks below the token count at which matrix products become compute-bound waste the "
        "device: each chunk reads all weights and the cache so far again.",
        "Only the last chunk yields a token: sampling earlier is a bug that looks like nonsense.",
        "A prefix-cache hit changes where chunks begin: outputs should not.",
    ),
    module="worthit.decode.engine.scheduler:Scheduler",
    parity=(
        "any chunks give the same numbers in fp64, and an answer a token in every step "
        "(tests/decode/engine/test_service.py)",
    ),
    sources=(AGRAWAL_2024,),
    evidence=(
        Evidence(
            claim="Under a bound on the gap between tokens, serving capacity rises 2.6 times for "
            "Mistral-7B on one A100 and up to 3.7 times for Yi-34B on two.",
            source=AGRAWAL_2024,
        ),
    ),
    metric="stall_s",
    orientation={
        "en": "Computing a prompt saturates the device; decoding leaves it idle and waits for "
        "memory. Run in turn, a long prompt stops everybody's text for as long as it takes. "
        "Chunked prefill cuts the prompt into pieces of a few hundred tokens and adds one piece to "
        "each decode step: running users see a slightly slower stream instead of a pause, and the "
        "newcomer's first token comes a little later.",
        "es": "Procesar un texto de entrada satura el dispositivo; decodificar lo deja ocioso a "
        "la espera de la memoria. Si se alternan, una entrada larga detiene el texto de todos "
        "mientras dura. El prellenado por trozos corta la entrada en piezas de unos cientos de "
        "tokens y añade una a cada paso de decodificación: los usuarios en curso ven un flujo algo "
        "más lento en lugar de una pausa, y el primer token del recién llegado tarda un poco más.",
    },
    diagram=(
        "new prompt",
        "+cut into chunks of prefill_chunk tokens",
        "~step: one whole prompt, others wait => decode tokens of all, and one chunk",
        "forward pass over both",
        "first token after the last chunk",
    ),
)
