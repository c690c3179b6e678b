"""From a model to its optimizer: matrices to the one that is named, everything else to AdamW.

AdamW is torch's (Loshchilov & Hutter 2017, "Decoupled Weight Decay Regularization",
arXiv:1711.05101, algorithm 2).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from worthit.errors import InputError, unknown_name
from worthit.train.optim._base import MatrixOptimizer
from worthit.train.optim.muon import Muon
from worthit.train.optim.roles import roles
from worthit.train.optim.shampoo import Shampoo
from worthit.train.optim.soap import SOAP

MATRIX_OPTIMIZERS: dict[str, Callable[..., MatrixOptimizer]] = {
    "muon": Muon,
    "shampoo": Shampoo,
    "soap": SOAP,
}
OPTIMIZERS = ("adamw", *MATRIX_OPTIMIZERS)
FUSED = ("cpu", "cuda")


def optimizer_for(
    model: nn.Module,
    name: str = "adamw",
    *,
    lr: float,
    matrix_lr: float | None = None,
    weight_decay: float = 0.0,
    betas: tuple[float, float] = (0.9, 0.95),
    eps: float = 1e-8,
    parameters: Mapping[str, Tensor] | None = None,
    **options: Any,
) -> torch.optim.Optimizer | Together:
    """The optimizer `name` for `model`: by role, `name` for its matrices and AdamW for the rest.

    Every group of `param_groups` carries the `role` of its parameters, and its `lr` a second time
    as `initial_lr`, for schedules to multiply.

    Args:
        model: whose modules say which parameter is what; see `roles`.
        name: one of `OPTIMIZERS`.
        lr: of AdamW, and of the matrices unless `matrix_lr` is given.
        matrix_lr: of the matrices.
        weight_decay: decoupled, of everything but vectors (norms, biases, gates).
        betas, eps: of AdamW.
        parameters: what is stepped in place of the model's own parameters, under the same names.
            Leading dimensions that the model's lack are independent copies: of shape
            `(seeds, rows, columns)`, every seed is stepped as if it were alone.
        options: of the matrix optimizer, such as `momentum` or `interval`.

    Raises:
        UnknownName: no such optimizer.
        InputError: `parameters` has other names than the model, or `options` are not known.
    """
    if name not in OPTIMIZERS:
        raise unknown_name("optimizer", name, OPTIMIZERS)
    if name == "adamw" and options:
        raise InputError(f"adamw has no options {', '.join(options)}; give lr, betas and eps")
    groups = _groups(model, parameters, weight_decay)
    for group in groups:
        is_matrix = group["role"] == "matrix"
        group["lr"] = lr if matrix_lr is None or not is_matrix else matrix_lr
        group["initial_lr"] = group["lr"]
    if name == "adamw":
        return _adamw(groups, betas, eps)
    matrices = [group for group in groups if group["role"] == "matrix"]
    if not matrices:
        raise InputError(f"{name} steps matrices and the model has none; use adamw")
    try:
        chosen = MATRIX_OPTIMIZERS[name](matrices, lr=lr, **options)
    except TypeError as error:
        raise InputError(f"{name}: {error}; see its documentation for its options") from None
    rest = [group for group in groups if group["role"] != "matrix"]
    return Together([chosen, _adamw(rest, betas, eps)] if rest else [chosen])


class Together:
    """Several optimizers over parts of one model, handled as if they were one."""

    def __init__(self, optimizers: Iterable[torch.optim.Optimizer]) -> None:
        self.optimizers = list(optimizers)

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The groups themselves: a rate that is changed here is changed."""
        return [group for optimizer in self.optimizers for group in optimizer.param_groups]

    @property
    def state(self) -> dict[Tensor, dict[str, Any]]:
        """The states of all parameters."""
        return {p: kept for optimizer in self.optimizers for p, kept in optimizer.state.items()}

    def step(self) -> None:
        """Every optimizer's step."""
        for optimizer in self.optimizers:
            optimizer.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget all gradients."""
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none)

    def state_dict(self) -> dict[str, Any]:
        """The optimizers' own, in their order."""
        return {str(i): optimizer.state_dict() for i, optimizer in enumerate(self.optimizers)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from what `state_dict` said."""
        if len(state) != len(self.optimizers):
            raise InputError(
                f"the state is of {len(state)} optimizers and this one joins "
                f"{len(self.optimizers)}; load what was saved with the same optimizer"
            )
        for i, optimizer in enumerate(self.optimizers):
            optimizer.load_state_dict(state[str(i)])


def state_bytes(optimizer: torch.optim.Optimizer | Together) -> int:
    """Bytes of what an optimizer remembers; parameters and step counters do not count."""
    kept = (value for state in optimizer.state.values() for value in state.values())
    return sum(value.nbytes for value in kept if isinstance(value, Tensor) and value.ndim)


def _groups(
    model: nn.Module, parameters: Mapping[str, Tensor] | None, weight_decay: float
) -> list[dict[str, Any]]:
    """Parameters that are trained, by role and by how a matrix comes apart."""
    own = dict(model.named_parameters())
    named = own if parameters is None else parameters
    if named.keys() != own.keys():
        apart = sorted(named.keys() ^ own.keys())
        raise InputError(
            f"parameters must have the model's names; got or lacks {', '.join(apart[:3])}"
            f"{' and more' if len(apart) > 3 else ''}"
        )
    groups: dict[object, dict[str, Any]] = {}
    for name, role in roles(model).items():
        if not own[name].requires_grad:
            continue
        fresh: dict[str, Any] = {
            "params": [],
            "role": role.kind,
            "parts": role.parts,
            "weight_decay": 0.0 if role.kind == "vector" else weight_decay,
        }
        groups.setdefault((role.kind, role.parts), fresh)["params"].append(named[name])
    return list(groups.values())


def _adamw(
    groups: list[dict[str, Any]], betas: tuple[float, float], eps: float
) -> torch.optim.AdamW:
    devices = {p.device.type for group in groups for p in group["params"]}
    is_fused = devices <= set(FUSED)
    # None lets torch choose: it is the one value that every build accepts.
    return torch.optim.AdamW(groups, betas=betas, eps=eps, fused=is_fused or None)
