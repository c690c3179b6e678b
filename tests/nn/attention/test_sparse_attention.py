"""Sparse patterns skip what their masks close; chosen blocks are those that a loop chooses."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from nn.recurrent_checks import D_MODEL, assert_same_gradients, built, model_of, run
from nn.tolerances import assert_near
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from worthit.cost.params import mixer_params
from worthit.errors import SpecError
from worthit.nn.attention.core import attend_plainly
from worthit.nn.attention.sparse_attention import (
    NativeSparseAttention,
    SparseAttention,
    attend_blocks,
    attend_fixed,
    attend_strided,
    block_mask,
    fixed_mask,
    strided_mask,
)
from worthit.spec.model import Attention, Position

PATTERNS = {
    "strided": (attend_strided, strided_mask, {"stride": 8}),
    "fixed": (attend_fixed, fixed_mask, {"block": 8, "n_summary": 2}),
    "blocks": (attend_blocks, block_mask, {"block": 8, "n_near": 2, "n_global": 3}),
    "own block alone": (attend_blocks, block_mask, {"block": 8, "n_near": 0, "n_global": 0}),
}


def inputs_of(n: int) -> list[Tensor]:
    torch.manual_seed(n)
    return [torch.randn(2, 3, n, d, dtype=torch.float64).requires_grad_() for d in (6, 6, 5)]


@pytest.mark.parametrize("n", [1, 8, 63, 100])
@pytest.mark.parametrize("name", PATTERNS)
def test_skipping_is_the_mask(name: str, n: int) -> None:
    form, mask_of, options = PATTERNS[name]
    inputs = inputs_of(n)
    got = form(*inputs, scale=0.4, **options)
    q, k, v = inputs
    scores = (q @ k.mT * 0.4).masked_fill(~mask_of(n, **options), -torch.inf)
    want = scores.softmax(-1) @ v
    assert_near(got, want)
    weights = torch.randn_like(want)
    assert_same_gradients(
        list(torch.autograd.grad((got * weights).sum(), inputs)),
        list(torch.autograd.grad((want * weights).sum(), inputs)),
    )


@pytest.mark.parametrize("name", PATTERNS)
def test_skipped_scores_are_not_computed(name: str) -> None:
    form, _, options = PATTERNS[name]
    inputs = [t.detach() for t in inputs_of(512)]
    with FlopCounterMode(display=False) as counter:
        form(*inputs, scale=0.4, **options)
    full = 2 * 2 * 3 * 512 * 512 * (6 + 5)
    assert counter.get_total_flops() < 0.35 * full


def test_masks_are_the_papers() -> None:
    for i in range(30):
        for j in range(30):
            seen = j <= i
            assert strided_mask(30, 5)[i, j] == (seen and (i - j < 5 or (i - j) % 5 == 0))
            same = i // 5 == j // 5
            assert fixed_mask(30, 5, 1)[i, j] == (seen and (same or j % 5 == 4))
            near = i // 5 - j // 5 <= 1
            assert block_mask(30, 5, 1, 2)[i, j] == (seen and (near or j < 2))


# Chosen keys

PLAIN = Attention(n_heads=4, n_kv_heads=2, head_dim=6, rotary_dim=6)
SPARSE = replace(PLAIN, sparse_keys=16)


def test_blocks_hold_no_more_than_the_keys_allowed() -> None:
    assert replace(PLAIN, sparse_keys=2048).sparse_blocks == (64, 32)
    for n in range(1, 300):
        block, n_blocks = replace(PLAIN, sparse_keys=n).sparse_blocks
        assert n_blocks >= 1
        assert block * n_blocks <= n < block * (n_blocks + 1)
    with torch.device("meta"):
        module = SparseAttention(SPARSE, model_of(SPARSE))
    assert sum(p.numel() for p in module.parameters()) == mixer_params(SPARSE, D_MODEL)


def chosen_slowly(q: Tensor, k: Tensor, block: int, n_blocks: int, scale: float) -> Tensor:
    """Keys that each token of each group reads, `(kv_heads, n, n)`, one query at a time."""
    n, keep = q.shape[1], torch.zeros(k.shape[0], q.shape[1], q.shape[1], dtype=torch.bool)
    for group in range(k.shape[0]):
        for i in range(n):
            own = i // block
            means = [k[group, b * block : (b + 1) * block].mean(0) for b in range(own)]
            blocks = [own]
            if means:
                per = q.shape[0] // k.shape[0]
                total = sum(
                    (torch.stack(means) @ q[h, i] * scale).softmax(0)
                    for h in range(group * per, (group + 1) * per)
                )
                ranked = total.argsort(descending=True).tolist()
                if n_blocks >= 3:
                    ranked = [0, *(b for b in ranked if b != 0)]
                blocks += ranked[: n_blocks - 1]
            for b in blocks:
                keep[group, i, b * block : (b + 1) * block] = True
            keep[group, i, i + 1 :] = False
    return keep


@pytest.mark.parametrize("n", [1, 23, 63])
@pytest.mark.parametrize("sparse_keys", [1, 2, 9, 16])
def test_chosen_keys_are_those_of_a_loop(sparse_keys: int, n: int) -> None:
    part = replace(PLAIN, sparse_keys=sparse_keys, rotary_dim=None)
    module = built(part)
    assert isinstance(module, SparseAttention)
    x = torch.randn(1, n, D_MODEL)
    inputs = [x.clone().requires_grad_(), x.clone().requires_grad_()]
    got = run(module, inputs[0])
    parts = (module.q_proj, module.k_proj, module.v_proj)
    q, k, v = (p(inputs[1]).view(1, n, -1, 6).transpose(1, 2) for p in parts)
    keep = chosen_slowly(q[0], k[0], *part.sparse_blocks, module.scale)
    assert keep.sum(-1).max() <= sparse_keys
    mask = keep.repeat_interleave(2, 0)[None]
    out = attend_plainly(q, k, v, scale=module.scale, mask=mask)
    want = module.o_proj(out.transpose(1, 2).flatten(2))
    assert_near(got, want)
    got.sin().sum().backward()
    want.sin().sum().backward()
    assert_near(inputs[0].grad, inputs[1].grad)


def test_as_many_keys_as_tokens_is_full_attention() -> None:
    x = torch.randn(2, 30, D_MODEL)
    assert_near(run(built(replace(PLAIN, sparse_keys=32)), x), run(built(PLAIN), x))


def native() -> NativeSparseAttention:
    module = built(replace(SPARSE, sparse_near=5))
    assert isinstance(module, NativeSparseAttention)
    return module


@pytest.mark.parametrize("make", [lambda: built(SPARSE), native], ids=["selected", "native"])
def test_continues_ignores_padding_and_looks_back_only(make) -> None:
    module, x = make(), torch.randn(2, 30, D_MODEL)
    with torch.no_grad():
        whole = run(module, x)
        for lengths in ([30], [25, 1, 1, 1, 1, 1], [1] * 30, [7, 1, 3, 19]):
            cache, past, parts = module.new_cache(), 0, []
            for length in lengths:
                parts.append(run(module, x[:, past : past + length], cache, past))
                past += length
            assert_near(torch.cat(parts, dim=1), whole)
            # Any key may be chosen later: all stay.
            assert cache.nbytes == 2 * (2 * 2 * 30 * 6 * 4)
        padded = torch.cat([torch.randn(2, 5, D_MODEL), x], dim=1)
        mask = torch.ones(2, 35, dtype=torch.long)
        mask[:, :5] = 0
        assert_near(run(module, padded, mask=mask)[:, 5:], whole)
        cache = module.new_cache()
        parts = [run(module, padded[:, :20], cache, 0, mask[:, :20])[:, 5:]]
        parts += [
            run(module, padded[:, i : i + 1], cache, i, mask[:, : i + 1]) for i in range(20, 35)
        ]
        assert_near(torch.cat(parts, dim=1), whole)
        changed = x.clone()
        changed[:, 13] += 1
        after = run(module, changed)
        assert_near(after[:, :13], whole[:, :13])
        assert not torch.allclose(after[:, 13], whole[:, 13])


def test_native_branches_are_their_formulas() -> None:
    module, n = native(), 30
    block, n_blocks = module.block, module.n_blocks
    x = torch.randn(1, n, D_MODEL)
    module.position = Position(kind="nope")
    got = run(module, x)[0]
    q, k, v = (
        p(x[0]).view(n, -1, 6).transpose(0, 1)
        for p in (module.q_proj, module.k_proj, module.v_proj)
    )
    gates = torch.sigmoid(module.gate_proj(x[0])).view(n, 3, 4)
    small_k = module.compress_keys(k[:, :28].reshape(2, 7, block * 6))
    small_v = module.compress_values(v[:, :28].reshape(2, 7, block * 6))
    out = torch.zeros(n, 4, 6)
    for h in range(4):
        for i in range(n):
            own, g = i // block, h // 2
            before = range(own)
            blocks = [own]
            if own:
                group = range(2 * g, 2 * g + 2)
                p = sum((small_k[g, :own] @ q[a, i] * module.scale).softmax(0) for a in group)
                blocks += [0, *(b for b in p.argsort(descending=True).tolist() if b)][
                    : n_blocks - 1
                ]
            selected = [j for b in blocks for j in range(b * block, (b + 1) * block) if j <= i]
            near = list(range(max(0, i - 4), i + 1))
            sets = (
                (small_k[g, list(before)], small_v[g, list(before)]),
                (k[g, selected], v[g, selected]),
                (k[g, near], v[g, near]),
            )
            for branch, (keys, values) in enumerate(sets):
                if len(keys):
                    weights = (keys @ q[h, i] * module.scale).softmax(0)
                    out[i, h] += gates[i, branch, h] * (weights @ values)
    assert_near(got, out.flatten(1) @ module.o_proj.weight.T)


def test_what_cannot_be_combined_says_so() -> None:
    for part in ({"window": 4}, {"has_sinks": True}, {"logit_softcap": 5.0}):
        both = replace(SPARSE, **part)
        with pytest.raises(SpecError, match="drop either"):
            SparseAttention(both, model_of(both))
