"""Tokens batched across depths get what each gets alone, in fewer passes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from nn.depth.models import ATTENTION, LAYER, D, built, spec_of
from nn.tolerances import assert_near
from torch import Tensor

from worthit.errors import SpecError
from worthit.nn.decoder import Block
from worthit.nn.depth.depth_batching import Walker, advance, start
from worthit.nn.depth.mixture_of_recursions import Chooser, MixtureOfRecursions
from worthit.nn.tokens import Tokens, tokens_of

ROUTED = replace(LAYER, n_loops=3, token_fraction=2 / 3)


def block_of(layer: object = ROUTED, chooser: Chooser = "expert") -> MixtureOfRecursions:
    block = built(spec_of(layer)).layers[0]
    assert isinstance(block, MixtureOfRecursions)
    block.chooser = chooser
    return block


def pass_of(n: int, past: int = 0) -> Tokens:
    return tokens_of(torch.zeros(1, n, dtype=torch.long), past=past, attention_mask=None)


@torch.no_grad()
def after_prompt(block: MixtureOfRecursions, prompt: Tensor) -> list[object]:
    caches = block.new_caches()
    block(prompt, pass_of(prompt.shape[1]), caches)
    return caches


@torch.no_grad()
@pytest.mark.parametrize("chooser", ["expert", "token"])
def test_each_gets_what_it_gets_alone(chooser: Chooser) -> None:
    block = block_of(chooser=chooser)
    prompts = [torch.randn(1, n, D) for n in (1, 9, 4, 17, 6)]
    new = [torch.randn(1, 1, D) for _ in range(10)]
    alone = [after_prompt(block, p) for p in prompts]
    together = [after_prompt(block, p) for p in prompts]
    n_passes, n_alone = 0, 0

    # The second five join one by one, as their sequence's token before them is done.
    walkers: list[Walker | None] = [None] * 5
    n_done = [0] * 5
    got: list[Tensor] = [torch.empty(0)] * 10
    while min(n_done) < 2:
        for i, w in enumerate(walkers):
            if w is not None and w.is_done:
                got[i + 5 * n_done[i]] = w.x
                n_alone += w.step
                n_done[i] += 1
                walkers[i] = w = None
            if w is None and n_done[i] < 2:
                x, place = new[i + 5 * n_done[i]], prompts[i].shape[1] + n_done[i]
                walkers[i] = start(block, x, place, together[i])
        advance(block, [w for w in walkers if w is not None])
        n_passes += 1

    for j, x in enumerate(new):
        i, later = j % 5, j // 5
        place = prompts[i].shape[1] + later
        assert_near(got[j], block(x, pass_of(1, past=place), alone[i]))
    assert n_passes - 1 <= 2 * 3 < n_alone
    for a, b in zip(alone, together, strict=True):
        assert [c.nbytes for c in a] == [c.nbytes for c in b]


@torch.no_grad()
def test_one_pass_holds_several_depths() -> None:
    block, calls = block_of(), []
    block.mixers[0].register_forward_pre_hook(lambda m, inputs: calls.append(len(inputs[0])))
    caches = [after_prompt(block, torch.randn(1, 5, D)) for _ in range(2)]
    calls.clear()
    first = start(block, torch.randn(1, 1, D), 5, caches[0])
    advance(block, [first])
    first.is_done = False
    second = start(block, torch.randn(1, 1, D), 5, caches[1])
    advance(block, [first, second])
    assert (first.step, second.step) == (2, 1)
    assert calls == [1, 2]
    assert isinstance(block, Block)


def test_what_it_cannot_pad_is_refused() -> None:
    shared = block_of(replace(ROUTED, shares_loop_cache=True))
    with pytest.raises(SpecError, match="shares_loop_cache=False"):
        start(shared, torch.randn(1, 1, D), 0, shared.new_caches())
    local = block_of(replace(ROUTED, mixers=(replace(ATTENTION, window=4),)))
    walker = start(local, torch.randn(1, 1, D), 0, local.new_caches())
    with pytest.raises(SpecError, match="a window or a state"):
        advance(local, [walker])
