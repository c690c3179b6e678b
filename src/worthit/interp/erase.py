"""Taking a concept out of activations by a linear or affine map.

LEACE (Belrose et al. 2023, "LEACE: Perfect linear concept erasure in closed form",
arXiv:2306.03819, theorem 4.3): of all affine maps after which no linear classifier does better than
a constant, the one that changes x least,

    r(x) = x - W^+ P W (x - mu),      W = S_xx^(-1/2),   P projects onto the columns of W S_xz

Mean projection: the same with W = I, so that the difference of class means is projected out; the
change is larger than it need be. INLP (Ravfogel et al. 2020, "Null It Out", arXiv:2004.07667,
algorithm 1): fit a classifier, project its normal out, and again until there is nothing to fit.

| paper | here |
|---|---|
| X, Z | `x (n, d)`, `z (n,)` labels or `(n, k)` |
| S_xx, S_xz | covariance of x; of x and z |
| P_N(w) | `I - B B^T` with `B` the orthonormal basis that was taken out |

All three remove what is linear: another kind of reader may still find the concept, so try one.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from worthit.errors import InputError

# Directions in which x and z covary less than this, after whitening, are noise. Belrose et al.'s
# own implementation has the same default.
MIN_COVARIANCE = 0.01


@dataclass(frozen=True)
class Eraser:
    """`x -> x - (x - mean) right left`: an affine map of low rank.

    Attributes:
        left: `(rank, d)`; right: `(d, rank)`; mean: `(d,)`, which stays where it is.
    """

    left: Tensor
    right: Tensor
    mean: Tensor
    method: str

    def __call__(self, x: Tensor) -> Tensor:
        """`(..., d)` to the same, in the dtype of `x`."""
        left, right, mean = (t.to(x) for t in (self.left, self.right, self.mean))
        return x - ((x - mean) @ right) @ left

    @property
    def rank(self) -> int:
        """How many directions it takes out."""
        return len(self.left)

    @property
    def matrix(self) -> Tensor:
        """`(d, d)`, which multiplies rows `x - mean` from the right."""
        eye = torch.eye(len(self.right), dtype=self.right.dtype)
        return eye - self.right @ self.left


def leace(x: Tensor, z: Tensor, *, min_covariance: float = MIN_COVARIANCE) -> Eraser:
    """The least change of `x` that leaves nothing of `z` to a linear reader."""
    x, z = _checked(x, z)
    n = len(x)
    mean = x.mean(0)
    centred, labels = x - mean, z - z.mean(0)
    covariance, cross = centred.T @ centred / (n - 1), centred.T @ labels / (n - 1)
    values, vectors = torch.linalg.eigh(covariance)
    # Directions in which nothing varies have no inverse: the pseudoinverse leaves them alone.
    is_there = values > values[-1] * len(values) * torch.finfo(values.dtype).eps
    values = values.clamp_min(torch.finfo(values.dtype).tiny)
    whiten = (vectors * torch.where(is_there, values.rsqrt(), 0.0)) @ vectors.T
    colour = (vectors * torch.where(is_there, values.sqrt(), 0.0)) @ vectors.T
    u = _columns(whiten @ cross, min_covariance)
    return Eraser(left=(colour @ u).T, right=whiten @ u, mean=mean, method="leace")


def mean_projection(x: Tensor, z: Tensor, *, min_covariance: float = MIN_COVARIANCE) -> Eraser:
    """The orthogonal projection after which all classes have one mean."""
    x, z = _checked(x, z)
    mean = x.mean(0)
    cross = (x - mean).T @ (z - z.mean(0)) / (len(x) - 1)
    u = _columns(cross, min_covariance)
    return Eraser(left=u.T, right=u, mean=mean, method="mean-projection")


def inlp(x: Tensor, z: Tensor, *, n_rounds: int, penalty: float = 1e-2, seed: int = 0) -> Eraser:
    """The null space of the normals of `n_rounds` classifiers, each fitted to what the last left.

    Args:
        z: `(n,)` labels.
        penalty: weight of the squared norm of each classifier's weights, on standardised `x`.
    """
    from worthit.interp.probe import fit_probe

    labels = z
    x, _ = _checked(x, z)
    mean, scale = x.mean(0), x.std()
    basis = x.new_zeros(0, x.shape[1])
    for _ in range(n_rounds):
        left = (x - mean) / scale
        left = left - (left @ basis.T) @ basis
        normals = fit_probe(left, labels, penalty=penalty, is_standardised=False).weight
        normals = normals - (normals @ basis.T) @ basis
        u = _columns(normals.T.to(x), 1e-6 * float(normals.norm()))
        basis = torch.cat([basis, u.T])
        if len(basis) >= x.shape[1]:
            break
    return Eraser(left=basis, right=basis.T.contiguous(), mean=mean, method="inlp")


def edit_size(eraser: Eraser, x: Tensor) -> float:
    """Mean squared change of `x`, as a share of its variance: the price of an erasure."""
    changed = (eraser(x) - x).double()
    return float(changed.square().sum() / (x - x.mean(0)).double().square().sum())


def _columns(matrix: Tensor, least: float) -> Tensor:
    """An orthonormal basis `(d, rank)` of the columns, without those of small singular values."""
    u, s, _ = torch.linalg.svd(matrix, full_matrices=False)
    return u[:, s > least]


def _checked(x: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    problems = []
    if x.ndim != 2 or len(x) < 2:
        problems.append(f"x: must be (n, d) with n at least 2, got {list(x.shape)}")
    if len(z) != len(x):
        problems.append(f"z: must have one label a row of x, got {len(z)} for {len(x)}")
    if not bool(torch.isfinite(x).all()):
        problems.append("x: holds numbers that are not finite")
    if z.ndim == 1 and len(z.unique()) < 2:
        problems.append("z: must have two labels or more, got one")
    if problems:
        raise InputError(*problems)
    if z.ndim == 1:
        _, index = z.unique(return_inverse=True)
        z = functional.one_hot(index)
    return x.detach().double(), z.double()
