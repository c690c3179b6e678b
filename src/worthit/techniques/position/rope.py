"""Rotary positions: queries and keys are rotated by their position, so products see distance.

Changes: the position scheme; no parameters. Matched: everything else; latent attention gets its
rotary channels, half a head wide.
Relieves: quality: relative order inside attention, at the cost of one element-wise pass.
Does nothing when: the layers read in order anyway (recurrent mixers).
Costs: training anew; angles beyond the trained length are unknown, see position-interpolation.
"""

from __future__ import annotations

from worthit.spec.case import Case
from worthit.spec.model import Position
from worthit.techniques._record import Evidence, Source, Technique
from worthit.techniques.position._positions import (
    KAZEMNEJAD_2023,
    is_kind,
    set_position,
    without_position,
)

SU_2021 = Source(
    cite="Su et al. 2021",
    title="RoFormer: Enhanced Transformer with Rotary Position Embedding",
    id="arXiv:2104.09864",
    where="section 3.2, equations 14 and 15",
)


def apply(case: Case, *, rope_theta: float = 10_000.0) -> Case:
    """Return `case` with rotary positions of base `rope_theta`."""
    return set_position(case, "rope", Position(kind="rope", rope_theta=rope_theta))


def is_present(case: Case) -> bool:
    """Whether queries and keys are rotated by position."""
    return is_kind(case, "rope")


def remove(case: Case) -> Case:
    """Return `case` without the rotation, told nothing about order."""
    return without_position(case)


TECHNIQUE = Technique(
    id="rope",
    name="Rotary position embedding (RoPE)",
    relieves=("quality",),
    bottleneck="Absolute positions added to tokens make attention learn every distance anew.",
    apply=apply,
    module="worthit.nn.position.rope:rotate",
    experiment="worthit.lab.experiments.rope:EXPERIMENT",
    parity=(
        "transformers 5.23 `LlamaRotaryEmbedding`: frequencies (tests/nn/position/test_rope.py)",
        "transformers 5.23 `apply_rotary_pos_emb` of Llama (half) and Cohere (interleaved): "
        "turned heads (tests/nn/position/test_rope.py)",
    ),
    is_present=is_present,
    remove=remove,
    adoption="retrain",
    cost_of_adoption="A training run; nothing else changes in size.",
    nothing_when="The layers are recurrent, or the texts so short that any scheme learns them.",
    pitfalls=(
        "Weights trained with interleaved pairs and code that rotates halves (or the other way "
        "round) agree only after a permutation; otherwise the model talks nonsense.",
        "Angles computed in 16 bits are off by whole turns at a hundred thousand tokens.",
        "Base, scaling and rotated share must all match the checkpoint; none of them raises an "
        "error when wrong.",
        "Beyond the trained length quality falls off sharply.",
    ),
    sources=(SU_2021, KAZEMNEJAD_2023),
    evidence=(
        Evidence(
            claim="Pretraining with rotary positions converges faster than with absolute ones in "
            "their language-model comparisons.",
            source=SU_2021,
        ),
    ),
    orientation={
        "en": "Pairs of channels in queries and keys are turned by an angle that grows with the "
        "position, fast in some pairs and slowly in others. The product of two turned vectors "
        "depends only on the difference of their angles, so attention sees distance without any "
        "parameter. Nearly all open models use it, because it is exact, cheap and can be "
        "stretched afterwards.",
        "es": "Pares de canales de consultas y claves se giran un ángulo que crece con la "
        "posición, rápido en unos pares y despacio en otros. El producto de dos vectores girados "
        "depende solo de la diferencia de sus ángulos, de modo que la atención ve la distancia sin "
        "ningún parámetro. Casi todos los modelos abiertos la usan, porque es exacta, barata y se "
        "puede estirar después.",
    },
    diagram=(
        "x",
        "q_proj, k_proj, v_proj",
        "+rotate q and k by position * frequency, pair by pair",
        "cache: rotated keys",
        "softmax(q k) v",
    ),
)
