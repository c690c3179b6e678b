"""Erasing concepts: against concept-erasure, the paper's guarantee, and what is not erased."""

from __future__ import annotations

import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier

from worthit.errors import InputError
from worthit.interp.erase import edit_size, inlp, leace, mean_projection


def planted(n: int = 400, d: int = 12, k: int = 2, seed: int = 0):
    """Correlated activations, whose mean moves with one of `k` labels."""
    g = torch.Generator().manual_seed(seed)
    z = torch.randint(k, (n,), generator=g)
    mix = torch.randn(d, d, generator=g, dtype=torch.float64)
    means = 2 * torch.randn(k, d, generator=g, dtype=torch.float64)
    x = torch.randn(n, d, generator=g, dtype=torch.float64) @ mix + means[z] + 3.0
    return x, z


@pytest.mark.parametrize("k", [2, 5])
@pytest.mark.parametrize("method", ["leace", "orth"])
def test_as_concept_erasure_does(k: int, method: str) -> None:
    reference = pytest.importorskip("concept_erasure")
    x, z = planted(k=k)
    hot = torch.nn.functional.one_hot(z)
    theirs = reference.LeaceEraser.fit(
        x, hot, shrinkage=False, constrain_cov_trace=False, method=method
    )
    ours = (leace if method == "leace" else mean_projection)(x, z)
    new = planted(k=k, seed=1)[0]
    torch.testing.assert_close(ours(new), theirs(new), rtol=1e-9, atol=1e-9)
    assert ours.rank == k - 1


def test_where_columns_depend_on_each_other_as_concept_erasure_does() -> None:
    reference = pytest.importorskip("concept_erasure")
    x, z = planted()
    x = torch.cat([x, x[:, :3] - x[:, 3:6]], dim=1)
    hot = torch.nn.functional.one_hot(z)
    theirs = reference.LeaceEraser.fit(x, hot, shrinkage=False, constrain_cov_trace=False)
    torch.testing.assert_close(leace(x, z)(x), theirs(x), rtol=1e-6, atol=1e-6)


def test_nothing_linear_is_left_and_something_else_is() -> None:
    g = torch.Generator().manual_seed(0)
    z = torch.arange(800) % 2
    # Two coordinates say it by their means, a third by its spread.
    x = torch.randn(800, 6, generator=g, dtype=torch.float64)
    x[:, 0] += 2.0 * z
    x[:, 1] -= 1.0 * z
    x[:, 2] *= 1 + 5.0 * z
    erased = leace(x, z)(x)
    # The guarantee (theorem 3.1): equal class means, so that no linear score covaries with z.
    torch.testing.assert_close(erased[z == 0].mean(0), erased[z == 1].mean(0))
    fit, held = erased[:600].numpy(), erased[600:].numpy()
    linear = LogisticRegression().fit(fit, z[:600]).score(held, z[600:])
    curved = MLPClassifier((32,), max_iter=400, random_state=0, early_stopping=True)
    assert linear < 0.6
    assert curved.fit(fit, z[:600]).score(held, z[600:]) > 0.8


def test_it_is_the_least_change() -> None:
    x, z = planted()
    assert edit_size(leace(x, z), x) < edit_size(mean_projection(x, z), x)
    # By hand: moving one of d equal directions entirely is 1/d of the variance.
    white = torch.eye(4, dtype=torch.float64).repeat(2, 1) * torch.tensor(
        [[1.0]] * 4 + [[-1.0]] * 4
    )
    labels = torch.tensor([1, 0, 0, 0, 0, 1, 1, 1])
    eraser = mean_projection(white, labels)
    assert eraser.rank == 1
    assert edit_size(eraser, white) == pytest.approx(0.25)


def test_inlp_projects_onto_a_null_space_that_shrinks() -> None:
    x, z = planted()
    before = None
    for rounds in (1, 2, 3):
        eraser = inlp(x, z, n_rounds=rounds)
        p = eraser.matrix
        torch.testing.assert_close(p @ p, p)
        torch.testing.assert_close(p, p.T)
        assert int(torch.linalg.matrix_rank(p)) == x.shape[1] - rounds
        if before is not None:
            # What was taken out stays out: the ranges are nested.
            torch.testing.assert_close(p @ before, p)
        before = p
    many = inlp(x, z, n_rounds=10)(x)
    acc = LogisticRegression(max_iter=500).fit(many[:300], z[:300]).score(many[300:], z[300:])
    assert acc < 0.65


def test_what_cannot_be_erased_is_refused() -> None:
    x, z = planted()
    with pytest.raises(InputError, match="two labels or more"):
        leace(x, torch.zeros(len(x)).long())
    with pytest.raises(InputError, match="one label a row"):
        leace(x, z[:-1])
    x[3, 4] = torch.nan
    with pytest.raises(InputError, match="not finite"):
        leace(x, z)
