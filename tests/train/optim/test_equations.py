"""Each optimizer against its equations, written down slowly, and in the limits that they name."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Tensor, nn

from worthit.errors import SpecError
from worthit.train.optim import SOAP, Muon, Shampoo, orthogonalise

ALL = [Muon, Shampoo, SOAP]


def gradients(shape: tuple[int, ...], n: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    g = torch.Generator().manual_seed(1)
    stretch = torch.linspace(0.1, 3.0, shape[-1], dtype=dtype)
    return [torch.randn(*shape, generator=g, dtype=dtype) * stretch for _ in range(n)]


def run(optimizer: torch.optim.Optimizer, p: nn.Parameter, each: list[Tensor]) -> Tensor:
    for g in each:
        p.grad = g.clone()
        optimizer.step()
    return p.detach()


# Muon


@pytest.mark.parametrize("shape", [(6, 6), (5, 9), (9, 5), (1, 7), (4, 3, 5)])
def test_orthogonalise_maps_singular_values(shape: tuple[int, ...]) -> None:
    x = torch.randn(*shape, dtype=torch.float64)
    want = []
    for one in x.reshape(-1, *shape[-2:]).numpy():
        u, s, vt = np.linalg.svd(one, full_matrices=False)
        s = s / np.sqrt((s**2).sum())
        for _ in range(5):
            s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
        want.append(u * s @ vt)
    got = orthogonalise(x, dtype=torch.float64)
    torch.testing.assert_close(got, torch.from_numpy(np.stack(want)).reshape(shape))


def test_singular_values_end_where_the_record_says() -> None:
    # Of a well-conditioned matrix; those below about 1e-3 of the norm have further to come.
    u, _ = torch.linalg.qr(torch.randn(32, 32, dtype=torch.float64))
    x = u * torch.logspace(-1.5, 0, 32, dtype=torch.float64)
    s = torch.linalg.svdvals(orthogonalise(x, dtype=torch.float64))
    assert 0.65 < s.min() < 0.8
    assert 1.0 < s.max() < 1.25


def test_orthogonalise_forgets_scale_and_keeps_zero() -> None:
    x = torch.randn(4, 6)
    torch.testing.assert_close(orthogonalise(x), orthogonalise(1024 * x))
    assert not orthogonalise(torch.zeros(4, 6)).any()


# Shampoo


def inverse_fourth_root(x: np.ndarray) -> np.ndarray:
    return np.asarray(scipy.linalg.fractional_matrix_power(x, -0.25)).real


def test_shampoo_in_blocks_with_graft_is_shi_2023() -> None:
    shape, block, beta1, beta2, lr, wd, eps = (5, 7), 3, 0.8, 0.9, 0.1, 0.2, 1e-6
    each = gradients(shape, 6)
    start = torch.randn(shape, dtype=torch.float64)
    p = nn.Parameter(start.clone())
    options = {"lr": lr, "betas": (beta1, beta2), "weight_decay": wd, "eps": eps}
    got = run(Shampoo([p], block=block, interval=2, **options), p, each)

    w = start.numpy().copy()
    cut = [slice(0, 3), slice(3, 6), slice(6, 9)]
    for rows in cut[:2]:
        for columns in cut:
            m = v = left = right = 0.0
            for t, g in enumerate((g.numpy()[rows, columns] for g in each), start=1):
                m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g**2
                left = beta2 * left + (1 - beta2) * g @ g.T
                right = beta2 * right + (1 - beta2) * g.T @ g
                mean, square = m / (1 - beta1**t), v / (1 - beta2**t)
                if t <= 2 or t % 2 == 0:
                    roots = [
                        inverse_fourth_root(c / (1 - beta2**t) + eps * np.eye(len(c)))
                        for c in (left, right)
                    ]
                direction = roots[0] @ mean @ roots[1]
                size = np.linalg.norm(mean / (np.sqrt(square) + 1e-8)) / np.linalg.norm(direction)
                w[rows, columns] *= 1 - lr * wd
                w[rows, columns] -= lr * size * direction
    torch.testing.assert_close(got, torch.from_numpy(w), rtol=1e-7, atol=1e-9)


def test_shampoo_of_one_gradient_is_orthogonal() -> None:
    """(G G^T)^(-1/4) G (G^T G)^(-1/4) = U V^T: what Muon approximates."""
    g = gradients((6, 6), 1)[0]
    p = nn.Parameter(torch.zeros(6, 6, dtype=torch.float64))
    options = {"betas": (0.0, None), "is_grafted": False, "eps": 1e-30}
    got = run(Shampoo([p], lr=1.0, **options), p, [g])
    u, _, vt = torch.linalg.svd(g)
    torch.testing.assert_close(got, -u @ vt)


# SOAP


def test_soap_with_fixed_bases_is_adam_in_them() -> None:
    # Square: of a long matrix the first covariance leaves part of the basis open.
    each = gradients((6, 6), 7)
    start = torch.randn(6, 6, dtype=torch.float64)
    p = nn.Parameter(start.clone())
    # The two add eps on different sides of a correction.
    options = {"lr": 0.1, "betas": (0.8, 0.9), "eps": 1e-15}
    got = run(SOAP([p], interval=1000, **options), p, each)

    first = each[0].numpy()
    left, right = (np.linalg.eigh(c)[1] for c in (first @ first.T, first.T @ first))
    left, right = torch.from_numpy(left), torch.from_numpy(right)
    q = nn.Parameter(left.T @ start @ right)
    turned = [left.T @ g @ right for g in each[1:]]
    want = left @ run(torch.optim.Adam([q], **options), q, turned) @ right.T
    torch.testing.assert_close(got, want)


def test_soap_without_bases_is_adam() -> None:
    each = gradients((5, 8), 7)
    p, q = (nn.Parameter(torch.ones(5, 8, dtype=torch.float64)) for _ in range(2))
    options = {"lr": 0.1, "betas": (0.8, 0.9)}
    got = run(SOAP([p], max_side=0, **options), p, each)
    want = run(torch.optim.Adam([q], **options), q, each[1:])
    torch.testing.assert_close(got, want)


def test_soap_refreshes_towards_the_eigenvectors() -> None:
    """Gradients of one distribution: the bases diagonalise their covariances, largest first."""
    p = nn.Parameter(torch.zeros(4, 6, dtype=torch.float64))
    optimizer = SOAP([p], betas=(0.9, 0.999), interval=1)
    rows = torch.tensor([[0.2], [3.0], [1.0], [0.5]], dtype=torch.float64)
    run(optimizer, p, [rows * g for g in gradients((4, 6), 300)])
    state = {key: value[0] for key, value in optimizer.state[p].items() if value.ndim}
    for side in ("left", "right"):
        basis = state[f"{side}_basis"]
        torch.testing.assert_close(basis.T @ basis, torch.eye(len(basis), dtype=torch.float64))
        seen = basis.T @ state[side] @ basis
        apart = seen - seen.diagonal().diag()
        assert apart.abs().max() < 1e-2 * seen.diagonal().max()
        assert (seen.diagonal().diff() < 0).all()


# All


@pytest.mark.parametrize("made", ALL)
def test_a_stack_is_stepped_matrix_by_matrix(made: type[torch.optim.Optimizer]) -> None:
    each = gradients((3, 2, 5, 6), 12, torch.float32)
    start = torch.randn(3, 2, 5, 6)
    p = nn.Parameter(start.clone())
    options = {} if made is Muon else {"interval": 3}
    together = run(made([p], lr=0.1, **options), p, each)
    for i in range(3):
        for j in range(2):
            q = nn.Parameter(start[i, j].clone())
            alone = run(made([q], lr=0.1, **options), q, [g[i, j] for g in each])
            torch.testing.assert_close(together[i, j], alone, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("made", ALL)
@pytest.mark.parametrize(
    ("parts", "blocks"),
    [((2, 1), [[0, 1, 2, 3], [4, 5, 6, 7]]), ((2, 2), [[0, 1, 4, 5], [2, 3, 6, 7]])],
)
def test_a_fused_matrix_is_stepped_part_by_part(
    made: type[torch.optim.Optimizer], parts: tuple[int, int], blocks: list[list[int]]
) -> None:
    each = gradients((8, 5), 6, torch.float32)
    start = torch.randn(8, 5)
    p = nn.Parameter(start.clone())
    together = run(made([{"params": [p], "parts": parts}], lr=0.1), p, each)
    for rows in blocks:
        q = nn.Parameter(start[rows].clone())
        alone = run(made([q], lr=0.1), q, [g[rows] for g in each])
        torch.testing.assert_close(together[rows], alone, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("made", ALL)
def test_a_resumed_run_is_the_same_run(made: type[torch.optim.Optimizer]) -> None:
    each = gradients((5, 6), 10, torch.float32)
    p = nn.Parameter(torch.ones(5, 6))
    whole = run(made([p], lr=0.1), p, each).clone()
    q = nn.Parameter(torch.ones(5, 6))
    first = made([q], lr=0.1)
    run(first, q, each[:5])
    again = made([q], lr=0.1)
    again.load_state_dict(first.state_dict())
    assert torch.equal(run(again, q, each[5:]), whole)


@pytest.mark.parametrize("made", ALL)
def test_vectors_are_refused(made: type[torch.optim.Optimizer]) -> None:
    with pytest.raises(SpecError, match=r"steps matrices, got a parameter of shape \(3,\)"):
        made([nn.Parameter(torch.zeros(3))])


@pytest.mark.parametrize("made", ALL)
def test_what_has_no_gradient_stays(made: type[torch.optim.Optimizer]) -> None:
    p, q = nn.Parameter(torch.ones(2, 3)), nn.Parameter(torch.ones(2, 3))
    optimizer = made([p, q], lr=0.1, weight_decay=0.1)
    for _ in range(2):  # SOAP's first step moves nothing
        p.grad = torch.randn(2, 3)
        optimizer.step()
    assert torch.equal(q, torch.ones(2, 3))
    assert not torch.equal(p, torch.ones(2, 3))
