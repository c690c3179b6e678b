"""GPTQ and AWQ against slow loops from the papers, brute force, and what they promise."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from nn.quant.models import IDS, made
from torch import Tensor

from worthit.errors import SpecError
from worthit.nn.quant import awq, calibrate
from worthit.nn.quant.gptq import gptq, inverse_factor
from worthit.nn.quant.grid import Grid, grid_of
from worthit.nn.quant.linear import rounded, widened
from worthit.nn.quant.quantize import quantize

CORNER = torch.float32  # of scales, where rounding them would blur a comparison


def problem(out: int, columns: int, *, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Weights, and the Hessian of inputs that depend on one another and differ in size."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(out, columns, generator=generator)
    mix = torch.randn(columns, columns, generator=generator) / columns**0.5
    x = torch.randn(4 * columns, columns, generator=generator) @ (mix + torch.eye(columns))
    x = x * torch.logspace(-1, 1, columns)[torch.randperm(columns, generator=generator)]
    return weight, x.T @ x


def slow_gptq(weight: Tensor, hessian: Tensor, grid: Grid, *, act_order: bool) -> Tensor:
    """Equations 2 and 3 as they stand: every step removes a column from the inverse, in fp64.

    No blocks, no Cholesky factor. Returns the rounded weights.
    """
    w, h = weight.double().clone(), hessian.double().clone()
    columns = w.shape[1]
    h += 0.01 * h.diagonal().mean() * torch.eye(columns, dtype=torch.float64)
    inverse = torch.linalg.inv(h)
    order = list(range(columns))
    if act_order:
        order = hessian.diagonal().argsort(descending=True, stable=True).tolist()
    scales, zeros = grid.fit(weight, CORNER)
    group = grid.group or columns
    found = torch.zeros_like(w)
    for step, i in enumerate(order):
        at = i // group
        if not act_order and i % group == 0:
            fitted, zero = grid.fit(w[:, i : i + group].float(), CORNER)
            scales[:, at] = fitted[:, 0]
            if zeros is not None and zero is not None:
                zeros[:, at] = zero[:, 0]
        one = None if zeros is None else zeros[:, at]
        code = grid.encode(w[:, i].float(), scales[:, at], one)
        found[:, i] = grid.decode(code, scales[:, at], one).double()
        error = (w[:, i] - found[:, i]) / inverse[i, i]
        rest = order[step + 1 :]
        w[:, rest] -= error[:, None] * inverse[i, rest][None]
        inverse -= inverse[:, i, None] @ inverse[None, i] / inverse[i, i]
    return found.float()


@pytest.mark.parametrize("name", ["int8", "int4-g32", "int4-g64", "q4_1", "fp8"])
@pytest.mark.parametrize("act_order", [False, True])
def test_gptq_is_the_papers_loop(name: str, act_order: bool) -> None:
    grid = grid_of(name)
    weight, hessian = problem(7, 192)
    known = slow_gptq(weight, hessian, grid, act_order=act_order)
    found = widened(grid, *gptq(weight, hessian, grid, act_order=act_order, dtype=CORNER))
    # A number half way between two codes may go either way, and what follows with it.
    same = (found - known).abs() < 1e-4
    assert same.float().mean() > 0.99
    assert error_of(weight, found, hessian) == pytest.approx(
        error_of(weight, known, hessian), rel=0.01
    )


def error_of(weight: Tensor, found: Tensor, hessian: Tensor) -> float:
    return awq.output_error(found - weight, hessian)


def test_gptq_is_near_the_best_that_there_is() -> None:
    grid = grid_of("int8")
    reach = 6
    ours, plain = [], []
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        weight = torch.randn(1, 4, generator=generator)
        x = torch.randn(6, 4, generator=generator) + 3 * torch.randn(6, 1, generator=generator)
        hessian = x.T @ x + 0.3 * torch.eye(4)
        scales, _ = grid.fit(weight, CORNER)
        nearest = grid.encode(weight, scales, None).int()
        steps = torch.tensor(list(itertools.product(range(-reach, reach + 1), repeat=4)))
        changes = (nearest + steps) * scales - weight
        best = float(((changes @ hessian) * changes).sum(1).min())
        # No choice outside of those tried can be better: there one weight is off by more.
        least = float(torch.linalg.eigvalsh(hessian)[0])
        assert best < least * (float(scales[0, 0]) * (reach + 0.5)) ** 2
        found = widened(grid, *gptq(weight, hessian, grid, damping=0.0, dtype=CORNER))
        ours.append(error_of(weight, found, hessian) / best)
        plain.append(error_of(weight, nearest * scales, hessian) / best)
        assert ours[-1] >= 1 - 1e-4
    # Most often the optimum itself; and rounding by itself is far from it at times.
    assert sorted(ours)[len(ours) // 2] < 1.05
    assert sum(ours) < 0.5 * sum(plain)


def test_where_inputs_do_not_depend_on_one_another_gptq_is_rounding() -> None:
    grid = grid_of("int4-g32")
    weight, _ = problem(5, 64)
    hessian = torch.diag(torch.rand(64) + 0.1)
    for act_order in (False, True):
        found = gptq(weight, hessian, grid, act_order=act_order)
        for ours, known in zip(found, rounded(grid, weight), strict=True):
            assert ours is None or known is None or torch.equal(ours, known)


@pytest.mark.parametrize("name", ["int4-g32", "int4-g128"])
def test_gptq_beats_rounding_on_what_it_saw(name: str) -> None:
    grid = grid_of(name)
    weight, hessian = problem(32, 256)
    plain = error_of(weight, widened(grid, *rounded(grid, weight)), hessian)
    errors = {
        order: error_of(
            weight, widened(grid, *gptq(weight, hessian, grid, act_order=order)), hessian
        )
        for order in (False, True)
    }
    assert errors[False] < 0.8 * plain
    assert errors[True] < 0.8 * plain


def test_inputs_that_never_came_and_inputs_without_direction() -> None:
    grid = grid_of("int4-g32")
    weight, hessian = problem(4, 64)
    hessian[5], hessian[:, 5] = 0, 0
    assert widened(grid, *gptq(weight, hessian, grid)).isfinite().all()
    found = gptq(weight, torch.zeros(64, 64), grid)
    assert torch.equal(found[0], rounded(grid, weight)[0])
    # One direction alone: more damping, never NaN.
    one = torch.ones(64, 1) @ torch.ones(1, 64) * 1e6
    assert inverse_factor(one, 0.0).isfinite().all()
    assert widened(grid, *gptq(weight, one, grid)).isfinite().all()


# --- AWQ ------------------------------------------------------------------------------------------


def test_the_scale_is_the_best_of_all_that_are_tried() -> None:
    grid = grid_of("int4-g64")
    torch.manual_seed(0)
    x = torch.randn(500, 128) * torch.logspace(-1.5, 1.5, 128)[torch.randperm(128)]
    weights = [torch.randn(24, 128), torch.randn(8, 128)]
    magnitude, hessian = x.abs().mean(0), x.T @ x
    s, alpha = awq.search_scale(weights, magnitude, hessian, grid)

    def loss_on_inputs(s: Tensor) -> float:
        """Equation 4 on every input, and not on their sums."""
        total = 0.0
        for weight in weights:
            stored = widened(grid, *rounded(grid, weight * s))
            total += float((((x / s) @ stored.T - x @ weight.T) ** 2).sum())
        return total

    losses = {a: loss_on_inputs(awq.scale_of(magnitude, a)) for a in awq.ALPHAS}
    assert alpha == min(losses, key=lambda a: losses[a])
    assert torch.equal(s, awq.scale_of(magnitude, alpha))
    assert losses[alpha] < 0.8 * losses[0.0]  # alpha 0 is rounding to nearest
    assert awq.loss(weights, s, hessian, grid) == pytest.approx(losses[alpha], rel=1e-3)


def test_clipping_is_the_best_of_all_that_are_tried() -> None:
    grid = grid_of("int4-g32")
    torch.manual_seed(0)
    weight = torch.randn(3, 64)
    weight[0, 0], weight[2, 40] = 9.0, -9.0  # what stands out takes the codes of the others
    x = torch.randn(300, 64)
    found = awq.clipped(weight, x.T @ x, grid)
    for row, group in itertools.product(range(3), range(2)):
        part = weight[row : row + 1, 32 * group : 32 * group + 32]
        inputs = x[:, 32 * group : 32 * group + 32]
        tried = []
        for shrink in awq.SHRINKS:
            top = part.abs().max() * shrink
            cut = part.clamp(-top, top)
            moved = widened(grid, *rounded(grid, cut)) - part
            tried.append((float(((inputs @ moved.T) ** 2).sum()), cut))
        best = min(tried, key=lambda t: t[0])[1]
        assert torch.equal(found[row : row + 1, 32 * group : 32 * group + 32], best)
    assert not torch.equal(found, weight)


FOLDED = ["tied", "biases", "offset norm", "layer norm", "parallel", "gated attention"]


@pytest.mark.parametrize("kind", FOLDED)
def test_folded_scales_change_nothing(kind: str) -> None:
    model = made(kind, torch.float32)
    with torch.no_grad():
        known = model(IDS)
        n_folds = 0
        for block in model.layers:
            for fold in calibrate.folds_of(block):
                width = block.get_submodule(fold.readers[0]).in_features
                s = fold.shared(torch.rand(width) + 0.5)
                really = fold.divide(s)
                for name in fold.readers:
                    block.get_submodule(name).weight.data.mul_(really)
                n_folds += 1
                torch.testing.assert_close(model(IDS), known, rtol=1e-4, atol=1e-4)
    assert n_folds >= 2 * len(model.layers)


@pytest.mark.parametrize("kind", ["tied", "biases", "experts", "no attention"])
@pytest.mark.parametrize("method", ["awq", "gptq"])
def test_a_calibrated_model_is_nearer_on_its_text(kind: str, method: Any) -> None:
    ids = torch.randint(0, 96, (8, 32), generator=torch.Generator().manual_seed(1))

    def change(method: Any) -> float:
        model = made(kind, torch.float32)
        with torch.inference_mode():
            known = model(ids)
        done = quantize(model, "int4-g32", method=method, embeddings=None, calibration=ids)
        assert done.config["method"] == method
        with torch.inference_mode():
            return float((model(ids) - known).square().mean())

    assert change(method) < 0.95 * change("rtn")


def test_sums_of_inputs_are_those_of_the_inputs() -> None:
    linears = {"a": torch.nn.Linear(8, 4), "b": torch.nn.Linear(8, 2), "c": torch.nn.Linear(4, 2)}
    x = torch.randn(3, 5, 8)
    with calibrate.watched(linears) as seen, torch.no_grad():
        for part in x:
            linears["c"](linears["a"](part))
            linears["b"](part)
            linears["a"](part)
    rows = x.flatten(0, 1)
    # `a` saw everything twice.
    torch.testing.assert_close(seen["a"].hessian, 2 * rows.T @ rows)
    torch.testing.assert_close(seen["a"].magnitude, rows.abs().mean(0))
    torch.testing.assert_close(seen["b"].hessian, rows.T @ rows)
    assert seen["c"].n == 15
    linears["a"](x)  # nobody looks any more
    assert seen["a"].n == 30


def test_matrices_on_one_input_share_their_sums() -> None:
    linears = {"q": torch.nn.Linear(8, 4), "k": torch.nn.Linear(8, 2)}
    with calibrate.watched(linears) as seen, torch.no_grad():
        for _ in range(3):
            x = torch.randn(5, 8)
            linears["q"](x)
            linears["k"](x)
    assert seen["q"] is seen["k"]
    assert seen["q"].n == 15


def test_text_that_overflows_is_named() -> None:
    model = made("tied", torch.float32)
    model.layers[1].mixers[0].q_proj.weight.data[:] = 1.0
    model.layers[0].ffn.down.weight.data[:] = torch.inf
    with pytest.raises(SpecError, match=r"layers\.1\..*: its inputs are not finite"):
        quantize(model, "int4-g32", method="gptq", calibration=IDS)
