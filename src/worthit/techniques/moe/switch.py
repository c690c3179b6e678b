"""Switch: a mixture in which each token goes to a single expert of limited capacity.

Changes: every dense feed-forward into `n_experts` experts of `d_ff / sqrt(n_experts)`, one a token,
with a capacity factor of 1.25. Matched: effective capacity by the geometric mean of total and
active width, an assumption (see `_experts.py`; the paper instead keeps each expert as wide as the
dense layer and so matches compute).
Relieves: matrix compute, and the weights that decoding reads while few tokens run together.
Does nothing when: every expert is touched each step anyway, or memory for weights is what binds.
Costs: weight memory, dropped tokens, balance among experts, and training from scratch.
"""

from __future__ import annotations

from worthit.spec.case import Case
from worthit.spec.model import MoE
from worthit.techniques._record import Evidence, Technique
from worthit.techniques.moe._experts import (
    CLARK_2022,
    FEDUS_2021,
    check_counts,
    dense_of_equal_capacity,
    equal_capacity_expert,
    map_mixtures,
    mixtures,
    to_experts,
)


def apply(case: Case, *, n_experts: int = 8, capacity_factor: float = 1.25) -> Case:
    """Return `case` with `n_experts` experts, one a token, and room for `capacity_factor` a share.

    An expert computes its whole capacity, padding included, and drops what exceeds it.
    """
    check_counts("switch", n_experts, 1)
    return to_experts(
        case,
        "switch",
        lambda ffn: MoE(
            n_experts=n_experts,
            n_experts_per_token=1,
            expert=equal_capacity_expert(ffn, n_experts, 1),
            has_normalised_weights=False,
            capacity_factor=capacity_factor,
        ),
    )


def is_present(case: Case) -> bool:
    """Whether tokens choose a single routed expert somewhere."""
    return any(m.routing == "token-choice" and m.n_experts_per_token == 1 for m in mixtures(case))


def remove(case: Case) -> Case:
    """Return `case` with dense feed-forwards of equal effective capacity (geometric mean)."""
    return map_mixtures(
        case,
        lambda m: (
            dense_of_equal_capacity(m)
            if m.routing == "token-choice" and m.n_experts_per_token == 1
            else m
        ),
    )


TECHNIQUE = Technique(
    id="switch",
    name="Switch routing (one expert a token)",
    relieves=("matmul-compute", "decode-weights"),
    bottleneck="Routing to several experts doubles compute and communication for each token.",
    apply=apply,
    module="worthit.nn.moe.switch:Switch",
    parity=(
        "transformers 5.23 `SwitchTransformersSparseMLP`: outputs and gradients "
        "(tests/nn/moe/test_switch.py)",
        "a queue of tokens for each expert, written as a loop (tests/nn/moe/test_switch.py)",
        "transformers 5.23 `load_balancing_loss_func` and `router_z_loss_func` "
        "(tests/nn/moe/test_balance.py)",
    ),
    experiment="worthit.lab.experiments.switch:EXPERIMENT",
    is_present=is_present,
    remove=remove,
    adoption="retrain",
    cost_of_adoption=(
        "A pretraining run with a balancing loss, a capacity to tune and some care with precision "
        "and initialisation."
    ),
    nothing_when=(
        "Weights must fit on one device, or decoding runs enough sequences together to touch "
        "every expert and too few to be bound by compute."
    ),
    pitfalls=(
        "Tokens over an expert's capacity pass through unchanged, and which ones they are depends "
        "on the rest of the batch: the same request can get different answers.",
        "Capacity counted a row drops the later tokens of a text first, so dropping is not even "
        "causal.",
        "The probability of the single expert must multiply its output, or the router gets no "
        "gradient.",
        "Routing in bf16 was unstable; only the router needs fp32.",
    ),
    sources=(FEDUS_2021, CLARK_2022),
    evidence=(
        Evidence(
            claim="With 64 experts and the compute of T5-Base a token, the same quality is reached "
            "in about a seventh of the training steps.",
            source=FEDUS_2021,
        ),
    ),
    orientation={
        "en": "The simplest mixture: each token goes to the one expert its router prefers. Compute "
        "and communication are the least that any routing allows. Every expert has a fixed number "
        "of places, a little more than an even share; when more tokens come, the surplus skips the "
        "layer. That kept shapes static for the hardware of its time, and it is what later designs "
        "gave up first: two or more experts without dropping are steadier at little extra cost.",
        "es": "La mezcla más simple: cada token va al único experto que su enrutador prefiere. El "
        "cálculo y la comunicación son los mínimos que permite un enrutamiento. Cada experto tiene "
        "un número fijo de plazas, algo más que un reparto equitativo; si llegan más tokens, los "
        "sobrantes se saltan la capa. Así las formas eran estáticas para el hardware de entonces, "
        "y es lo primero que los diseños posteriores abandonaron: dos o más expertos sin descartes "
        "son más estables por poco coste adicional.",
    },
    diagram=(
        "x",
        "+router: scores of n_experts, keep the best one",
        "+dispatch, at most capacity tokens an expert, the rest pass by",
        "~feed-forward: one of d_ff => 1 of n_experts, d_ff / sqrt(n_experts)",
        "+times its probability",
        "y",
    ),
)
