"""Stored matrices against dense ones of the same numbers, and fast forms against slow."""

from __future__ import annotations

import pytest
import torch
from nn.tolerances import assert_near
from torch import nn
from torch.nn import functional

from worthit.nn.moe.experts import Experts
from worthit.nn.quant import kernels
from worthit.nn.quant.grid import GRIDS, grid_of
from worthit.nn.quant.kernels import Int4Linear, Int8Head, Int8Linear, fast, fast_stack, fast_table
from worthit.nn.quant.linear import StoredEmbedding, StoredLinear, StoredStack, dense
from worthit.spec.model import FeedForward


def made(name: str, *, bias: bool = True, dtype: torch.dtype = torch.bfloat16) -> StoredLinear:
    torch.manual_seed(0)
    return StoredLinear.of(nn.Linear(256, 80, bias=bias).to(dtype), grid_of(name))


@pytest.mark.parametrize("name", GRIDS)
def test_the_slow_form_is_a_product_with_what_codes_stand_for(name: str) -> None:
    stored = made(name, dtype=torch.float32)
    x = torch.randn(3, 7, 256)
    numbers = []
    for row in range(stored.out_features):
        codes = stored.grid.unpack(stored.codes)[row].float().tolist()
        group = stored.grid.group or 256
        centre = 8 if stored.grid.bits == 4 else 0
        zeros = [0.0] * (256 // group) if stored.zeros is None else stored.zeros[row].tolist()
        scales = stored.scales[row].tolist()
        numbers.append(
            [(c - centre) * scales[i // group] + zeros[i // group] for i, c in enumerate(codes)]
        )
    assert stored.bias is not None
    assert_near(stored(x), functional.linear(x, torch.tensor(numbers), stored.bias))


FAST = [name for name, grid in GRIDS.items() if grid.kind != "float"]


@pytest.mark.parametrize("name", FAST)
@pytest.mark.parametrize("n", [1, 3, 31, 200])
def test_the_fast_form_is_the_slow_one(name: str, n: int) -> None:
    stored = made(name)
    quick = fast(stored)
    assert isinstance(quick, (Int4Linear, Int8Linear))
    x = torch.randn(2, n, 256).bfloat16()
    known, found = stored(x).float(), quick(x).float()
    if name == "int8-g32":
        # One scale a row: each weight may be off by half a step more, in no direction.
        step = stored.wide().abs().amax(-1) / 127
        bound = 3 * step * x.float().norm(dim=-1, keepdim=True) / 12**0.5 + 0.02
        assert ((found - known).abs() <= bound).all()
        assert (found - known).abs().mean() < 0.01 * known.abs().mean()
    else:
        # Rounded to bf16 once or twice; widened matrices are rounded too.
        assert (found - known).abs().max() <= 2.0**-6 * known.abs().max()
        assert (found - known).abs().mean() <= 2.0**-8 * known.abs().mean()


@pytest.mark.parametrize("name", ["int8", "int4-g32", "int4-g128", "ternary"])
def test_a_row_is_the_same_bits_alone_and_among_others(name: str) -> None:
    quick = fast(made(name))
    assert quick is not None
    x = torch.randn(31, 256).bfloat16()
    alone = torch.cat([quick(row[None]) for row in x])
    assert torch.equal(quick(x), alone)
    assert torch.equal(quick(x[:5]), alone[:5])


def test_what_no_kernel_takes_is_left_to_the_slow_form(monkeypatch: pytest.MonkeyPatch) -> None:
    assert fast(made("int8", dtype=torch.float32)) is None
    assert fast(made("fp8")) is None
    narrow = StoredLinear.of(nn.Linear(24, 8).bfloat16(), grid_of("int8"))
    assert fast(narrow) is None  # reads past the end of such rows
    few = StoredLinear.of(nn.Linear(64, 8).bfloat16(), grid_of("int4-g32"))
    assert fast(few) is None
    monkeypatch.setattr(kernels, "can_multiply_int4", lambda group: False)
    monkeypatch.setattr(kernels, "can_multiply_int8", lambda: False)
    assert fast(made("int4-g32")) is None
    assert fast(made("int8")) is None


def test_wrong_kernels_are_not_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    assert kernels.can_multiply_int8.__wrapped__()
    assert kernels.can_multiply_int4.__wrapped__(64)
    right = torch._weight_int8pack_mm
    monkeypatch.setattr(torch, "_weight_int8pack_mm", lambda *a: right(*a) * 1.05)
    assert not kernels.can_multiply_int8.__wrapped__()
    monkeypatch.setattr(Int4Linear, "forward", lambda self, x: x[:, :32])
    assert not kernels.can_multiply_int4.__wrapped__(64)


def test_inputs_at_any_address_are_safe() -> None:
    quick = fast(made("int8"))
    assert quick is not None
    bytes_ = torch.zeros(9 * 512 + 64, dtype=torch.uint8)
    x = torch.randn(9, 256).bfloat16()
    for offset in (2, 8, 16, 32):
        moved = bytes_[offset : offset + 9 * 512].view(torch.bfloat16).view(9, 256)
        moved.copy_(x)
        assert torch.equal(quick(moved), quick(x))


def test_without_knowing_the_packing_many_rows_take_the_kernel() -> None:
    quick = fast(made("int4-g32"))
    assert isinstance(quick, Int4Linear)
    x = torch.randn(200, 256).bfloat16()
    widened = quick(x)
    quick.block = None
    assert_near(quick(x), widened)


def test_widened_matrices_are_what_the_codes_stand_for() -> None:
    stored = made("int4-g64")
    quick = fast(stored)
    assert isinstance(quick, Int4Linear)
    assert quick.block is not None
    found = quick.wide(quick.block).T.float()
    # Both are rounded to bf16, one after the scale and once more after the zero.
    assert (found - stored.wide()).abs().max() <= 2.0**-7 * stored.wide().abs().max()


def test_rows_below_one_another_are_products_side_by_side() -> None:
    for name in ("int8", "int4-g64", "ternary", "fp8"):
        parts = [made(name), made(name)]
        both = StoredLinear.side_by_side(parts)
        x = torch.randn(4, 256).bfloat16()
        assert torch.equal(both(x), torch.cat([part(x) for part in parts], dim=-1))


def test_a_table_is_read_by_rows_and_multiplied_as_a_matrix() -> None:
    torch.manual_seed(0)
    embedding = nn.Embedding(96, 64).bfloat16()
    table = StoredEmbedding.of(embedding, grid_of("int8"))
    ids = torch.tensor([[0, 5, 95]])
    assert torch.equal(table(ids), table.weight[ids])
    assert (table.weight - embedding.weight).abs().max() <= table.scales.max()
    x = torch.randn(2, 64).bfloat16()
    quick = fast_table(table)
    assert quick is not None
    assert quick.codes.data_ptr() == table.codes.data_ptr()
    assert_near(quick(x).bfloat16(), table.as_head(x))
    assert fast_table(StoredEmbedding.of(embedding, grid_of("int4-g32"))) is None


def test_experts_of_stored_stacks() -> None:
    torch.manual_seed(0)
    experts = Experts(FeedForward(d_ff=64), 3, 32).bfloat16()
    x = torch.randn(6, 32).bfloat16()
    tokens, chosen = torch.arange(6).repeat(2), torch.tensor([0, 1, 2] * 4)
    weights = torch.rand(12)
    grid = grid_of("int8")
    for part in ("up", "down"):
        stack = StoredStack.of_stack(getattr(experts, part), grid)
        wide = torch.stack([stack[i] for i in range(3)])
        setattr(experts, part, nn.Parameter(wide))
        with torch.no_grad():
            known = experts(x, tokens, chosen, weights)
            alone = experts(x[:1], tokens[:1], chosen[:2], weights[:2])
        delattr(experts, part)
        for form in (stack, fast_stack(stack)):
            setattr(experts, part, form)
            with torch.no_grad():
                assert_near(experts(x, tokens, chosen, weights), known)
                assert_near(experts(x[:1], tokens[:1], chosen[:2], weights[:2]), alone)


def test_control_dense_is_the_same_numbers() -> None:
    stored = made("int4-g32")
    wide = dense(stored)
    assert isinstance(wide, nn.Linear)
    assert torch.equal(wide.weight, stored.weight)


def test_a_heads_greatest_logits_are_exact() -> None:
    torch.manual_seed(0)
    table = StoredEmbedding.of(nn.Embedding(500, 64).bfloat16(), grid_of("int8"))
    head = fast_table(table)
    assert isinstance(head, Int8Head)
    x = 20 * torch.randn(2, 3, 64).bfloat16()
    known = x.float() @ table.wide().T
    found = head(x)
    assert found.dtype == torch.float32
    top = known.topk(32).indices
    torch.testing.assert_close(found.gather(-1, top), known.gather(-1, top), rtol=1e-5, atol=1e-4)
    assert torch.equal(found.argmax(-1), known.argmax(-1))
    # Control: the others, and the product itself, are rounded.
    assert (found - known).abs().max() > 0.05
    many = head(x.repeat(20, 1, 1))
    torch.testing.assert_close(many[:2], known, rtol=1e-2, atol=0.5)
    linear = StoredLinear.of(nn.Linear(64, 48).bfloat16(), grid_of("int8"))
    untied = fast(linear, is_head=True)
    assert isinstance(untied, Int8Head)
    torch.testing.assert_close(untied(x), linear.forward(x.float()), rtol=1e-5, atol=1e-4)
