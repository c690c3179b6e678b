"""sae_lens' training classes beside ours, with the same weights."""

from __future__ import annotations

import functools
import warnings
from typing import Any

import torch
from torch import Tensor

from worthit.interp.sae.base import SparseAutoencoder
from worthit.interp.sae.kinds import make_sae

D, WIDTH = 10, 40
OURS: dict[str, dict[str, Any]] = {
    "standard": {"penalty": 0.3},
    "topk": {"k": 4},
    "jumprelu": {"penalty": 0.2, "bandwidth": 0.4, "init_threshold": 0.3, "revive": 0.05},
    "gated": {"penalty": 0.3},
    "batchtopk": {"k": 3.5},
}
THEIRS: dict[str, dict[str, Any]] = {
    "standard": {"l1_coefficient": 0.3},
    "topk": {"k": 4},
    "jumprelu": {
        "l0_coefficient": 0.2,
        "jumprelu_bandwidth": 0.4,
        "jumprelu_init_threshold": 0.3,
        "pre_act_loss_coefficient": 0.05,
    },
    "gated": {"l1_coefficient": 0.3},
    "batchtopk": {"k": 3.5},
}
COEFFICIENTS = {"standard": {"l1": 0.3}, "jumprelu": {"l0": 0.2}, "gated": {"l1": 0.3}}
NAMES = {"W_enc": "encoder", "W_dec": "decoder"}


@functools.cache
def library() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import sae_lens
        import sae_lens.saes.sae
    return sae_lens


def sae_of(kind: str, seed: int = 0, **options: Any) -> SparseAutoencoder:
    """Ours, every parameter drawn."""
    torch.manual_seed(seed)
    sae = make_sae(kind, d_in=D, width=WIDTH, **{**OURS[kind], **options})
    with torch.no_grad():
        for name, p in sae.named_parameters():
            if name == "threshold":
                p.copy_(0.1 + 0.4 * torch.rand_like(p))
            else:
                p.add_(0.3 * torch.randn_like(p))
    return sae


def theirs_of(sae: SparseAutoencoder) -> Any:
    """Theirs, with the same weights."""
    saes = library().saes
    name = {"jumprelu": "JumpReLU", "topk": "TopK", "batchtopk": "BatchTopK"}.get(
        sae.kind, sae.kind.capitalize()
    )
    made = getattr(saes, f"{name}TrainingSAE")(
        getattr(saes, f"{name}TrainingSAEConfig")(d_in=D, d_sae=WIDTH, **THEIRS[sae.kind])
    )
    with torch.no_grad():
        for theirs, p in made.named_parameters():
            ours = dict(sae.named_parameters())[NAMES.get(theirs, theirs)]
            p.copy_(ours.T if theirs == "W_enc" else ours)
    return made


def step(theirs: Any, x: Tensor, kind: str, dead: Tensor | None) -> Any:
    from sae_lens.saes.sae import TrainStepInput

    return theirs.training_forward_pass(
        TrainStepInput(
            sae_in=x,
            coefficients=COEFFICIENTS.get(kind, {}),
            dead_neuron_mask=dead,
            n_training_steps=10,
            is_logging_step=False,
        )
    )


def some_inputs(n: int = 33, seed: int = 1) -> Tensor:
    return torch.randn(n, D, generator=torch.Generator().manual_seed(seed))
