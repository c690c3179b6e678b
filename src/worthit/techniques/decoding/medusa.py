"""Medusa: extra heads on the last hidden state guess several tokens ahead, a tree of them verified.

Changes: `runtime.speculation`, with `n_heads` heads that draft in parallel.
Relieves: weights read once for each token, without a draft model.
Does nothing when: the batch is compute-bound, or verifying a tree is dear (a CPU).
Costs: training the heads; their weights, each with an output head of its own.

Held equal: the output distribution when verified by rejection sampling or greedily. The typical
acceptance of the paper is lossy and is not assumed.
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

CAI_2024 = Source(
    cite="Cai et al. 2024",
    title="Medusa: Simple LLM Inference Acceleration Framework with Multiple Decoding Heads",
    id="arXiv:2401.10774",
    where="sections 3.1 to 3.4",
)

# Per position of the tree. With four heads .65 yields 2.5 tokens a step, .55 yields 2.1 and .8
# yields 3.4: from frozen-backbone heads on open chat to the joint training of Medusa-2.
ACCEPTANCE = Range(mid=0.65, low=0.55, high=0.8)


def head_params(case: Case, n_heads: int) -> int:
    """Parameters of `n_heads` heads: a residual block d x d and an output head d x V each.

    Cai et al. 2024, section 3.1: softmax(W2 (SiLU(W1 h) + h)).
    """
    model = case.model
    return n_heads * (model.d_model**2 + model.d_model * model.vocab_size)


def apply(case: Case, *, n_heads: int = 4, tree: int = 64, acceptance: Range = ACCEPTANCE) -> Case:
    """Return `case` with `n_heads` heads and a tree of `tree` candidate tokens."""
    speculation = Speculation(
        draft_len=n_heads,
        acceptance=acceptance,
        head_params=head_params(case, n_heads),
        is_parallel=True,
        branches=max(tree // n_heads, 1),
    )
    return with_draft(case, "medusa", speculation)


def is_present(case: Case) -> bool:
    """Whether heads draft in parallel."""
    drafted = case.runtime.speculation
    return drafted is not None and drafted.is_parallel and drafted.head_params > 0


TECHNIQUE = Technique(
    id="medusa",
    name="Medusa heads",
    relieves=("decode-weights", "decode-cache", "launch-overhead"),
    bottleneck=BOTTLENECK,
    apply=apply,
    experiment="worthit.lab.experiments.medusa:EXPERIMENT",
    is_present=is_present,
    remove=without_draft,
    adoption="finetune",
    cost_of_adoption=(
        "Train the heads on a frozen model (hours on one device for 7B) or together with it; each "
        "head carries a vocabulary-sized matrix."
    ),
    nothing_when=(
        "The batch is compute-bound, or a pass over 65 tokens costs several passes over one, as "
        "on a CPU."
    ),
    pitfalls=(
        "With a large vocabulary and a small model the heads weigh as much as the model: a head "
        "of its own costs 21 % of a step on a 135M model; share it or cut the vocabulary.",
        "Typical acceptance changes the distribution: keep it off where exactness matters.",
        "The best tree depends on the model and the number of heads; a wrong one wastes "
        "verification.",
        "Positions in the tree are prefix plus depth, not the index of the node.",
    ),
    sources=(CAI_2024, LEVIATHAN_2022),
    evidence=(
        Evidence(
            claim="Heads on a frozen Vicuna: over 2.2 times faster without loss of quality; "
            "trained together with it: 2.3 to 3.6 times, with typical acceptance.",
            source=CAI_2024,
        ),
    ),
    orientation={
        "en": "Medusa adds a few small heads beside the output head: the first guesses the token "
        "after next, the second the one after that, all from the same hidden state and in one go. "
        "Their best guesses form a tree of continuations, and the next pass of the model checks "
        "the whole tree through a special mask. Heads do not see one another's guesses, so they "
        "are less accurate than a drafter that proceeds token by token.",
        "es": "Medusa añade unas pocas cabezas pequeñas junto a la de salida: la primera adivina "
        "el token siguiente al próximo, la segunda el que viene después, todas a partir del mismo "
        "estado oculto y a la vez. Sus mejores propuestas forman un árbol de continuaciones, y la "
        "siguiente pasada del modelo comprueba el árbol entero con una máscara especial. Las "
        "cabezas no ven las propuestas de las otras, por eso aciertan menos que un modelo que "
        "avanza token a token.",
    },
    diagram=(
        "last hidden state",
        "output head: next token",
        "+n_heads heads: the tokens after it, all at once",
        "+tree of their best guesses, with its attention mask",
        "~model: one token a pass => the tree in one pass",
        "+keep the longest agreeing path, compact the cache",
    ),
)
