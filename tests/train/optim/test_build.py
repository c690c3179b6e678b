"""`optimizer_for`: the whole model in one object, its bytes as predicted, seeds side by side."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from technique_cases import training
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state
from train.layers import LAYERS, MIXTURE, PLAIN, spec_of

from worthit.cost.params import count_params
from worthit.errors import InputError, UnknownName
from worthit.nn.decoder import build
from worthit.spec.model import Layer, ModelSpec
from worthit.techniques.optimizer import muon, shampoo, soap
from worthit.techniques.optimizer._shapes import MASTER
from worthit.train.optim import OPTIMIZERS, Muon, Together, optimizer_for, state_bytes

RECORDS = {"muon": muon, "shampoo": shampoo, "soap": soap}
SPECS = {
    name: spec_of(LAYERS[name])
    for name in ("grouped", "gated attention", "latent", "gated-delta", "mamba", "experts")
}
# No bias of keys: softmax does not see it, its gradient is rounding, and AdamW makes that a step.
SPEC = SPECS["gated attention"]


def loss_of(logits: Tensor, ids: Tensor) -> Tensor:
    return nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


def train(model: nn.Module, optimizer: torch.optim.Optimizer | Together, steps: int) -> list[float]:
    g = torch.Generator().manual_seed(3)
    ids = torch.randint(40, (4, 12), generator=g)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = loss_of(model(ids), ids)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


# Bytes


@pytest.mark.parametrize("name", RECORDS)
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_state_bytes_are_predicted(spec: ModelSpec, name: str) -> None:
    model = build(spec)
    options = {"block": 10} if name == "shampoo" else {"max_side": 30} if name == "soap" else {}
    optimizer = optimizer_for(model, name, lr=1e-3, **options)
    for p in model.parameters():
        p.grad = torch.randn_like(p)
    optimizer.step()
    case = RECORDS[name].apply(replace(training(), model=spec), **options)
    predicted = case.runtime.optimizer_bytes_per_param - MASTER
    assert state_bytes(optimizer) == pytest.approx(predicted * count_params(spec).total, abs=0.5)


def test_state_bytes_of_adamw_are_two_moments() -> None:
    model = build(SPEC)
    optimizer = optimizer_for(model, lr=1e-3)
    train(model, optimizer, 1)
    assert state_bytes(optimizer) == 8 * count_params(SPEC).total


# Groups


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_every_parameter_is_stepped_once(spec: ModelSpec, name: str) -> None:
    model = build(spec)
    groups = optimizer_for(model, name, lr=1e-3).param_groups
    stepped = [id(p) for group in groups for p in group["params"]]
    assert sorted(stepped) == sorted(id(p) for p in model.parameters())


def test_rates_and_decay_by_role() -> None:
    model = build(spec_of(Layer(mixers=(PLAIN,), ffn=MIXTURE)))
    optimizer = optimizer_for(model, "muon", lr=1e-3, matrix_lr=0.02, weight_decay=0.1)
    by_role = {group["role"]: group for group in optimizer.param_groups}
    assert set(by_role) == {"matrix", "router", "table", "vector"}
    assert {role: g["lr"] for role, g in by_role.items()} == {
        "matrix": 0.02,
        "router": 1e-3,
        "table": 1e-3,
        "vector": 1e-3,
    }
    assert {role for role, g in by_role.items() if g["weight_decay"]} == {
        "matrix",
        "router",
        "table",
    }
    assert all(group["initial_lr"] == group["lr"] for group in optimizer.param_groups)
    assert {type(o) for o in optimizer.optimizers} == {Muon, torch.optim.AdamW}
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    before = {name: p.clone() for name, p in model.named_parameters()}
    train(model, optimizer, 1)
    for name, p in model.named_parameters():
        torch.testing.assert_close(p, before[name], rtol=0, atol=0)


def test_what_is_frozen_is_left_out() -> None:
    model = build(SPEC)
    model.embedding.requires_grad_(False)
    groups = optimizer_for(model, "muon", lr=1e-3).param_groups
    assert all(p is not model.embedding.weight for group in groups for p in group["params"])


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_it_learns(name: str) -> None:
    torch.manual_seed(0)
    model = build(SPEC)
    losses = train(model, optimizer_for(model, name, lr=1e-2), 25)
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_resumed_run_is_the_same_run(name: str) -> None:
    torch.manual_seed(0)
    model = build(SPEC)
    optimizer = optimizer_for(model, name, lr=1e-2)
    train(model, optimizer, 4)
    again = build(SPEC)
    again.load_state_dict(model.state_dict())
    other = optimizer_for(again, name, lr=1e-2)
    other.load_state_dict(deepcopy(optimizer.state_dict()))
    assert train(again, other, 12) == train(model, optimizer, 12)


# Seeds


def separately(name: str, steps: int) -> list[dict[str, Tensor]]:
    ends = []
    for seed in range(3):
        torch.manual_seed(seed)
        model = build(SPEC)
        train(model, optimizer_for(model, name, lr=1e-2, weight_decay=0.1), steps)
        ends.append({name: p.detach() for name, p in model.named_parameters()})
    return ends


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_seeds_side_by_side_are_separate_runs(name: str) -> None:
    models = []
    for seed in range(3):
        torch.manual_seed(seed)
        models.append(build(SPEC))
    parameters, _ = stack_module_state(models)
    template = build(SPEC)
    optimizer = optimizer_for(template, name, lr=1e-2, weight_decay=0.1, parameters=parameters)

    g = torch.Generator().manual_seed(3)
    ids = torch.randint(40, (4, 12), generator=g)
    for _ in range(6):
        optimizer.zero_grad()
        for seed in range(3):
            own = {each: p[seed] for each, p in parameters.items()}
            loss_of(functional_call(template, own, (ids,)), ids).backward()
        optimizer.step()
    for seed, want in enumerate(separately(name, 6)):
        for each, p in want.items():
            torch.testing.assert_close(parameters[each][seed], p, rtol=1e-3, atol=1e-4)


# Refusals


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda m: optimizer_for(m, "moun", lr=1.0), UnknownName, "did you mean muon"),
        (lambda m: optimizer_for(m, lr=1.0, momentum=0.9), InputError, "no options momentum"),
        (lambda m: optimizer_for(m, "muon", lr=1.0, block=3), InputError, "muon: .*'block'"),
        (
            lambda m: optimizer_for(m, lr=1.0, parameters={"a": torch.zeros(1)}),
            InputError,
            "must have the model's names; got or lacks a, embedding.weight",
        ),
        (
            lambda m: optimizer_for(nn.LayerNorm(3), "soap", lr=1.0),
            InputError,
            "steps matrices and the model has none",
        ),
    ],
)
def test_refusals(make: Callable[[nn.Module], object], error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        make(build(SPEC))


def test_the_state_of_another_optimizer_is_refused() -> None:
    model = build(SPEC)
    with pytest.raises(InputError, match="is of 1 optimizers and this one joins 2"):
        optimizer_for(model, "muon", lr=1.0).load_state_dict({"0": {}})
