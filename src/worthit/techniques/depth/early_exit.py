"""Early exit: a token leaves after an intermediate layer once the model is confident.

Changes: `model.early_exit`, with exits after each quarter of the layers.
Relieves: layers computed and weights read for tokens that are settled already.
Does nothing when: confidence comes late, or a batch waits for its slowest token.
Costs: fine-tuning of intermediate layers to predict, and a threshold to calibrate.

Held equal: parameters and workload. The mean depth depends on the text: it is an interval until it
is measured, and quality falls with it.
"""

from __future__ import annotations

from dataclasses import replace

from worthit.errors import NotApplicable
from worthit.spec.case import Case, Range
from worthit.spec.model import EarlyExit
from worthit.techniques._change import require_serving, with_model
from worthit.techniques._record import Evidence, Source, Technique

SCHUSTER_2022 = Source(
    cite="Schuster et al. 2022",
    title="Confident Adaptive Language Modeling",
    id="arXiv:2207.07061",
    where="sections 3.2 to 3.5",
)
ELHOUSHI_2024 = Source(
    cite="Elhoushi et al. 2024",
    title="LayerSkip: Enabling Early Exit Inference and Self-Speculative Decoding",
    id="arXiv:2404.16710",
    where="section 4.1",
)

# A third of the depth is the "up to three times" of CALM on T5's easiest task; on decoder-only
# models most tokens need most layers.
MEAN_DEPTH = Range(mid=0.7, low=0.35, high=0.95)
N_PARTS = 4


def apply(case: Case, *, mean_depth: Range = MEAN_DEPTH) -> Case:
    """Return `case` with exits after each quarter of the layers."""
    require_serving(case, "early-exit")
    model = case.model
    if model.n_layers < N_PARTS:
        raise NotApplicable(
            f"early-exit leaves after a quarter of the layers at the earliest, got "
            f"{model.n_layers}; it needs {N_PARTS} or more"
        )
    exits = EarlyExit(
        layers=tuple(model.n_layers * part // N_PARTS for part in range(1, N_PARTS)),
        mean_depth=mean_depth.mid,
        low=mean_depth.low,
        high=mean_depth.high,
    )
    return with_model(case, replace(model, early_exit=exits))


def is_present(case: Case) -> bool:
    """Whether tokens may leave early."""
    return case.model.early_exit is not None


def remove(case: Case) -> Case:
    """Return `case` with every token going through every layer."""
    return with_model(case, replace(case.model, early_exit=None))


TECHNIQUE = Technique(
    id="early-exit",
    name="Early exit",
    relieves=("decode-weights", "matmul-compute"),
    bottleneck="Tokens that are settled after a few layers still go through all of them.",
    apply=apply,
    module="worthit.nn.depth.early_exit:EarlyExitDecoder",
    parity=(
        "a loop over layers and tokens, by each measure of confidence: logits and exits "
        "(tests/nn/depth/test_early_exit.py)",
    ),
    experiment="worthit.lab.experiments.early_exit:EXPERIMENT",
    is_present=is_present,
    remove=remove,
    adoption="finetune",
    cost_of_adoption=(
        "Training with a loss at every exit (or layer dropout), and a confidence threshold "
        "calibrated on your text against the quality you accept to lose."
    ),
    nothing_when=(
        "The model is shallow, was not trained to predict from its middle, or decodes in batches "
        "where some token always needs the full depth."
    ),
    pitfalls=(
        "A token that left has no keys and values in deeper layers: copy its state there, or "
        "recompute in groups; copies drift.",
        "In a batch the deepest token decides, unless tokens are grouped by depth.",
        "Every exit tried costs an output head: with a large vocabulary that is several layers.",
        "Average quality hides single wrong tokens, which later text builds on; verify with the "
        "full model (self-speculative) where that matters.",
    ),
    sources=(SCHUSTER_2022, ELHOUSHI_2024),
    evidence=(
        Evidence(
            claim="T5 encoder-decoders generate up to 3 times faster with a calibrated bound on "
            "the loss of quality.",
            source=SCHUSTER_2022,
        ),
    ),
    orientation={
        "en": "For an easy word the answer is often settled half-way up the network. Early exit "
        "asks after some layers how sure the model is, and stops if it is sure enough. A single "
        "user saves the reading and computing of the remaining layers. Two things spoil it: later "
        "tokens want to attend to keys and values that were never computed, and in a batch "
        "everybody waits for the token that goes deepest.",
        "es": "En una palabra fácil, la respuesta suele estar decidida a media altura de la red. "
        "La salida temprana pregunta tras algunas capas cuán seguro está el modelo y se detiene si "
        "lo está bastante. Un solo usuario se ahorra leer y calcular las capas restantes. Dos "
        "cosas lo estropean: los tokens posteriores quieren atender a claves y valores que nunca "
        "se calcularon, y en un lote todos esperan al token que llega más hondo.",
    },
    diagram=(
        "x",
        "a quarter of the layers",
        "+final norm and output head: confident enough?",
        "~remaining layers: every token => tokens that are not",
        "+fill the missing keys and values of tokens that left",
        "final norm and head",
    ),
)
