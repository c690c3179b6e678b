"""Expert choice: experts pick their tokens, so that each has exactly its share.

Changes: the routing of existing mixtures, or every dense feed-forward into such a mixture with
experts of `d_ff / sqrt(n_experts * k)`. Matched: experts and average experts a token; for a dense
model effective capacity by the geometric mean, an assumption (see `_experts.py`).
Relieves: imbalance among experts, and with it the idle devices and the balancing loss.
Does nothing when: text is generated: choosing the best tokens of a text looks at those to come.
Costs: training anew; tokens that no expert picks; no causal use.
"""

from __future__ import annotations

from dataclasses import replace

from worthit.errors import NotApplicable
from worthit.spec.case import Case, Serving
from worthit.spec.model import MoE
from worthit.techniques._mixers import require_absent
from worthit.techniques._record import Evidence, Source, Technique
from worthit.techniques.moe._experts import (
    check_counts,
    equal_capacity_expert,
    map_mixtures,
    mixtures,
    to_experts,
)

ZHOU_2022 = Source(
    cite="Zhou et al. 2022",
    title="Mixture-of-Experts with Expert Choice Routing",
    id="arXiv:2202.09368",
    where="section 3",
)


def apply(case: Case, *, n_experts: int = 8, per_token: int = 2) -> Case:
    """Return `case` with experts that each take the same number of tokens, `per_token` on average.

    A mixture that is there already keeps its experts and their average number; `n_experts` and
    `per_token` describe the one made from dense feed-forwards.
    """
    check_counts("expert-choice", n_experts, per_token)
    require_absent(is_present(case), "expert-choice", "experts choose their tokens")
    if isinstance(case.workload, Serving) and case.workload.output > 1:
        raise NotApplicable(
            "expert-choice lets experts pick the best tokens of a whole text, and while "
            f"{case.workload.output} tokens are generated one by one the rest of it does not exist "
            "yet; it fits training and reading (output of 1 token), and generation takes topk-moe"
        )
    if mixtures(case):
        return map_mixtures(case, _choose)
    return to_experts(
        case,
        "expert-choice",
        lambda ffn: _choose(
            MoE(
                n_experts=n_experts,
                n_experts_per_token=per_token,
                expert=equal_capacity_expert(ffn, n_experts, per_token),
            )
        ),
    )


def is_present(case: Case) -> bool:
    """Whether experts choose their tokens somewhere."""
    return any(m.routing == "expert-choice" for m in mixtures(case))


def remove(case: Case) -> Case:
    """Return `case` with tokens that choose their experts under a balancing loss."""
    return map_mixtures(
        case,
        lambda m: (
            replace(m, routing="token-choice", balance="aux-loss")
            if m.routing == "expert-choice"
            else m
        ),
    )


def _choose(moe: MoE) -> MoE:
    return replace(
        moe,
        routing="expert-choice",
        balance="none",
        capacity_factor=None,
        n_groups=1,
        n_groups_per_token=1,
    )


TECHNIQUE = Technique(
    id="expert-choice",
    name="Expert-choice routing",
    relieves=("expert-imbalance",),
    bottleneck="When tokens choose, some experts overflow and others idle, and a loss must push "
    "back.",
    apply=apply,
    module="worthit.nn.moe.expert_choice:ExpertChoice",
    parity=(
        "a loop over experts that sorts the tokens of a row: outputs and gradients "
        "(tests/nn/moe/test_expert_choice.py)",
    ),
    experiment="worthit.lab.experiments.expert_choice:EXPERIMENT",
    is_present=is_present,
    remove=remove,
    adoption="retrain",
    cost_of_adoption="A pretraining run; the router's meaning changes, so trained ones do not fit.",
    nothing_when=(
        "Text is generated token by token: the choice is over tokens that do not exist yet. Nor "
        "does it help where experts are balanced already or live on one device."
    ),
    pitfalls=(
        "A later token can displace an earlier one from an expert, so training leaks the future a "
        "little and generation differs from it.",
        "Some tokens are picked by no expert and pass through unchanged.",
        "The choice depends on what else is in the batch.",
    ),
    sources=(ZHOU_2022,),
    evidence=(
        Evidence(
            claim="At the same compute as switch and two-expert routing, training converges more "
            "than twice as fast in steps.",
            source=replace(ZHOU_2022, where="abstract"),
        ),
    ),
    orientation={
        "en": "Turn the routing around: each expert takes the tokens that score highest for it, a "
        "fixed number of them. Load is even by construction, no balancing loss is needed, and hard "
        "tokens may get several experts while easy ones get none. The catch is that picking the "
        "best of a text requires the whole text. It suits encoders and, with that reservation, "
        "training; a model that writes token by token cannot route this way.",
        "es": "Se invierte el enrutamiento: cada experto toma los tokens que más puntúan para él, "
        "un número fijo de ellos. La carga queda repartida por construcción, no hace falta una "
        "pérdida de equilibrio, y los tokens difíciles pueden recibir varios expertos mientras los "
        "fáciles no reciben ninguno. La pega es que elegir los mejores de un texto exige el texto "
        "entero. Conviene a los codificadores y, con esa reserva, al entrenamiento; un modelo que "
        "escribe token a token no puede enrutar así.",
    },
    diagram=(
        "x, all tokens of a text",
        "router: scores of tokens x n_experts",
        "~choice: each token its k experts => each expert its share of tokens",
        "-balancing loss",
        "experts, all equally full",
        "weighted sum",
    ),
)
