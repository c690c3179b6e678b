"""From a model to the same model with narrow products.

What is replaced: every linear map inside the layers that `worthit.train.optim.roles` calls a
matrix, and routed experts. What stays wide, as the papers of all these formats keep it: embeddings,
output head, norms, routers, gates of one output, attention's own products (queries with keys,
scores with values), scans and convolutions. So does the projection of MLA's latents to keys and
values, which its absorbed form multiplies in another order.

Parameters keep their names, values and identity: optimizers, checkpoints and averages see the
same model.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar, get_args

from torch import Tensor, nn

from worthit.errors import SpecError, unknown_name
from worthit.nn.attention.mla import MultiHeadLatentAttention
from worthit.nn.moe.experts import Experts
from worthit.nn.moe.soft_gating import SoftGating
from worthit.train.optim.roles import Parts, join, roles, split
from worthit.train.precision import bitnet, fp8, mx, nvfp4
from worthit.train.precision.floats import FLOATS
from worthit.train.precision.linear import Narrow, NarrowExperts, NarrowLinear, Quantizer

Model = TypeVar("Model", bound=nn.Module)
T = TypeVar("T")


def apply_precision(model: Model, name: str, **options: Any) -> Model:
    """Give the linear maps of `model` narrow products, in place, and return it.

    Args:
        model: to be trained, or evaluated as it will have been.
        name: one of `PRECISIONS`.
        options: of the format; `forward` and `gradient` name formats of elements.

            fp8     `forward="e4m3"`, `gradient="e5m2"`, `scaling="tensor"` or `"row"`
            mxfp8   `forward="e4m3"`, `gradient="e4m3"`, `rule="up"` or `"floor"`
            mxfp6   `forward="e2m3"`, `gradient="e3m2"`, `rule`
            mxfp4   `forward="e2m1"`, `gradient="e2m1"`, `rule`, `is_stochastic=True`
            nvfp4   `is_stochastic=True`
            bitnet  `has_sub_norm=True`

            `is_stochastic` rounds gradients by chance (Tseng et al. 2025, "Training LLMs with
            MXFP4", arXiv:2502.20586, section 3); models that draw so are trained one by one.

    Raises:
        UnknownName: no such format, element, rule or scaling.
        SpecError: an option that the format does not have; a model that is narrow already, or whose
            experts meet in one product.
    """
    if name not in PRECISIONS:
        raise unknown_name("precision", name, PRECISIONS)
    try:
        made = PRECISIONS[name](**options)
    except TypeError as error:
        raise SpecError(f"{name}: {error}; apply_precision lists its options") from None
    named = dict(model.named_parameters())
    parts = {id(named[n]): role.parts for n, role in roles(model).items() if role.kind == "matrix"}
    wide: set[int] = set()
    for module in model.modules():
        if isinstance(module, NarrowLinear | NarrowExperts):
            raise SpecError(f"the model is in {module.narrow.name} already; build it anew")
        if isinstance(module, SoftGating):
            raise SpecError("soft gating multiplies all its experts at once; narrow a topk-moe")
        if isinstance(module, MultiHeadLatentAttention):
            wide.add(id(module.kv_up))
    for parent in list(model.modules()):
        for child_name, child in list(parent.named_children()):
            if isinstance(child, Experts):
                up, down = (made(parts[id(p)]) for p in (child.up, child.down))
                setattr(parent, child_name, NarrowExperts(child, up, down))
            elif type(child) is nn.Linear and id(child.weight) in parts and id(child) not in wide:
                setattr(parent, child_name, NarrowLinear(child, made(parts[id(child.weight)])))
    return model


@dataclass(frozen=True)
class Narrowed:
    """Builds a model and gives it narrow products: `narrowed(seeded(spec), "fp8")(seed)`.

    A value, as `train_many` wants its `build`: a process of its own can be told it.
    """

    build: Callable[[int], nn.Module]
    name: str
    options: tuple[tuple[str, Any], ...] = ()

    def __call__(self, seed: int) -> nn.Module:
        """The model of `seed`."""
        return apply_precision(self.build(seed), self.name, **dict(self.options))


def narrowed(build: Callable[[int], nn.Module], name: str, **options: Any) -> Narrowed:
    """From a function that builds models of a seed to one that builds them narrow."""
    return Narrowed(build, name, tuple(options.items()))


# What a weight of these parts is multiplied in.
Made = Callable[[Parts], Narrow]


def _fp8(*, forward: str = "e4m3", gradient: str = "e5m2", scaling: fp8.Scaling = "tensor") -> Made:
    def quantizer(element: str) -> Quantizer:
        format = _known("element format", element, FLOATS)
        _known("scaling", scaling, dict.fromkeys(get_args(fp8.Scaling)))
        return lambda x, axis: fp8.quantize(x, format, scaling=scaling, axis=axis)

    narrow = Narrow("fp8", quantizer(forward), quantizer(forward), quantizer(gradient))
    return lambda parts: narrow


def _mx(
    name: str,
    *,
    forward: str,
    gradient: str,
    rule: mx.Rule = "up",
    is_stochastic: bool = False,
) -> Made:
    first, second = (_known("element format", each, FLOATS) for each in (forward, gradient))
    _known("rule", rule, dict.fromkeys(get_args(mx.Rule)))

    def rounded(x: Tensor, axis: int) -> Tensor:
        return mx.quantize(x, first, axis=axis, rule=rule)

    def gradients(x: Tensor, axis: int) -> Tensor:
        # By chance and rounded up, or what is clipped would be lost on one side.
        up: mx.Rule = "up" if is_stochastic else rule
        return mx.quantize(x, second, axis=axis, rule=up, is_stochastic=is_stochastic)

    narrow = Narrow(name, rounded, rounded, gradients, is_stochastic=is_stochastic)
    return lambda parts: narrow


def _nvfp4(*, is_stochastic: bool = True) -> Made:
    def rounded(x: Tensor, axis: int) -> Tensor:
        return nvfp4.quantize(x, axis=axis)

    def gradients(x: Tensor, axis: int) -> Tensor:
        return nvfp4.quantize(x, axis=axis, is_stochastic=is_stochastic)

    narrow = Narrow("nvfp4", rounded, rounded, gradients, is_stochastic=is_stochastic)
    return lambda parts: narrow


def _bitnet(*, has_sub_norm: bool = True) -> Made:
    def activations(x: Tensor, axis: int) -> Tensor:
        return bitnet.quantize_activations(x)

    def made(parts: Parts) -> Narrow:
        def weights(w: Tensor, axis: int) -> Tensor:
            # Gate and value in one parameter are two matrices, each with its scale.
            return join(bitnet.quantize_weights(split(w, parts)), parts)

        return Narrow("bitnet", activations, weights, has_sub_norm=has_sub_norm)

    return made


PRECISIONS: dict[str, Callable[..., Made]] = {
    "fp8": _fp8,
    "mxfp8": partial(_mx, "mxfp8", forward="e4m3", gradient="e4m3"),
    "mxfp6": partial(_mx, "mxfp6", forward="e2m3", gradient="e3m2"),
    "mxfp4": partial(_mx, "mxfp4", forward="e2m1", gradient="e2m1", is_stochastic=True),
    "nvfp4": _nvfp4,
    "bitnet": _bitnet,
}


def _known(kind: str, name: str, known: dict[str, T]) -> T:
    if name not in known:
        raise unknown_name(kind, name, known)
    return known[name]
