"""Models with narrow products: what is replaced, gradients by formula, seeds side by side."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import cross_entropy
from train.layers import LAYERS, MIXTURE, PLAIN, spec_of

from worthit import load_model, save_model
from worthit.errors import SpecError, UnknownName
from worthit.nn.decoder import build
from worthit.spec.model import Layer
from worthit.train.optim import optimizer_for
from worthit.train.optim.roles import roles
from worthit.train.precision import (
    PRECISIONS,
    NarrowExperts,
    NarrowLinear,
    apply_precision,
    bitnet,
    fp8,
    mx,
    nvfp4,
)
from worthit.train.precision.floats import E2M1, E2M3, E3M2, E4M3, E5M2, Float

SPEC = spec_of(LAYERS["grouped"], d_model=32)
MIXED = spec_of(Layer(mixers=(PLAIN,), ffn=MIXTURE))
SOFT = replace(MIXTURE, routing="soft", shared=None, n_shared_experts=0, has_shared_gate=False)
# By chance no two runs are the same.
EXACT: dict[str, dict[str, Any]] = {
    name: {"is_stochastic": False} if name in ("mxfp4", "nvfp4") else {} for name in PRECISIONS
}
every = pytest.mark.parametrize("name", PRECISIONS)


def narrow(name: str, spec: Any = SPEC, *, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return apply_precision(build(spec), name, **EXACT[name])


# What is replaced


def test_matrices_of_the_layers_are_narrow_and_nothing_else() -> None:
    model = apply_precision(build(SPEC), "fp8")
    found = {name for name, m in model.named_modules() if isinstance(m, NarrowLinear)}
    parts = [f"mixers.0.{part}_proj" for part in "qkvo"] + ["ffn.up", "ffn.down"]
    assert found == {f"layers.{i}.{part}" for i in range(2) for part in parts}
    assert type(model.head) is nn.Linear
    assert all(m.is_simulated for m in model.modules() if isinstance(m, NarrowLinear))
    assert "fp8, simulated" in repr(model.layers[0].ffn.up)


def test_experts_are_narrow_and_routers_are_not() -> None:
    ffn = apply_precision(build(MIXED), "mxfp8").layers[0].ffn
    assert type(ffn.experts) is NarrowExperts
    assert type(ffn.router.linear) is type(ffn.shared.gate) is nn.Linear
    assert type(ffn.shared.ffn.up) is NarrowLinear


def test_latents_go_up_widely() -> None:
    mixer = apply_precision(build(spec_of(LAYERS["latent"])), "fp8").layers[0].mixers[0]
    assert type(mixer.kv_up) is nn.Linear
    assert type(mixer.kv_down) is type(mixer.q_up) is NarrowLinear


@pytest.mark.parametrize("layer", [k for k in LAYERS if k != "loops"])
def test_parameters_keep_name_value_identity_and_role(layer: str) -> None:
    model = build(spec_of(LAYERS[layer]))
    before, roles_before = dict(model.named_parameters()), roles(model)
    same = apply_precision(model, "bitnet")
    assert same is model
    assert roles(model) == roles_before
    for name, p in model.named_parameters():
        assert p is before[name]


# Products


def reference(
    x: Tensor, w: Tensor, dy: Tensor, *, forward: Any, gradient: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """Y, dX and dW with every operand rounded along the axis that its product sums over."""
    y = forward(x) @ forward(w).T
    dx = gradient(dy) @ forward(w.T).T
    dw = gradient(dy.T) @ forward(x.T).T
    return y, dx, dw


def blocks(format: Float) -> Callable[[Tensor], Tensor]:
    """Blocks of 32 along rows, one at a time, scales rounded up."""

    def each(row: Tensor) -> Tensor:
        parts = []
        for block in row.split(32):
            scale = 2.0**-127
            while float(block.abs().max()) > format.largest * scale:
                scale *= 2
            steps = mx.round_(block / scale, format)
            parts.append(steps * scale)
        return torch.cat(parts)

    return lambda x: torch.stack([each(row) for row in x])


def same(x: Tensor) -> Tensor:
    return x


PRODUCTS: dict[str, tuple[Any, Any]] = {
    "fp8": (lambda x: fp8.quantize(x, E4M3), lambda x: fp8.quantize(x, E5M2)),
    "mxfp8": (blocks(E4M3), blocks(E4M3)),
    "mxfp6": (blocks(E2M3), blocks(E3M2)),
    "mxfp4": (blocks(E2M1), blocks(E2M1)),
    "nvfp4": (nvfp4.quantize, nvfp4.quantize),
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_three_products_of_narrow_operands(name: str) -> None:
    torch.manual_seed(0)
    x, w, dy = torch.randn(45, 40), torch.randn(70, 40), torch.randn(45, 70)
    linear = nn.Linear(40, 70)
    with torch.no_grad():
        linear.weight.copy_(w)
    model = apply_precision(nn.Sequential(linear), name, **EXACT[name])
    forward, gradient = PRODUCTS[name]
    y, dx, dw = reference(x, w, dy, forward=forward, gradient=gradient)
    got = model(x.requires_grad_())
    got.backward(dy)
    near = {"rtol": 1e-5, "atol": 1e-4}
    torch.testing.assert_close(got, y + linear.bias, **near)
    torch.testing.assert_close(x.grad, dx, **near)
    torch.testing.assert_close(model[0].weight.grad, dw, **near)
    torch.testing.assert_close(model[0].bias.grad, dy.sum(dim=0), **near)


def test_gradients_go_straight_through() -> None:
    """Autograd through Q(x) = x + (Q(x) - x).detach(), where formats ignore axes."""
    x, up = torch.randn(6, 10, requires_grad=True), torch.randn(8, 10)
    model = apply_precision(nn.Sequential(nn.Linear(10, 8)), "bitnet", has_sub_norm=False)
    with torch.no_grad():
        model[0].weight.copy_(up)
    w, z = (t.detach().clone().requires_grad_() for t in (up, x))
    through = [
        t + (q(t) - t).detach()
        for t, q in ((z, bitnet.quantize_activations), (w, bitnet.quantize_weights))
    ]
    want = nn.functional.linear(*through, model[0].bias).tanh().square().sum()
    got = model(x).tanh().square().sum()
    torch.testing.assert_close(got, want)
    got.backward()
    want.backward()
    torch.testing.assert_close(x.grad, z.grad)
    torch.testing.assert_close(model[0].weight.grad, w.grad)


def test_gate_and_value_have_their_own_ternary_scale() -> None:
    model = build(SPEC)
    ffn = apply_precision(model, "bitnet").layers[0].ffn
    with torch.no_grad():
        ffn.up.weight[: SPEC.layers[0].ffn.d_ff] *= 100
    gate, value = ffn.up.narrow.weights(ffn.up.weight, 1).chunk(2)
    for part, own in zip((gate, value), ffn.up.weight.chunk(2), strict=True):
        torch.testing.assert_close(part, bitnet.quantize_weights(own))


@every
def test_experts_one_by_one_are_narrow_feed_forwards(name: str) -> None:
    torch.manual_seed(0)
    ffn = apply_precision(build(MIXED), name, **EXACT[name]).layers[0].ffn
    experts, x = ffn.experts, torch.randn(9, 16)
    for i in range(experts.n_experts):
        plain = nn.Module()
        plain.up, plain.down = (
            nn.Linear(*p.shape[:0:-1], bias=False) for p in (experts.up, experts.down)
        )
        with torch.no_grad():
            plain.up.weight.copy_(experts.up[i])
            plain.down.weight.copy_(experts.down[i])
        up = NarrowLinear(plain.up, experts.narrow)
        down = NarrowLinear(plain.down, experts.narrow_down)
        gate, value = up(x).chunk(2, dim=-1)
        want = down(nn.functional.silu(gate) * value)
        torch.testing.assert_close(experts.expert(i, x), want)
    y = ffn(torch.randn(2, 5, 16, requires_grad=True))
    y.sum().backward()
    assert all(p.grad is not None for p in experts.parameters())


# Models


def loss_of(model: Callable[[Tensor], Tensor], ids: Tensor) -> Tensor:
    logits = model(ids)
    return cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


@every
def test_it_learns(name: str) -> None:
    torch.manual_seed(0)
    model = apply_precision(build(SPEC), name)
    optimizer = optimizer_for(model, lr=1e-2)
    ids = torch.randint(40, (4, 12))
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = loss_of(model, ids)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


@every
def test_a_wider_format_is_nearer_to_none(name: str) -> None:
    """Relative error of the logits: a known order of magnitude for each format."""
    bound = {"fp8": 0.1, "mxfp8": 0.1, "mxfp6": 0.1, "mxfp4": 0.5, "nvfp4": 0.4, "bitnet": 2.0}
    torch.manual_seed(0)
    model, ids = build(SPEC), torch.randint(40, (2, 12))
    wide = model(ids)
    off = (apply_precision(copy.deepcopy(model), name)(ids) - wide).norm() / wide.norm()
    assert 1e-4 < off < bound[name]


@every
def test_seeds_side_by_side_are_separate_models(name: str) -> None:
    models = [narrow(name, seed=seed) for seed in range(3)]
    ids = torch.randint(40, (3, 4, 12))
    parameters, buffers = stack_module_state(models)

    def one(p: Any, b: Any, own: Tensor) -> Tensor:
        return loss_of(lambda i: functional_call(models[0], (p, b), (i,)), own)

    with sdpa_kernel(SDPBackend.MATH):
        losses = vmap(one, randomness="error")(parameters, buffers, ids)
        losses.sum().backward()
        for seed, model in enumerate(models):
            alone = loss_of(model, ids[seed])
            alone.backward()
            torch.testing.assert_close(losses[seed], alone, rtol=1e-4, atol=1e-5)
            for each, p in model.named_parameters():
                scale = p.grad.abs().max().item()
                off = (parameters[each].grad[seed] - p.grad).abs()
                # A sum in another order may move a few values across a boundary of rounding.
                assert off.mean() < 0.02 * scale + 1e-7, each


@pytest.mark.parametrize("name", ["mxfp8", "mxfp4", "bitnet"])
def test_a_prompt_in_pieces_is_the_prompt(name: str) -> None:
    """Blocks and tokens are rounded alone: what a cache continues is what one pass gives."""
    model = narrow(name).eval()
    ids, cache = torch.randint(40, (2, 12)), model.new_cache()
    with torch.no_grad():
        model(ids[:, :7], cache=cache)
        torch.testing.assert_close(model(ids[:, 7:], cache=cache), model(ids)[:, 7:])


@every
def test_autocast_multiplies_in_bf16(name: str) -> None:
    model = narrow(name)
    ids = torch.randint(40, (2, 12))
    wide = model(ids)
    with torch.autocast("cpu", torch.bfloat16):
        assert model.layers[0].ffn.up(torch.randn(3, 32)).dtype == torch.bfloat16
        loss = loss_of(model, ids)
        logits = model(ids)
    loss.backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in model.parameters())
    assert (logits - wide).norm() < 0.2 * wide.norm()


def test_a_frozen_weight_gets_no_gradient() -> None:
    model = narrow("mxfp8")
    model.layers[0].requires_grad_(False)
    loss_of(model, torch.randint(40, (2, 8))).backward()
    assert all(p.grad is None for p in model.layers[0].parameters())
    assert all(p.grad is not None for p in model.layers[1].parameters())


def test_gradients_are_rounded_by_chance_where_asked() -> None:
    model = apply_precision(nn.Sequential(nn.Linear(64, 64)), "mxfp4")
    x, dy = torch.randn(64, 64), torch.randn(64, 64)

    def weight_gradient() -> Tensor:
        model.zero_grad()
        model(x).backward(dy)
        return model[0].weight.grad.clone()

    torch.manual_seed(0)
    first, second = weight_gradient(), weight_gradient()
    assert not torch.equal(first, second)
    torch.manual_seed(0)
    assert torch.equal(weight_gradient(), first)
    mean = torch.stack([weight_gradient() for _ in range(200)]).mean(dim=0)
    want = dy.T @ mx.quantize(x, E2M1, axis=0, rule="up")
    # The error of a mean of n falls with its root: 200 draws leave a fourteenth.
    assert (mean - want).norm() < 1.5 * (first - want).norm() / 200**0.5


# Refusals


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: apply_precision(build(SPEC), "mxfp5"), UnknownName, "did you mean"),
        (lambda: apply_precision(build(SPEC), "fp8", forward="e4m4"), UnknownName, "e4m3"),
        (lambda: apply_precision(build(SPEC), "mxfp8", rule="down"), UnknownName, "rule"),
        (lambda: apply_precision(build(SPEC), "fp8", scaling="block"), UnknownName, "scaling"),
        (lambda: apply_precision(build(SPEC), "bitnet", rule="up"), SpecError, "bitnet: .*'rule'"),
        (lambda: apply_precision(narrow("fp8"), "bitnet"), SpecError, "in fp8 already"),
        (
            lambda: apply_precision(build(spec_of(Layer(mixers=(PLAIN,), ffn=SOFT))), "fp8"),
            SpecError,
            "soft gating multiplies all",
        ),
    ],
)
def test_refusals(make: Callable[[], object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()


def test_a_saved_model_is_the_wide_one(tmp_path: Path) -> None:
    """The format is how a model is multiplied, not what it is: it is applied again."""
    model = narrow("mxfp8").eval()
    save_model(model, tmp_path)
    back, ids = load_model(tmp_path), torch.randint(40, (1, 9))
    assert not any(isinstance(m, NarrowLinear) for m in back.modules())
    assert torch.equal(apply_precision(back, "mxfp8")(ids), model(ids))
