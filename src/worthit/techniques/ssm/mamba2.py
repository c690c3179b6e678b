"""Mamba-2: a selective state space restricted so that it becomes matrix products.

Changes: each layer of softmax attention and dense feed-forward into two (as many as fit) bare
Mamba-2 blocks of inner width about `2 * d_model`, and each Mamba block into one of equal width.
Matched: parameters of each replaced layer, by the number of heads. Beside a mixture of experts the
mixer alone is swapped, at `2 * d_model`.
Relieves: the quadratic attention compute, the growing cache and its traffic; Mamba's slow scan.
Does nothing when: sequences are short: the state, eight times Mamba's, outweighs the cache.
Costs: training anew; copying and recall, though less than Mamba.
"""

from __future__ import annotations

from worthit.spec.case import Case
from worthit.spec.model import Mamba, Mamba2
from worthit.techniques._change import with_model
from worthit.techniques._mixers import (
    has_mixer,
    require_absent,
    require_softmax,
    to_attention,
    to_blocks,
)
from worthit.techniques._record import Evidence, Technique
from worthit.techniques.ssm._sources import DAO_2024, WALEFFE_2024

# Heads are 64 wide in the paper; narrow streams take narrower ones so that widths can be matched.
HEAD_DIM = 64
NARROW_HEAD_DIM = 16
NARROW_STREAM = 512


def apply(case: Case, *, d_state: int = 128, d_conv: int = 4, head_dim: int | None = None) -> Case:
    """Return `case` with Mamba-2 for attention, its dense feed-forward, and Mamba.

    `head_dim` is 64 unless told otherwise, 16 where `d_model` is below 512.
    """
    require_absent(is_present(case), "mamba2", "some layers are Mamba-2")
    narrow = case.model.d_model < NARROW_STREAM
    width_of_head = head_dim or (NARROW_HEAD_DIM if narrow else HEAD_DIM)

    def make(width: float) -> Mamba2:
        return Mamba2(
            n_heads=max(1, round(width / width_of_head)),
            head_dim=width_of_head,
            d_state=d_state,
            n_groups=1,
            d_conv=d_conv,
        )

    if not has_mixer(case, Mamba):
        require_softmax(case, "mamba2")
    changed = case.model.map_mixers(lambda m: make(m.d_inner) if isinstance(m, Mamba) else m)
    return to_blocks(with_model(case, changed), make)


def is_present(case: Case) -> bool:
    """Whether some layer is Mamba-2."""
    return has_mixer(case, Mamba2)


def remove(case: Case) -> Case:
    """Return `case` with softmax attention for Mamba-2: two bare blocks make one full layer."""
    return to_attention(case, lambda m: isinstance(m, Mamba2))


TECHNIQUE = Technique(
    id="mamba2",
    name="Mamba-2 (state-space duality)",
    relieves=("attention-compute", "decode-cache", "kv-capacity"),
    bottleneck="Attention grows with the context, and Mamba's scan leaves the matrix units idle "
    "and the state small.",
    apply=apply,
    module="worthit.nn.ssm.mamba2:Mamba2Mixer",
    parity=(
        "transformers 5.23 mixers of Mamba-2 and Falcon-H1: outputs and gradients "
        "(tests/nn/ssm/test_mamba2.py)",
        "the recurrence in order, for chunks and the attention form (tests/nn/ssm/test_mamba2.py)",
    ),
    experiment="worthit.lab.experiments.mamba2:EXPERIMENT",
    is_present=is_present,
    remove=remove,
    adoption="retrain",
    cost_of_adoption="A pretraining run, with the chunked kernel on the target device.",
    nothing_when=(
        "Contexts are shorter than the state is large: with 128 numbers a channel an eight-billion "
        "model carries a state worth a few hundred tokens of grouped-query cache for each "
        "sequence, read and written every token."
    ),
    pitfalls=(
        "The decay inside a chunk must be computed from differences of cumulative sums in fp32; "
        "the shortcut loses two digits.",
        "The gated norm stands after the gate here, and its groups must not straddle devices.",
        "Sequences that do not fill the last chunk need padding that leaves the state alone.",
        "Pure stacks still lag behind attention on copying; see hybrid.",
    ),
    sources=(DAO_2024, WALEFFE_2024),
    evidence=(
        Evidence(
            claim="Its core layer runs 2 to 8 times faster than Mamba's scan, with language "
            "modelling on a par with transformers at up to 2.7B parameters.",
            source=DAO_2024,
        ),
        Evidence(
            claim="At 8B parameters it trails a transformer on five-shot MMLU and phone-book "
            "look-up, and meets it on most other tasks.",
            source=WALEFFE_2024,
        ),
    ),
    orientation={
        "en": "If every channel of a head decays at one rate, the selective state space equals a "
        "form of masked attention without softmax. Then chunks of a sequence can be computed as "
        "matrix products, the state may be eight times larger for the same time, and training is "
        "several times faster than the scan. Decoding keeps its constant cost. The limits of a "
        "fixed state remain, and a large state is itself traffic for every token of every "
        "sequence.",
        "es": "Si todos los canales de una cabeza decaen al mismo ritmo, el espacio de estados "
        "selectivo equivale a una forma de atención enmascarada sin softmax. Entonces los bloques "
        "de una secuencia se calculan como productos de matrices, el estado puede ser ocho veces "
        "mayor en el mismo tiempo y el entrenamiento es varias veces más rápido que con el "
        "recorrido. La decodificación conserva su coste constante. Siguen los límites de un estado "
        "fijo, y un estado grande es también tráfico por cada token de cada secuencia.",
    },
    diagram=(
        "x",
        "-attention and feed-forward, one layer",
        "+two blocks: in_proj to gate, x, B, C and step at once",
        "+short convolution",
        "+within a chunk: (decay * C B) x; between chunks: one state a head",
        "~cache: grows with the context => head_dim * d_state numbers a head",
        "+gate, norm, out_proj",
    ),
)
