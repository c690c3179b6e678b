"""A whole model into few bits, in place: which matrices, by which method.

The matrices of all layers go into one format. Embedding and output head, of which a small model
with a large vocabulary has most, go into another or stay: at 4 bits they cost most of the quality.
Routers stay, for a rounding there sends a token elsewhere; so do norms, biases, convolutions,
states, and matrices whose rows do not divide into groups.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

from torch import Tensor, nn

from worthit.errors import InputError, WorthitError, unknown_name
from worthit.nn.decoder import Decoder
from worthit.nn.moe.experts import Experts
from worthit.nn.quant.grid import Grid, fitting, grid_of
from worthit.nn.quant.linear import Stored, StoredEmbedding, StoredLinear, StoredStack

Method = Literal["rtn", "awq", "gptq"]
TABLES = ("embedding", "head")
METHODS = ("rtn", "awq", "gptq")
QUANT_METHOD = "worthit"
# `done`, `of`: matrices, or layers where a method goes through calibration text.
OnProgress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class Quantized:
    """What `quantize` did.

    Attributes:
        config: what `config.json` says of it, under `quantization_config`.
        n_stored: matrices in few bits, tables included.
        n_params_stored: their numbers.
        n_params_kept: numbers that stay as they were.
        kept: matrices among those, and why.
        bytes_before, bytes_after: of the whole model, scales included.
        notes: what a method could not do.
    """

    config: dict[str, Any]
    n_stored: int
    n_params_stored: int
    n_params_kept: int
    kept: dict[str, str]
    bytes_before: int
    bytes_after: int
    notes: tuple[str, ...] = ()


def quantize(
    model: Decoder,
    weights: str,
    *,
    method: Method = "rtn",
    embeddings: str | None = "int8",
    calibration: Tensor | None = None,
    act_order: bool = True,
    on_progress: OnProgress | None = None,
) -> Quantized:
    """Store the matrices of `model` in few bits, in place.

    Args:
        model: as `load_model` gives it; not laid out for inference.
        weights: format of the layers' matrices, one of `worthit.nn.quant.grid.GRIDS`.
        method: `rtn` rounds each number to the nearest code; `awq` and `gptq` look at what the
            matrices meet on `calibration`.
        embeddings: format of embedding and output head; None leaves them as they are.
        calibration: ids `(sequences, n)` of text like what the model will see.
        act_order: of `gptq`: the columns with the largest inputs first.
        on_progress: called with how much is done, of how much.

    Raises:
        InputError: a method without its calibration, or one that the format does not go with.
        UnknownName: a format or a method that is not known.
        WorthitError: a model that is quantized or laid out for inference already.
    """
    grid = grid_of(weights)
    table_grid = None if embeddings is None else grid_of(embeddings)
    _check(model, grid, method, calibration)
    bytes_before = nbytes(model)
    n_params = sum(p.numel() for p in model.parameters())
    linears, kept = targets(model, grid)
    kept |= store_experts(model, grid)
    notes: tuple[str, ...] = ()
    if method == "rtn":
        for done, (name, (linear, own)) in enumerate(linears.items(), 1):
            put(model, name, StoredLinear.of(linear, own))
            if on_progress is not None:
                on_progress(done, len(linears))
    else:
        from worthit.nn.quant import calibrate

        assert calibration is not None
        notes = calibrate.quantize_layers(
            model, grid, calibration, method=method, act_order=act_order, on_progress=on_progress
        )
    if table_grid is not None:
        kept |= store_tables(model, table_grid)
    return _finished(model, grid, table_grid, method, kept, notes, n_params, bytes_before)


def _check(model: Decoder, grid: Grid, method: str, calibration: Tensor | None) -> None:
    if method not in METHODS:
        raise unknown_name("method", method, METHODS)
    if model.quantization is not None:
        raise WorthitError(
            f"the model's weights are {model.quantization['weights']} already; load it with "
            "packed=False to quantize it anew"
        )
    if model.is_optimized:
        raise WorthitError("a model laid out for inference cannot be quantized; load it again")
    if method == "rtn":
        return
    if grid.kind == "ternary":
        raise InputError(f"method: {method} does not help three values; use rtn")
    if calibration is None:
        raise InputError(f"method: {method} needs calibration text; give it, or use rtn")
    if calibration.ndim != 2 or not calibration.numel():
        shape = list(calibration.shape)
        raise InputError(f"calibration: must be ids (sequences, n), got the shape {shape}")


Targets = dict[str, tuple[nn.Linear, Grid]]


def targets(model: Decoder, grid: Grid) -> tuple[Targets, dict[str, str]]:
    """The layers' matrices to store, each with its grid, by name; and why others stay.

    Where rows do not divide into the groups of `grid`, narrower ones do.
    """
    linears: Targets = {}
    kept = {}
    for name, module in model.layers.named_modules(prefix="layers"):
        if type(module) is not nn.Linear:
            continue
        if "router" in name.split("."):
            kept[name] = "a router"
        elif module.out_features == 1:
            kept[name] = "a gate of one number"
        elif (own := fitting(grid, module.in_features)) is None:
            kept[name] = _misfit(module.in_features)
        else:
            linears[name] = (module, own)
    return linears, kept


def store_experts(model: Decoder, grid: Grid) -> dict[str, str]:
    """Stacks of experts in `grid`, each number to its nearest code; why not, where they stay."""
    kept = {}
    for name, module in list(model.layers.named_modules(prefix="layers")):
        for part in ("up", "down") if isinstance(module, Experts) else ():
            weight = getattr(module, part)
            own = fitting(grid, weight.shape[-1])
            if own is not None:
                delattr(module, part)
                setattr(module, part, StoredStack.of_stack(weight, own))
            else:
                kept[f"{name}.{part}"] = _misfit(weight.shape[-1])
    return kept


def _misfit(columns: int) -> str:
    return f"{columns} columns, which no group divides"


def store_tables(model: Decoder, grid: Grid) -> dict[str, str]:
    """Embedding and output head in `grid`, in place; why not, where they stay."""
    kept = {}
    for name in TABLES:
        module = getattr(model, name)
        if module is None:
            continue
        own = fitting(grid, module.weight.shape[1])
        if own is None:
            kept[name] = _misfit(module.weight.shape[1])
            continue
        kind = StoredEmbedding if name == "embedding" else StoredLinear
        setattr(model, name, kind.of(module, own))
    return kept


def put(model: nn.Module, name: str, module: nn.Module) -> None:
    """Put `module` where `name` is."""
    owner, _, leaf = name.rpartition(".")
    parent = model.get_submodule(owner)
    if isinstance(getattr(parent, leaf), nn.Parameter):
        delattr(parent, leaf)
    setattr(parent, leaf, module)


def nbytes(model: nn.Module) -> int:
    """Bytes of all parameters and buffers, each once."""
    held = {id(t): t for t in (*model.parameters(), *model.buffers())}
    return sum(t.numel() * t.element_size() for t in held.values())


def _finished(
    model: Decoder,
    grid: Grid,
    table_grid: Grid | None,
    method: str,
    kept: dict[str, str],
    notes: tuple[str, ...],
    n_params: int,
    bytes_before: int,
) -> Quantized:
    stored = {name: m for name, m in model.named_modules() if isinstance(m, Stored)}
    n_stored = sum(rows * columns for rows, columns in (m.shape for m in stored.values()))
    p = model.spec.precision
    has_tables = table_grid is not None and not set(TABLES) & kept.keys()
    has_experts = any(name.endswith((".experts.up", ".experts.down")) for name in kept)
    config: dict[str, Any] = {
        "quant_method": QUANT_METHOD,
        "weights": grid.name,
        "embeddings": table_grid.name if table_grid and has_tables else None,
        "experts": p.activations if has_experts else None,
        "method": method,
    }
    usual = {True: config["embeddings"], False: grid.name}
    other = {n: m.grid.name for n, m in stored.items() if m.grid.name != usual[n in TABLES]}
    if other:
        config["formats"] = other
    model.quantization = config
    model.spec = replace(
        model.spec,
        precision=replace(
            p,
            weights=grid.name,
            experts=config["experts"],
            embeddings=config["embeddings"] or p.embeddings,
        ),
    )
    return Quantized(
        config=config,
        n_stored=len(stored),
        n_params_stored=n_stored,
        n_params_kept=n_params - n_stored,
        kept=kept,
        bytes_before=bytes_before,
        bytes_after=nbytes(model),
        notes=notes,
    )
