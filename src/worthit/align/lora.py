"""Low-rank adapters on our own modules, by `peft`; merged back, the model is a plain one again.

    W' = W + (alpha / r) B A      Hu et al. 2021, arXiv:2106.09685, equation 3

Adapted are the linear maps of attention and feed-forwards inside the layers. Left alone: routers,
output heads and embeddings; experts, whose weights are one tensor and no linear map; and what a
mixer reads as a weight rather than calls, where an adapter would be passed over in silence. The
last is checked: after a pass every adapter must have been called.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from worthit.errors import InputError, MissingCapability
from worthit.nn import Decoder
from worthit.nn.depth.mixture_of_depths import TokenRouter
from worthit.nn.moe.topk_moe import Router

# Latent attention multiplies by this one's weight itself when it decodes.
READ_AS_WEIGHT = ("kv_up",)


def add_lora(model: Decoder, rank: int, *, alpha: float | None = None, seed: int = 0) -> list[str]:
    """Freeze `model` and give it adapters of `rank`, in place; the names of what they adapt.

    With B = 0 the model is what it was. Adapters are fp32 whatever the model is.

    Args:
        alpha: the factor is `alpha / rank`; twice the rank by default.

    Raises:
        MissingCapability: `peft` is not installed.
        InputError: the rank is not positive, or there is nothing to adapt.
    """
    if rank < 1:
        raise InputError(f"lora: the rank must be at least 1, got {rank}")
    peft = _peft()
    targets = adaptable(model)
    if not targets:
        raise InputError("lora: this model has no linear map inside its layers to adapt")
    config = peft.LoraConfig(
        r=rank, lora_alpha=2 * rank if alpha is None else alpha, target_modules=targets
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        peft.inject_adapter_in_model(config, model)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.float()
        else:
            parameter.requires_grad_(False)
    _check_called(model)
    return targets


def adaptable(model: Decoder) -> list[str]:
    """Names of the linear maps that an adapter would act on."""
    routers = tuple(
        f"{name}." for name, m in model.named_modules() if isinstance(m, Router | TokenRouter)
    )
    return [
        name
        for name, module in model.named_modules()
        if type(module) is nn.Linear
        and name.startswith("layers.")
        and name.rpartition(".")[2] not in READ_AS_WEIGHT
        and not name.startswith(routers)
    ]


def adapters(model: nn.Module) -> dict[str, Any]:
    """The adapted layers of `model`, by name."""
    if not any("lora_" in name for name, _ in model.named_parameters()):
        return {}
    layer = _peft_layer()
    return {name: m for name, m in model.named_modules() if isinstance(m, layer)}


@contextmanager
def disabled(model: nn.Module) -> Iterator[None]:
    """Inside the block `model` is what it was before its adapters."""
    found = adapters(model)
    for layer in found.values():
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in found.values():
            layer.enable_adapters(True)


def merge(model: nn.Module) -> None:
    """Add the adapters to the weights and take them out, in place; every parameter learns again."""
    for name, layer in adapters(model).items():
        layer.merge()
        parent, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(parent), leaf, layer.get_base_layer())
    for parameter in model.parameters():
        parameter.requires_grad_(True)


def _check_called(model: Decoder) -> None:
    found = adapters(model)
    called: set[str] = set()
    handles = [
        layer.register_forward_pre_hook(lambda m, x, name=name: called.add(name))
        for name, layer in found.items()
    ]
    try:
        with torch.no_grad():
            model(torch.zeros(1, 2, dtype=torch.long, device=model.device))
    finally:
        for handle in handles:
            handle.remove()
    missed = sorted(found.keys() - called)
    if missed:
        raise InputError(
            f"lora: {', '.join(missed[:3])}{' and others' if len(missed) > 3 else ''} "
            "is read past its adapter, which would learn nothing; train without --lora"
        )


def _peft() -> Any:
    try:
        import peft
    except ImportError:
        raise MissingCapability(
            "low-rank adapters need the extra 'align'", "pip install 'worthit[align]'"
        ) from None
    return peft


def _peft_layer() -> Any:
    from peft.tuners.lora import LoraLayer

    return LoraLayer
