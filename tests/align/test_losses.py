"""Losses against the papers' formulas by hand, slow loops and invariants; traps of practice."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from worthit.align.displacement import compared
from worthit.align.dpo import DPO, dpo_loss
from worthit.align.grpo import dead_share, group_advantages, grpo_loss, kl_to_reference
from worthit.align.ipo import IPO, ipo_loss
from worthit.align.kto import KTO, kl_estimate, kto_loss, partners
from worthit.align.orpo import ORPO, log_odds, odds_ratio_loss
from worthit.align.ppo import (
    advantages_of,
    clipped_loss,
    token_rewards,
    value_loss,
    whitened,
)
from worthit.align.reward import centred, reward_loss
from worthit.align.scores import Scored
from worthit.align.sequences import Rated
from worthit.align.simpo import SimPO
from worthit.errors import InputError


def scored(logps: list[float], lengths: list[int], reference: list[float] | None = None) -> Scored:
    return Scored(
        torch.tensor(logps, dtype=torch.float64),
        torch.tensor(lengths, dtype=torch.float64),
        None if reference is None else torch.tensor(reference, dtype=torch.float64),
    )


# --- pairs ---------------------------------------------------------------------------------------


def test_dpo_by_hand() -> None:
    """h = (-3 + 5) - (-4 + 4) = 2, beta 0.5: -log sigma(1)."""
    chosen, rejected = scored([-3.0], [2], [-5.0]), scored([-4.0], [3], [-4.0])
    loss = DPO(beta=0.5).of_pairs(chosen, rejected)
    assert float(loss) == pytest.approx(math.log(1 + math.exp(-1.0)))


def test_both_logps_may_fall_while_dpo_improves() -> None:
    """The trap that users report: a lower loss, and a chosen answer that is less likely."""
    reference = [-10.0]
    before = DPO().of_pairs(scored([-10.0], [5], reference), scored([-10.0], [5], reference))
    chosen, rejected = scored([-14.0], [5], reference), scored([-30.0], [5], reference)
    assert float(DPO().of_pairs(chosen, rejected)) < float(before)
    found = compared(chosen, rejected)
    assert found.is_displaced
    assert found.both_fell == 1.0
    assert found.chosen_change == -4.0
    assert "likelihood displacement" in found.sentence()


def test_robust_dpo_is_unbiased_over_flips() -> None:
    """Over flips with probability eps, its mean is the loss of the right label."""
    h = torch.linspace(-30, 30, 13, dtype=torch.float64)
    eps = 0.3
    right = dpo_loss(h, beta=0.2, kind="robust", label_smoothing=eps)
    flipped = dpo_loss(-h, beta=0.2, kind="robust", label_smoothing=eps)
    torch.testing.assert_close((1 - eps) * right + eps * flipped, dpo_loss(h, beta=0.2))


def test_label_smoothing_has_its_minimum_where_the_labels_are_as_sure() -> None:
    eps, beta = 0.1, 0.5
    h = torch.tensor(math.log((1 - eps) / eps) / beta, dtype=torch.float64, requires_grad=True)
    dpo_loss(h, beta=beta, label_smoothing=eps).backward()
    assert float(h.grad) == pytest.approx(0.0, abs=1e-12)


def test_ipo_has_a_finite_margin_where_dpo_has_none() -> None:
    """Certain labels: DPO's gradient never ends, IPO's does at 1 / (2 beta) nats a token."""
    beta = 0.1
    far = torch.tensor(1 / (2 * beta), dtype=torch.float64, requires_grad=True)
    ipo_loss(far, beta=beta).backward()
    assert float(far.grad) == 0.0
    beyond = torch.tensor(50.0, dtype=torch.float64, requires_grad=True)
    dpo_loss(beyond, beta=beta).backward()
    assert float(beyond.grad) < 0
    further = torch.tensor(50.0, dtype=torch.float64, requires_grad=True)
    ipo_loss(further, beta=beta).backward()
    assert float(further.grad) > 0


def test_ipo_divides_by_length() -> None:
    chosen, rejected = scored([-2.0], [4], [-6.0]), scored([-9.0], [3], [-6.0])
    # 4/4 + 3/3 - 1/(2 * 0.25) = 0
    assert float(IPO(beta=0.25).of_pairs(chosen, rejected)) == pytest.approx(0.0)


def test_simpo_reads_means_and_no_reference() -> None:
    chosen, rejected = scored([-8.0], [8]), scored([-3.0], [2])
    # The sum prefers the short one, the mean the long one: -1 against -1.5.
    loss = SimPO(beta=2.0, gamma=0.5).of_pairs(chosen, rejected)
    assert float(loss) == pytest.approx(math.log(1 + math.exp(-0.5)))


def test_a_reference_that_is_missing_is_named() -> None:
    with pytest.raises(InputError, match="compares with a reference"):
        DPO().of_pairs(scored([-1.0], [1]), scored([-1.0], [1]))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DPO(beta=0.0), "beta: must be positive"),
        (lambda: DPO(kind="sigmoyd"), "did you mean sigmoid"),  # type: ignore[arg-type]
        (lambda: DPO(label_smoothing=0.5), "below 0.5"),
        (lambda: DPO(kind="hinge", label_smoothing=0.1), "hinge has none"),
        (lambda: SimPO(gamma=-1.0), "gamma: must be 0 or more"),
        (lambda: ORPO(weight=-1.0), "weight: must be positive"),
    ],
)
def test_settings_are_checked(make: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()  # type: ignore[operator]


# --- ORPO ----------------------------------------------------------------------------------------


def test_log_odds_keep_their_digits_near_certainty() -> None:
    """Against 200-bit-free arithmetic: log p - log(1 - p) with p = 1 - d is log((1 - d) / d)."""
    d = torch.tensor([0.9, 0.5, 1e-2, 1e-4, 1e-5], dtype=torch.float64)
    expected = torch.log1p(-d) - d.log()
    torch.testing.assert_close(log_odds(torch.log1p(-d)), expected, rtol=1e-9, atol=0)


def test_a_certain_completion_has_finite_odds_and_gradients() -> None:
    """log1p(-exp(0)) is minus infinity, and its gradient NaN: the clamp is what trains."""
    x = torch.tensor([0.0, -1e-9, -0.3], requires_grad=True)
    y = torch.tensor([-0.5, -1.0, -2.0], requires_grad=True)
    loss = odds_ratio_loss(x, y).sum()
    loss.backward()
    assert math.isfinite(float(loss.detach()))
    assert bool(x.grad.isfinite().all())
    assert bool(y.grad.isfinite().all())


def test_orpo_adds_the_loss_of_all_chosen_tokens() -> None:
    chosen, rejected = scored([-2.0, -9.0], [2, 4]), scored([-5.0, -7.0], [3, 2])
    loss = ORPO(weight=0.3).of_pairs(chosen, rejected)
    ratio = odds_ratio_loss(chosen.means, rejected.means)
    torch.testing.assert_close(loss, 11 / 6 + 0.3 * ratio)


# --- KTO -----------------------------------------------------------------------------------------


def test_kto_by_the_papers_cases() -> None:
    ratios = torch.tensor([2.0, -1.0, 0.5], dtype=torch.float64)
    is_good = torch.tensor([True, False, True])
    z = torch.tensor(0.4, dtype=torch.float64)
    got = kto_loss(ratios, is_good, z, beta=0.3, good_weight=2.0, bad_weight=0.5)

    def sigma(x: float) -> float:
        return 1 / (1 + math.exp(-x))

    expected = [
        2.0 * (1 - sigma(0.3 * 1.6)),
        0.5 * (1 - sigma(0.3 * 1.4)),
        2.0 * (1 - sigma(0.3 * 0.1)),
    ]
    torch.testing.assert_close(got, torch.tensor(expected, dtype=torch.float64))


def test_z_is_clamped_and_has_no_gradient() -> None:
    logps = torch.tensor([-1.0, -2.0], requires_grad=True)
    above = Scored(logps, torch.ones(2), torch.tensor([-2.0, -4.0]))
    below = Scored(logps, torch.ones(2), torch.tensor([0.0, 0.0]))
    assert float(kl_estimate(above)) == 1.5
    assert not kl_estimate(above).requires_grad
    assert float(kl_estimate(below)) == 0.0


def test_partners_answer_other_prompts_whatever_their_order() -> None:
    """A rotation by one would pair two answers to one prompt, as data sets are often sorted."""
    rated = [
        Rated(prompt=(p,), completion=(10 + i,), is_good=True)
        for i, p in enumerate([1, 1, 1, 2, 2, 3])
    ]
    own = {r.completion: r.prompt for r in rated}
    for r, partner in zip(rated, partners(rated), strict=True):
        assert own[partner] != r.prompt
    assert partners(rated)[-1] == (10,)
    with pytest.raises(InputError, match="all prompts are the same"):
        partners(rated[:3])


def test_balanced_weights_give_both_kinds_the_same_say() -> None:
    rated = [Rated(prompt=(i,), completion=(1,), is_good=i < 2) for i in range(20)]
    method = KTO.balanced(rated)
    assert method.good_weight * 2 == method.bad_weight * 18
    with pytest.raises(InputError, match="20 good and 0 bad"):
        KTO.balanced([Rated(prompt=(i,), completion=(1,), is_good=True) for i in range(20)])


# --- reward model --------------------------------------------------------------------------------


def test_rewards_have_a_free_offset_and_centring_fixes_it() -> None:
    chosen, rejected = torch.tensor([1.0, 3.0]), torch.tensor([0.0, 1.0])
    plain = reward_loss(chosen, rejected)
    torch.testing.assert_close(reward_loss(chosen + 7, rejected + 7), plain)
    assert bool((reward_loss(chosen + 7, rejected + 7, centring=0.1) > plain).all())
    torch.testing.assert_close(centred(chosen + 7), centred(chosen))


# --- PPO -----------------------------------------------------------------------------------------


def slow_advantages(
    rewards: list[float], values: list[float], discount: float, trace: float, after: float
) -> list[float]:
    """Schulman et al. 2015, equation 16, as the double sum that it is."""
    n = len(rewards)
    following = [*values[1:], after]
    deltas = [rewards[t] + discount * following[t] - values[t] for t in range(n)]
    return [sum((discount * trace) ** (k - t) * deltas[k] for k in range(t, n)) for t in range(n)]


@pytest.mark.parametrize("after", [0.0, 0.7])
def test_advantages_are_the_papers_double_sum(after: float) -> None:
    generator = torch.Generator().manual_seed(0)
    draw = lambda: torch.randn(3, 7, generator=generator, dtype=torch.float64)  # noqa: E731
    rewards, values = draw(), draw()
    # Completions start where their prompts end, and end where they like.
    spans = [(0, 7), (2, 5), (6, 7)]
    places = torch.arange(7)
    mask = torch.stack([(places >= a) & (places < b) for a, b in spans])
    got = advantages_of(
        rewards,
        values,
        mask,
        discount=0.9,
        trace=0.8,
        last_values=torch.full((3,), after, dtype=torch.float64),
    )
    expected = torch.zeros_like(got)
    for i, (a, b) in enumerate(spans):
        slow = slow_advantages(rewards[i, a:b].tolist(), values[i, a:b].tolist(), 0.9, 0.8, after)
        expected[i, a:b] = torch.tensor(slow, dtype=torch.float64)
    torch.testing.assert_close(got, expected)


def test_without_discount_and_with_full_trace_returns_are_sums_to_come() -> None:
    rewards = torch.tensor([[0.0, 1.0, 2.0]])
    values = torch.tensor([[5.0, -3.0, 0.5]])
    mask = torch.ones(1, 3, dtype=torch.bool)
    got = advantages_of(rewards, values, mask, discount=1.0, trace=1.0) + values
    torch.testing.assert_close(got, torch.tensor([[3.0, 3.0, 2.0]]))


def test_the_reward_is_on_the_last_token_and_kl_on_every_one() -> None:
    mask = torch.tensor([[False, True, True, False], [True, True, True, True]])
    logps, reference = torch.full((2, 4), -1.0), torch.full((2, 4), -1.5)
    got = token_rewards(torch.tensor([3.0, -2.0]), mask, logps, reference, beta=0.2)
    expected = torch.tensor([[0.0, -0.1, 2.9, 0.0], [-0.1, -0.1, -0.1, -2.1]])
    torch.testing.assert_close(got, expected)


def test_clipping_stops_the_gain_and_not_the_loss() -> None:
    """Beyond 1 + eps a good action has no gradient; a bad one that became likelier keeps it."""
    old = torch.zeros(4)
    logps = torch.log(torch.tensor([1.5, 1.5, 0.5, 0.5])).requires_grad_()
    advantages = torch.tensor([1.0, -1.0, 1.0, -1.0])
    loss = clipped_loss(logps, old, advantages, low=0.2, high=0.2)
    torch.testing.assert_close(loss.detach(), torch.tensor([-1.2, 1.5, -0.5, 0.8]))
    (gradient,) = torch.autograd.grad(loss.sum(), logps)
    torch.testing.assert_close(gradient, torch.tensor([0.0, 1.5, -0.5, 0.0]))


def test_the_value_loss_takes_the_worse_of_both() -> None:
    values, old = torch.tensor([1.0, 0.1]), torch.tensor([0.0, 0.0])
    got = value_loss(values, old, torch.tensor([1.0, 1.0]), clip=0.2)
    torch.testing.assert_close(got, torch.tensor([0.5 * 0.8**2, 0.5 * 0.9**2]))


def test_whitening_is_over_the_mask_alone() -> None:
    x = torch.tensor([[1.0, 2.0, 99.0], [3.0, 99.0, 99.0]])
    mask = torch.tensor([[True, True, False], [True, False, False]])
    got = whitened(x, mask)
    torch.testing.assert_close(got[mask], torch.tensor([-1.0, 0.0, 1.0]))
    assert bool((got[~mask] == 0).all())


# --- GRPO ----------------------------------------------------------------------------------------


def test_group_advantages_and_dead_groups() -> None:
    rewards = torch.tensor([[1.0, 0.0, 0.0, 1.0], [1.0, 1.0, 1.0, 1.0]])
    got = group_advantages(rewards)
    std = math.sqrt(1 / 3)
    torch.testing.assert_close(got[0], torch.tensor([1.0, -1, -1, 1]) * 0.5 / (std + 1e-4))
    assert bool((got[1] == 0).all())
    assert dead_share(rewards) == 0.5
    torch.testing.assert_close(
        group_advantages(rewards, scale="none")[0], torch.tensor([0.5, -0.5, -0.5, 0.5])
    )


def test_the_kl_estimate_is_never_negative_and_zero_at_the_reference() -> None:
    logps = -torch.rand(100, generator=torch.Generator().manual_seed(1)) * 5
    assert float(kl_to_reference(logps, logps).abs().max()) == 0.0
    assert bool((kl_to_reference(logps, logps.flip(0)) >= 0).all())


def normalised(normaliser: str, lengths: list[int]) -> Tensor:
    """The weight of each token's gradient, at the first step on fresh answers."""
    width = max(lengths)
    logps = torch.zeros(len(lengths), width, requires_grad=True)
    mask = torch.arange(width) < torch.tensor(lengths)[:, None]
    loss = grpo_loss(
        logps,
        torch.zeros_like(logps),
        torch.ones(len(lengths)),
        mask,
        normaliser=normaliser,  # type: ignore[arg-type]
        max_tokens=8,
    )
    return -torch.autograd.grad(loss, logps)[0]


def test_what_each_normaliser_divides_by() -> None:
    lengths = [1, 4]
    torch.testing.assert_close(normalised("sequence", lengths)[:, 0], torch.tensor([1 / 2, 1 / 8]))
    torch.testing.assert_close(normalised("tokens", lengths)[:, 0], torch.tensor([1 / 5, 1 / 5]))
    torch.testing.assert_close(normalised("constant", lengths)[:, 0], torch.tensor([1 / 16] * 2))
