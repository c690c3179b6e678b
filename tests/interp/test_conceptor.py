"""Conceptors: Jaeger's algebra, by its laws and by hand."""

from __future__ import annotations

import pytest
import torch

from worthit.errors import InputError
from worthit.interp.conceptor import conceptor


def of(seed: int, aperture: float = 1.5, d: int = 6, n: int = 40):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=g, dtype=torch.float64)
    return conceptor(x @ torch.randn(d, d, generator=g, dtype=torch.float64), aperture=aperture)


def close(a, b, **tolerance) -> None:
    torch.testing.assert_close(a.matrix, b.matrix, **tolerance)


def test_by_hand_on_the_axes() -> None:
    # R = diag(4, 1, 0); aperture 1/2 gives s / (s + 4).
    x = torch.tensor([[2.0, 1.0, 0.0], [2.0, -1.0, 0.0]])
    c = conceptor(x, aperture=0.5)
    torch.testing.assert_close(
        c.matrix, torch.diag(torch.tensor([0.5, 0.2, 0.0], dtype=torch.float64))
    )
    assert c.quota == pytest.approx(0.7 / 3)
    torch.testing.assert_close(c(torch.ones(3)), torch.tensor([0.5, 0.2, 0.0]))


def test_it_minimises_what_it_is_defined_to() -> None:
    # Definition 1: C minimises mean |x - C x|^2 + a^-2 |C|^2.
    g = torch.Generator().manual_seed(0)
    x = torch.randn(30, 5, generator=g, dtype=torch.float64)
    c = conceptor(x, aperture=2.0).matrix.requires_grad_()
    loss = (x - x @ c.T).square().sum(1).mean() + c.square().sum() / 4
    (gradient,) = torch.autograd.grad(loss, c)
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), atol=1e-12, rtol=0)


def test_the_laws_of_boole() -> None:
    a, b = of(0), of(1)
    close(~~a, a)
    close(a & b, b & a)
    close(a | b, b | a)
    close(~(a & b), ~a | ~b)
    close(~(a | b), ~a & ~b)


def test_and_or_lie_below_and_above_both() -> None:
    # Definition 4 and proposition 10: A AND B <= A <= A OR B in the order of Loewner.
    a, b = of(0), of(1)
    for lower, upper in (((a & b), a), ((a & b), b), (a, (a | b)), (b, (a | b))):
        assert float(torch.linalg.eigvalsh(upper.matrix - lower.matrix).min()) > -1e-9


def test_or_of_data_is_the_conceptor_of_the_sum_of_correlations() -> None:
    # Equation 29 of Jaeger: R_or = R_a + R_b, at equal apertures.
    g = torch.Generator().manual_seed(2)
    x, y = (torch.randn(25, 4, generator=g, dtype=torch.float64) for _ in range(2))
    together = conceptor(torch.cat([x, y]) * 2**0.5, aperture=1.7)
    close(conceptor(x, aperture=1.7) | conceptor(y, aperture=1.7), together)


def test_hard_ones_are_subspaces() -> None:
    # At a huge aperture: projections, and AND is the intersection of two planes of three.
    e = torch.eye(3, dtype=torch.float64)
    a, b = (conceptor(e[rows], aperture=1e4) for rows in ([0, 1], [1, 2]))
    torch.testing.assert_close((a & b).matrix, torch.diag(e[1]), atol=1e-6, rtol=0)
    torch.testing.assert_close((a | b).matrix, e, atol=1e-6, rtol=0)
    one, other = (conceptor(e[rows], aperture=1e4) for rows in ([0], [2]))
    torch.testing.assert_close((one & other).matrix, 0 * e, atol=1e-6, rtol=0)


def test_aperture_is_adapted_without_the_data() -> None:
    g = torch.Generator().manual_seed(3)
    x = torch.randn(25, 4, generator=g, dtype=torch.float64)
    close(conceptor(x, aperture=0.5).scaled(4.0), conceptor(x, aperture=2.0))


def test_around_a_centre_the_centre_stays() -> None:
    x = torch.randn(20, 4, dtype=torch.float64) + 5
    c = conceptor(x, aperture=0.1, centre=x.mean(0))
    torch.testing.assert_close(c(x.mean(0)), x.mean(0))


def test_bad_input_is_named() -> None:
    with pytest.raises(InputError, match="aperture: must be positive, got 0"):
        conceptor(torch.ones(2, 2), aperture=0)
    with pytest.raises(InputError, match="one width"):
        of(0, d=3) & of(1, d=4)
