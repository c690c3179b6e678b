"""Top-k mixture of experts: a router sends each token to a few of many feed-forwards.

Changes: every dense feed-forward into `n_experts` experts of `d_ff / sqrt(n_experts * k)`, k a
token. Matched: effective capacity by the geometric mean of total and active width, an assumption
(see `_experts.py`); with 8 experts and 2 a token the feed-forwards hold twice the parameters and
compute with half of them.
Relieves: matrix compute, and the weights that decoding reads while few tokens run together.
Does nothing when: every expert is touched each step anyway, or memory for weights is what binds.
Costs: weight memory, balance among experts, dispatch, and training from scratch.
"""

from __future__ import annotations

from worthit.spec.case import Case
from worthit.spec.model import MoE
from worthit.techniques._record import Evidence, Source, Technique
from worthit.techniques.moe._experts import (
    CLARK_2022,
    SHAZEER_2017,
    check_counts,
    dense_of_equal_capacity,
    equal_capacity_expert,
    map_mixtures,
    mixtures,
    to_experts,
)

JIANG_2024 = Source(
    cite="Jiang et al. 2024",
    title="Mixtral of Experts",
    id="arXiv:2401.04088",
    where="section 2, table 2",
)
KOMATSUZAKI_2022 = Source(
    cite="Komatsuzaki et al. 2022",
    title="Sparse Upcycling: Training Mixture-of-Experts from Dense Checkpoints",
    id="arXiv:2212.05055",
    where="section 3",
)


def apply(case: Case, *, n_experts: int = 8, per_token: int = 2) -> Case:
    """Return `case` with `n_experts` experts, `per_token` of them a token, dropless."""
    check_counts("topk-moe", n_experts, per_token)
    return to_experts(
        case,
        "topk-moe",
        lambda ffn: MoE(
            n_experts=n_experts,
            n_experts_per_token=per_token,
            expert=equal_capacity_expert(ffn, n_experts, per_token),
        ),
    )


def is_present(case: Case) -> bool:
    """Whether tokens choose two or more experts somewhere."""
    return any(m.routing == "token-choice" and m.n_experts_per_token > 1 for m in mixtures(case))


def remove(case: Case) -> Case:
    """Return `case` with dense feed-forwards of equal effective capacity (geometric mean)."""
    return map_mixtures(
        case,
        lambda m: (
            dense_of_equal_capacity(m)
            if m.routing == "token-choice" and m.n_experts_per_token > 1
            else m
        ),
    )


TECHNIQUE = Technique(
    id="topk-moe",
    name="Top-k mixture of experts",
    relieves=("matmul-compute", "decode-weights"),
    bottleneck="In a dense model every parameter costs compute for every token, so knowledge "
    "cannot grow faster than the bill.",
    apply=apply,
    module="worthit.nn.moe.topk_moe:TopKMoE",
    experiment="worthit.lab.experiments.topk_moe:EXPERIMENT",
    parity=(
        "transformers 5.23 blocks of Mixtral, Qwen2-MoE, OLMoE, Granite-MoE, DeepSeek-V3, "
        "gpt-oss and Llama 4: outputs and gradients (tests/nn/moe/test_topk_moe.py)",
        "a loop over tokens and experts: outputs and gradients (tests/nn/moe/test_topk_moe.py)",
    ),
    is_present=is_present,
    remove=remove,
    adoption="retrain",
    cost_of_adoption=(
        "A pretraining run with balanced routing; a dense checkpoint can be upcycled by copying "
        "its feed-forward, which still takes a large part of that run."
    ),
    nothing_when=(
        "One device must hold all the weights, or enough tokens run together in decode that "
        "every expert is read each step (from about n_experts / per_token tokens on) while the "
        "batch is still too small to be bound by compute."
    ),
    pitfalls=(
        "Decode reads E (1 - (1 - k/E)^B) experts, not k: the saving in bytes is gone at a "
        "batch of a few dozen.",
        "Without balancing a few experts take all tokens and the rest never learn.",
        "With expert parallelism the step takes as long as the busiest device.",
        "Softmax before or after choosing the k gives different weights unless they are "
        "normalised; keep the router in fp32.",
    ),
    sources=(SHAZEER_2017, JIANG_2024, CLARK_2022, KOMATSUZAKI_2022),
    evidence=(
        Evidence(
            claim="Mixtral, 12.9B of 46.7B parameters active, matches or exceeds Llama 2 70B on "
            "most of the benchmarks reported.",
            source=JIANG_2024,
        ),
    ),
    orientation={
        "en": "A router scores the experts for each token and only the best few run. Parameters "
        "then grow with the number of experts while compute follows the few. That pays where "
        "compute binds: training, long prompts, large batches over many devices. It costs memory "
        "for every expert, and in small-scale decoding the batch soon touches all of them, so the "
        "bytes read are those of the large model. At equal quality a mixture is larger in memory "
        "and smaller in work than the dense model it replaces.",
        "es": "Un enrutador puntúa a los expertos para cada token y solo se ejecutan los mejores. "
        "Los parámetros crecen así con el número de expertos, mientras que el cálculo sigue a "
        "esos pocos. Compensa donde manda el cálculo: al entrenar, con textos de entrada largos y "
        "con lotes grandes sobre muchos dispositivos. Cuesta memoria para todos los expertos y, al "
        "decodificar a pequeña escala, el lote pronto los toca todos, de modo que se leen los "
        "bytes del modelo grande. A igual calidad, una mezcla ocupa más memoria y hace menos "
        "trabajo que el modelo denso al que sustituye.",
    },
    diagram=(
        "x",
        "+router: scores of n_experts, keep k",
        "+dispatch tokens to their experts",
        "~feed-forward: one of d_ff => k of n_experts, d_ff / sqrt(n_experts k) each",
        "+weighted sum of the k outputs",
        "y",
    ),
)
