"""Every second layer for half of the tokens, against fewer layers for all, at equal compute."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor, nn

from worthit.lab.claims import no_worse
from worthit.lab.experiment import Arm, Budget, Expectation, Experiment, Matched, Training
from worthit.lab.experiments._depths import BUDGETS, stack, unseen
from worthit.lab.experiments._text import LOSS, RECIPE, text
from worthit.lab.metrics import PARAMETERS
from worthit.nn.depth.mixture_of_depths import MixtureOfDepths, router_loss
from worthit.spec.model import ModelSpec
from worthit.techniques.depth._sources import RAPOSO_2024
from worthit.train import Batch, next_token_loss

SHARE = 0.5
ROUTER_WEIGHT = 0.1


def routed(budget: Budget) -> ModelSpec:
    """Four layers, of which the second and the fourth take half of the tokens."""
    model = stack(budget, 4)
    layers = tuple(
        replace(layer, token_fraction=SHARE) if i % 2 else layer
        for i, layer in enumerate(model.layers)
    )
    return replace(model, layers=layers)


def with_routers(model: nn.Module, batch: Batch) -> Tensor:
    """Cross-entropy, and what teaches the routers to decide without looking ahead."""
    losses: list[Tensor] = []

    def note(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(module, MixtureOfDepths)
        x, tokens = inputs[0], inputs[1]
        r = module.router(x.detach())
        losses.append(router_loss(r, module.chosen(r.detach(), tokens)))

    hooks = [
        m.register_forward_pre_hook(note) for m in model.modules() if isinstance(m, MixtureOfDepths)
    ]
    try:
        loss = next_token_loss(model, batch)
    finally:
        for hook in hooks:
            hook.remove()
    return loss + ROUTER_WEIGHT * sum(losses)


EXPERIMENT = Experiment(
    id="mixture-of-depths",
    technique="mixture-of-depths",
    question="At the compute of three layers, is a fourth worth it that half of the tokens skip?",
    expectation=Expectation(
        statement="At equal FLOPs the routed model reaches the loss of the baseline or a lower "
        "one.",
        source=RAPOSO_2024,
        refuted_if="at equal FLOPs the loss is 0.05 nats worse, choices made without looking ahead",
        worth_it=True,
    ),
    how=Training(data=text, recipe=RECIPE),
    matched=Matched(
        what=("FLOPs", "tokens"),
        within=0.08,
        because="two whole layers and two halves are three; attention among half of the tokens "
        "is a"
        "little less",
    ),
    arms=(
        Arm(id="three", label="three layers", model=lambda budget: stack(budget, 3)),
        Arm(id="routed", label="four, two by half", model=routed, loss=with_routers),
    ),
    metrics=(LOSS, PARAMETERS),
    claims=(no_worse(LOSS, "routed"),),
    budgets=BUDGETS,
    predicted=unseen,
    means={
        "confirmed": "Tokens that pass a layer by cost nothing in loss: what they save can be "
        "spent"
        "on depth.",
        "refuted": "Tested as it decodes, by a threshold that cannot look ahead, the routed "
        "model is"
        "worse: its routers have had too few steps to learn whom to let through.",
    },
)
