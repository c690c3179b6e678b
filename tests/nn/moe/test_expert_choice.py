"""Expert choice against a loop over experts; and that it reads the future."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from nn.moe.mixtures import MIXTURE, D, E, K, built
from nn.tolerances import assert_near
from torch import Tensor

from worthit.nn.moe.expert_choice import ExpertChoice
from worthit.nn.tokens import Tokens, tokens_of

CHOICE = replace(MIXTURE, routing="expert-choice")


def slowly(m: ExpertChoice, x: Tensor) -> Tensor:
    """Every expert sorts the tokens of a row and takes its best."""
    out = []
    for row in x:
        scores = (row @ m.router.linear.weight.T).softmax(dim=-1)
        y = torch.zeros_like(row)
        for i in range(E):
            best = sorted(range(len(row)), key=lambda t: -scores[t, i].item())
            for t in best[: max(1, len(row) * K // E)]:
                y = y + scores[t, i] * torch.nn.functional.pad(
                    m.experts.expert(i, row[t : t + 1]), (0, 0, t, len(row) - 1 - t)
                )
        out.append(y)
    return torch.stack(out)


def pass_of(n: int, past: int = 0, mask: Tensor | None = None) -> Tokens:
    return tokens_of(torch.zeros(1, n, dtype=torch.long), past=past, attention_mask=mask)


@pytest.mark.parametrize("n", [1, 30, 63])
def test_equals_the_loop_over_experts(n: int) -> None:
    m = built(CHOICE)
    assert isinstance(m, ExpertChoice)
    x = torch.randn(2, n, D, requires_grad=True)
    got, want, signal = m(x), slowly(m, x), torch.randn(2, n, D)
    assert_near(got, want)
    leaves = [x, *m.parameters()]
    for a, b in zip(
        torch.autograd.grad((got * signal).sum(), leaves),
        torch.autograd.grad((want * signal).sum(), leaves),
        strict=True,
    ):
        assert_near(a, b)


def test_every_expert_takes_as_many() -> None:
    m, x = built(CHOICE), torch.randn(2, 64, D)
    pairs = m.pairs(m.router(x.flatten(0, 1)), x.shape[:2], None)
    assert torch.bincount(pairs.experts).tolist() == [2 * 64 * K // E] * E


def test_the_future_decides_about_the_past() -> None:
    m, x = built(CHOICE), torch.randn(1, 64, D)
    changed = x.clone()
    changed[:, 40:] = 3 * torch.randn(1, 24, D)
    differences = (m(changed) - m(x))[:, :40].abs().amax(dim=(0, 2))
    assert (differences > 1e-3).any()


def test_after_a_past_tokens_choose_for_themselves() -> None:
    m, x = built(CHOICE), torch.randn(1, 1, D)
    free = built(replace(MIXTURE, has_normalised_weights=False))
    free.load_state_dict(m.state_dict())
    own = built(replace(CHOICE, has_normalised_weights=False))
    assert_near(own(x, pass_of(1, past=5)), free(x))


def test_padding_is_never_taken() -> None:
    m, x = built(CHOICE), torch.randn(1, 64, D)
    mask = torch.ones(1, 64)
    mask[:, :24] = 0
    assert_near(m(x, pass_of(64, mask=mask))[:, 24:], m(x[:, 24:]))
