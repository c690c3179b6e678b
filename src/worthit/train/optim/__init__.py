"""Optimizers: AdamW, and those that step whole matrices. One file each, its paper on top."""

from worthit.train.optim.build import OPTIMIZERS, Together, optimizer_for, state_bytes
from worthit.train.optim.muon import Muon, orthogonalise
from worthit.train.optim.roles import Role, roles
from worthit.train.optim.shampoo import Shampoo
from worthit.train.optim.soap import SOAP

__all__ = [
    "OPTIMIZERS",
    "SOAP",
    "Muon",
    "Role",
    "Shampoo",
    "Together",
    "optimizer_for",
    "orthogonalise",
    "roles",
    "state_bytes",
]
