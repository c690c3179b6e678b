"""Methods against slow loops of their papers, against `peft`, and where they must agree."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from worthit.errors import InputError
from worthit.merge.breadcrumbs import breadcrumbs
from worthit.merge.dare import dare_linear, dare_ties
from worthit.merge.della import della, keeps
from worthit.merge.linear import linear
from worthit.merge.magnitude import band
from worthit.merge.model_stock import model_stock
from worthit.merge.passthrough import passthrough
from worthit.merge.slerp import slerp
from worthit.merge.task_arithmetic import task_arithmetic
from worthit.merge.thinning import generator, mask
from worthit.merge.ties import ties

WEIGHTS = (0.6, 0.5, -0.3)


@pytest.fixture
def base() -> Tensor:
    return torch.randn(7, 9, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def models(base: Tensor) -> list[Tensor]:
    chance = torch.Generator().manual_seed(1)
    return [base + 0.3 * torch.randn(base.shape, generator=chance) for _ in range(3)]


def close(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)


# --- loops ---------------------------------------------------------------------------------------


def ties_by_loops(
    base: Tensor, models: list[Tensor], weights: tuple[float, ...], density: float
) -> Tensor:
    """Algorithm 1, an entry at a time."""
    n = base.numel()
    taus = []
    for model in models:
        tau = (model - base).flatten().tolist()
        order = sorted(range(n), key=lambda i, tau=tau: abs(tau[i]), reverse=True)
        kept = set(order[: max(1, int(density * n))])
        taus.append([tau[i] if i in kept else 0.0 for i in range(n)])
    merged = []
    for i in range(n):
        weighted = [w * tau[i] for w, tau in zip(weights, taus, strict=True)]
        gamma = 1 if sum(weighted) >= 0 else -1
        agreeing = [j for j, x in enumerate(weighted) if x * gamma > 0]
        divisor = sum(weights[j] for j in agreeing)
        total = sum(weighted[j] for j in agreeing)
        merged.append(total / divisor if divisor else total)
    return base + torch.tensor(merged).reshape(base.shape)


@pytest.mark.parametrize("density", [0.2, 0.5, 1.0])
def test_ties(base: Tensor, models: list[Tensor], density: float) -> None:
    found = ties(base, models, weights=WEIGHTS, densities=[density] * 3)
    close(found, ties_by_loops(base, models, WEIGHTS, density))


def test_task_arithmetic(base: Tensor, models: list[Tensor]) -> None:
    wanted = base + 0.4 * sum(w * (m - base) for w, m in zip(WEIGHTS, models, strict=True))
    close(task_arithmetic(base, models, weights=WEIGHTS, scale=0.4), wanted)


def test_linear_of_one_checkpoint_is_that_checkpoint(models: list[Tensor]) -> None:
    close(linear(models[:1], weights=[0.3]), models[0])


def test_slerp_keeps_the_length_between_vectors_of_one_length() -> None:
    a, b = torch.tensor([[3.0, 0.0]]), torch.tensor([[0.0, 3.0]])
    for t in (0.0, 0.25, 0.5, 1.0):
        angle = t * math.pi / 2
        close(slerp(a, b, t=t), 3 * torch.tensor([[math.cos(angle), math.sin(angle)]]))


def test_slerp_of_one_line_is_linear() -> None:
    a = torch.tensor([[1.0, 2.0, -1.0]])
    close(slerp(a, 3 * a, t=0.25), 1.5 * a)
    close(slerp(a, -a, t=0.25), 0.5 * a)
    close(slerp(torch.zeros_like(a), a, t=0.5), slerp(a, torch.zeros_like(a), t=0.5))


def test_model_stock_of_two_by_the_paper(base: Tensor, models: list[Tensor]) -> None:
    one, two = ((m - base).double().flatten() for m in models[:2])
    cosine = float(one @ two / (one.norm() * two.norm()))
    t = 2 * cosine / (1 + cosine)
    close(model_stock(base, models[:2]), t * (models[0] + models[1]) / 2 + (1 - t) * base)


def test_model_stock_of_equal_models_is_that_model(base: Tensor, models: list[Tensor]) -> None:
    close(model_stock(base, [models[0]] * 3), models[0])


def test_breadcrumbs_keep_the_middle() -> None:
    base = torch.zeros(1, 10)
    tau = torch.tensor([[-1.0, 2, -3, 4, -5, 6, -7, 8, -9, 10]])
    found = breadcrumbs(base, [tau], weights=[1.0], densities=[0.5], gammas=[0.2])
    assert found.tolist() == [[0, 0, 0, 4, -5, 6, -7, 8, 0, 0]]


def test_della_keeps_more_of_what_is_large() -> None:
    delta = torch.tensor([[0.1, -5.0, 2.0], [9.0, 8.0, -7.0]])
    close(keeps(delta, 0.5, 0.2), torch.tensor([[0.3, 0.7, 0.5], [0.7, 0.5, 0.3]]))
    close(keeps(torch.ones(1, 1), 0.4, 0.2), torch.tensor([[0.4]]))


def test_passthrough_scales() -> None:
    close(passthrough(torch.ones(2, 2), scale=0.5), torch.full((2, 2), 0.5))


# --- where methods agree ------------------------------------------------------------------------


def test_without_trimming_and_conflict_ties_is_the_mean(base: Tensor) -> None:
    ups = [base + x for x in (0.1, 0.2, 0.6)]
    close(ties(base, ups, weights=[1, 1, 1], densities=[1, 1, 1]), base + 0.3)


def test_everything_kept_dare_and_breadcrumbs_are_task_arithmetic(
    base: Tensor, models: list[Tensor]
) -> None:
    wanted = task_arithmetic(base, models, weights=WEIGHTS)
    every = [1.0] * 3
    close(dare_linear(base, models, weights=WEIGHTS, densities=every), wanted)
    close(breadcrumbs(base, models, weights=WEIGHTS, densities=every, gammas=[0] * 3), wanted)
    close(
        della(
            base,
            models,
            weights=WEIGHTS,
            densities=every,
            epsilons=[0.1] * 3,
            elect=False,
            normalize=False,
        ),
        wanted,
    )


def test_formats_are_kept(base: Tensor, models: list[Tensor]) -> None:
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        low = [m.to(dtype) for m in models]
        assert ties(base.to(dtype), low, weights=WEIGHTS, densities=[0.5] * 3).dtype == dtype
    wide = task_arithmetic(base.double(), [m.double() for m in models], weights=WEIGHTS)
    exact = base.double() + sum(
        w * (m.double() - base.double()) for w, m in zip(WEIGHTS, models, strict=True)
    )
    torch.testing.assert_close(wide, exact, rtol=0, atol=1e-15)


# --- peft ---------------------------------------------------------------------------------------


def test_peft_agrees_where_it_means_the_same(
    base: Tensor, models: list[Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its DARE divides by the density; drawing as it does, the sums are equal."""
    utils = pytest.importorskip("peft.utils.merge_utils", reason="peft is not installed")
    deltas = [m - base for m in models]
    weights = torch.tensor(WEIGHTS)
    found = task_arithmetic(base, models, weights=WEIGHTS) - base
    close(found, utils.task_arithmetic(deltas, weights))
    torch.manual_seed(0)
    wanted = utils.dare_linear(deltas, weights, 0.5)
    monkeypatch.setattr(
        "worthit.merge.dare.mask", lambda shape, p, _: torch.bernoulli(torch.full(shape, p))
    )
    torch.manual_seed(0)
    found = dare_linear(base, models, weights=WEIGHTS, densities=[0.5] * 3, rescale="density")
    close(found - base, wanted)


