"""Balancing without a loss: a bias on each expert's score follows its load.

Changes: `balance`, from a loss to a bias that only affects which experts are chosen. Matched:
everything else; the bias is one number an expert, kept by the optimizer loop and not trained.
Relieves: imbalance among experts without gradients that fight the language model.
Does nothing when: experts are balanced by construction (soft gating, expert choice), or when a
trained model is only served: its router is what it is.
Costs: a counter of loads that all devices share each step, and one rate to choose.
"""

from __future__ import annotations

from dataclasses import replace

from worthit.errors import NotApplicable
from worthit.spec.case import Case
from worthit.spec.model import MoE
from worthit.techniques._mixers import require_absent
from worthit.techniques._record import Evidence, Source, Technique
from worthit.techniques.moe._experts import (
    DEEPSEEK_V3,
    map_mixtures,
    mixtures,
    require_mixtures,
)

WANG_2024 = Source(
    cite="Wang et al. 2024",
    title="Auxiliary-Loss-Free Load Balancing Strategy for Mixture-of-Experts",
    id="arXiv:2408.15664",
    where="algorithm 1, section 4",
)


def apply(case: Case) -> Case:
    """Return `case` with expert scores biased by load instead of a balancing loss."""
    found = require_mixtures(case, "aux-free-balancing")
    require_absent(is_present(case), "aux-free-balancing", "a bias follows each expert's load")
    if all(m.routing != "token-choice" for m in found):
        raise NotApplicable(
            "aux-free-balancing evens out what tokens choose, and here "
            f"{', '.join(sorted({m.routing for m in found}))} routing balances the experts by "
            "construction"
        )
    return map_mixtures(case, _biased)


def is_present(case: Case) -> bool:
    """Whether some mixture is balanced by a bias."""
    return any(m.balance == "bias" for m in mixtures(case))


def remove(case: Case) -> Case:
    """Return `case` with a balancing loss instead of the bias."""
    return map_mixtures(
        case, lambda m: replace(m, balance="aux-loss") if m.balance == "bias" else m
    )


def _biased(moe: MoE) -> MoE:
    return replace(moe, balance="bias") if moe.routing == "token-choice" else moe


TECHNIQUE = Technique(
    id="aux-free-balancing",
    name="Load balancing without an auxiliary loss",
    relieves=("expert-imbalance",),
    bottleneck="Experts must be kept evenly loaded, and the loss that does it disturbs learning.",
    apply=apply,
    module="worthit.nn.moe.aux_free_balancing:BiasBalancer",
    parity=(
        "the paper's rule by hand, and that it evens out a skewed load "
        "(tests/nn/moe/test_balance.py)",
        "transformers 5.23 `DeepseekV3MoE`: what a bias in the selection alone gives "
        "(tests/nn/moe/test_topk_moe.py)",
    ),
    experiment="worthit.lab.experiments.aux_free_balancing:EXPERIMENT",
    is_present=is_present,
    remove=remove,
    adoption="finetune",
    cost_of_adoption=(
        "A few lines in the training loop, from the next step of a run onwards; a finished model "
        "gains only if training goes on."
    ),
    nothing_when=(
        "The model is only served, its experts sit on one device, or its routing balances by "
        "construction."
    ),
    pitfalls=(
        "The bias belongs in the choice and never in the weights of the outputs.",
        "Loads must be summed over all devices before the sign is taken.",
        "Balance holds on average over steps: a single batch, or a single text, can still be "
        "skewed.",
        "Checkpoints that leave the bias out resume with another router.",
    ),
    sources=(WANG_2024, DEEPSEEK_V3),
    evidence=(
        Evidence(
            claim="At 1B parameters, validation perplexity 9.50 against 9.56 with a balancing "
            "loss, and the largest excess load falls from 0.72 to 0.04; at 3B, 7.92 against 7.97.",
            source=WANG_2024,
        ),
        Evidence(
            claim="DeepSeek-V3's ablations at two sizes find better results on most benchmarks "
            "than with a pure auxiliary loss.",
            source=replace(DEEPSEEK_V3, where="section 4.5.2, table 5"),
        ),
    ),
    orientation={
        "en": "A mixture trains badly when some experts are flooded and others starve. The usual "
        "remedy is a loss that punishes imbalance, and it also bends the gradients that should "
        "teach language. Here every expert carries a bias that is added to its score when experts "
        "are chosen and nowhere else: after each step it goes up a little if the expert was "
        "underused and down if it was overused. Load evens out and the gradients stay clean.",
        "es": "Una mezcla se entrena mal si unos expertos se desbordan y otros pasan hambre. El "
        "remedio habitual es una pérdida que castiga el desequilibrio, y que también tuerce los "
        "gradientes que deberían enseñar lenguaje. Aquí cada experto lleva un sesgo que se suma a "
        "su puntuación al elegir expertos y en ningún otro sitio: tras cada paso sube un poco si "
        "el experto se usó de menos y baja si se usó de más. La carga se iguala y los gradientes "
        "quedan limpios.",
    },
    diagram=(
        "x",
        "router scores",
        "+add each expert's bias, for the choice only",
        "choose k experts, weigh by the unbiased scores",
        "-balancing loss",
        "+after the step: bias up if underused, down if overused",
    ),
)
