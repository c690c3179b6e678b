"""Directions of a stream of activations: where they come from, and how they are kept.

A direction is a vector `(d,)` at a point of a model (`layers.7.resid_post`). Sources:

| from | what | paper |
|---|---|---|
| two kinds of text | mean of one minus mean of the other | Marks & Tegmark 2023, arXiv:2310.06824 |
| labels | the normal of a logistic probe | Alain & Bengio 2016, arXiv:1610.01644 |
| a latent of an autoencoder | its row of the decoder | Templeton et al. 2024 |
| nothing | a random one: the control that every other must beat | |
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from worthit.errors import InputError

FORMAT = "worthit.direction/1"


@dataclass(frozen=True)
class Direction:
    """A vector at a point of a model.

    Attributes:
        vector: `(d,)`, of the length that its source gave it.
        point: where it was found, a name of `worthit.interp.points`.
        method: how: `difference-in-means`, `linear-probe`, `sae`, `random`.
        middle: the projection half-way between the two kinds, below which text is of the second.
        note: of what data it is.
    """

    vector: Tensor
    point: str
    method: str
    middle: float | None = None
    note: str = ""

    def __post_init__(self) -> None:
        problems = []
        if self.vector.ndim != 1:
            problems.append(f"vector: must be (d,), got shape {list(self.vector.shape)}")
        elif not bool(torch.isfinite(self.vector).all()):
            problems.append("vector: holds numbers that are not finite")
        elif float(self.vector.norm()) == 0:
            problems.append("vector: is zero, and points nowhere")
        if problems:
            raise InputError(*problems, context=f"direction at {self.point}")

    @property
    def unit(self) -> Tensor:
        """The vector at length 1."""
        return unit(self.vector)

    @property
    def norm(self) -> float:
        """Its length."""
        return float(self.vector.norm())

    def save(self, path: str | Path) -> None:
        """Write one safetensors file with its facts in the header."""
        from safetensors.torch import save_file

        facts = {"format": FORMAT, "point": self.point, "method": self.method, "note": self.note}
        if self.middle is not None:
            facts["middle"] = repr(self.middle)
        save_file({"vector": self.vector.detach().float().contiguous()}, str(path), facts)


def load_direction(path: str | Path) -> Direction:
    """The direction in a file that `Direction.save` wrote.

    Raises:
        InputError: no such file, or it holds something else.
    """
    from safetensors import SafetensorError, safe_open

    if not Path(path).is_file():
        raise InputError(f"{path}: there is no such file")
    try:
        with safe_open(str(path), "pt") as file:
            facts = file.metadata() or {}
            names = list(file.keys())
            if facts.get("format") != FORMAT or names != ["vector"]:
                raise InputError(
                    f"{path}: is no direction, got a safetensors file of {', '.join(names[:5])}; "
                    "write one with worthit steer --pairs FILE --save DIRECTION"
                )
            vector = file.get_tensor("vector")
    except SafetensorError as error:
        raise InputError(f"{path}: is no safetensors file: {error}") from None
    middle = facts.get("middle")
    return Direction(
        vector=vector,
        point=facts["point"],
        method=facts["method"],
        middle=None if middle is None else float(middle),
        note=facts.get("note", ""),
    )


def unit(vector: Tensor) -> Tensor:
    """`vector` at length 1."""
    return vector / vector.norm()


def difference_in_means(positive: Tensor, negative: Tensor) -> Tensor:
    """The mean of `positive` `(n, d)` minus that of `negative` `(m, d)`, in double precision.

    Raises:
        InputError: nothing on one side, different widths, or numbers that are not finite.
    """
    problems = []
    for name, x in (("positive", positive), ("negative", negative)):
        if x.ndim != 2 or not len(x):
            problems.append(f"{name}: must be (n, d) with n at least 1, got {list(x.shape)}")
        elif not bool(torch.isfinite(x).all()):
            problems.append(f"{name}: holds numbers that are not finite")
    if not problems and positive.shape[1] != negative.shape[1]:
        problems.append(f"widths differ: {positive.shape[1]} and {negative.shape[1]}")
    if problems:
        raise InputError(*problems)
    return (positive.double().mean(0) - negative.double().mean(0)).to(positive.dtype)


def from_pairs(positive: Tensor, negative: Tensor, point: str, note: str = "") -> Direction:
    """The difference in means as a direction, with the middle between both kinds."""
    v = difference_in_means(positive, negative)
    along = unit(v).double()
    middle = (positive.double().mean(0) @ along + negative.double().mean(0) @ along) / 2
    return Direction(v, point, "difference-in-means", middle=float(middle), note=note)


def from_sae(sae: Any, latent: int, point: str) -> Direction:
    """The decoder row of one latent of an autoencoder, at length 1 (Templeton et al. 2024).

    Args:
        sae: one of `worthit.interp.sae`, or of SAELens: `decoder` or `W_dec`, `(d_sae, d_in)`.

    Raises:
        InputError: there is no such latent.
    """
    rows: Tensor = sae.decoder if hasattr(sae, "decoder") else sae.W_dec
    if not 0 <= latent < len(rows):
        raise InputError(f"latent: must be from 0 to {len(rows) - 1}, got {latent}")
    return Direction(unit(rows[latent].detach().clone()), point, "sae", note=f"latent {latent}")


def random_like(vector: Tensor, seed: int) -> Tensor:
    """A direction drawn evenly from all of the length of `vector`: the control."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(vector.shape, generator=generator).to(vector)
    return unit(drawn) * vector.norm()


def cosines(vectors: dict[str, Tensor]) -> dict[tuple[str, str], float]:
    """The cosine of every two of several directions: how much they share before any is used."""
    names = list(vectors)
    return {
        (a, b): float(unit(vectors[a].double()) @ unit(vectors[b].double()))
        for i, a in enumerate(names)
        for b in names[i + 1 :]
    }