# --- chance -------------------------------------------------------------------------------------


def test_dare_drops_by_seed_tensor_and_model_alone(base: Tensor, models: list[Tensor]) -> None:
    options = {"weights": WEIGHTS, "densities": [0.5] * 3}
    one = dare_ties(base, models, seed=3, **options)
    assert torch.equal(one, dare_ties(base, models, seed=3, **options))
    assert not torch.equal(one, dare_ties(base, models, seed=4, **options))
    masks = {
        mask(base.shape, 0.5, generator(seed, name, i)).numpy().tobytes()
        for seed in (0, 1)
        for name in ("q", "k")
        for i in (0, 1)
    }
    assert len(masks) == 8


@pytest.mark.parametrize("rescale", ["l1", "density"])
def test_dare_keeps_the_expectation(rescale: str) -> None:
    base = torch.zeros(200, 200)
    tau = torch.randn(200, 200, generator=torch.Generator().manual_seed(5)) + 1
    found = dare_linear(base, [tau], weights=[1.0], densities=[0.25], rescale=rescale)
    assert abs(float((found != 0).float().mean()) - 0.25) < 4 * math.sqrt(0.25 * 0.75 / 40_000)
    kept = found[found != 0] / tau[found != 0]
    torch.testing.assert_close(kept, kept[:1].expand_as(kept), rtol=1e-5, atol=0)
    if rescale == "density":
        assert float(kept[0]) == pytest.approx(4.0)
    else:
        close(found.abs().sum(), tau.abs().sum())
    plain = dare_linear(base, [tau], weights=[1.0], densities=[0.25], rescale="none")
    close(plain[plain != 0], tau[plain != 0])


# --- the k-th magnitude -------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("few", [0, 1 << 16])
@given(data=st.data())
def test_a_band_is_what_sorting_gives(dtype: torch.dtype, few: int, data: st.DataObject) -> None:
    values = data.draw(
        st.lists(st.sampled_from([0.0, -0.0, 1.0, -1.0, 1.5, -2e-30, 3e20, 1e-3]), min_size=1)
    )
    x = torch.tensor(values, dtype=dtype)
    low = data.draw(st.integers(0, len(values)))
    high = data.draw(st.integers(low, len(values)))
    size = data.draw(st.integers(1, 4))

    def pieces() -> Iterator[Tensor]:
        yield from x.split(size)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("worthit.merge.magnitude.FEW", few)
        found = band(pieces, x.numel(), low, high)
    if found is None:
        assert low == high
        return
    kept = torch.cat([found.keep(piece) for piece in pieces()])
    order = np.argsort(x.abs().numpy(), kind="stable")
    wanted = torch.zeros_like(x)
    chosen = torch.from_numpy(order[low:high].copy())
    wanted[chosen] = x[chosen]
    assert torch.equal(kept, wanted)


# --- what cannot be merged ----------------------------------------------------------------------


def test_refusals(base: Tensor) -> None:
    with pytest.raises(InputError, match=r"one shape, got \[2, 2\] and \[7, 9\]"):
        linear([base, torch.ones(2, 2)], weights=[1, 1])
    with pytest.raises(InputError, match="must not sum to 0"):
        linear([base, base], weights=[1, -1])
    with pytest.raises(InputError, match="at least one tensor"):
        linear([], weights=[])
    with pytest.raises(
        InputError, match=r"density=0\.9 and epsilon=0\.2; lower epsilon below 0\.1"
    ):
        della(base, [base], weights=[1], densities=[0.9], epsilons=[0.2])
