"""What every sparse autoencoder has: an encoder, a decoder, a bias between them, an objective.

    f = act(encoder (x - b_dec) + b_enc)        y = f decoder + b_dec

| sae_lens | here |
|---|---|
| `W_enc` `(d_in, d_sae)` | `encoder` `(width, d_in)`, transposed |
| `W_dec` `(d_sae, d_in)` | `decoder` `(width, d_in)` |
| `apply_b_dec_to_input` | `is_centred` |
| `normalize_activations` | `normalisation` |

The objective is the squared error of a row, summed over its channels and averaged over rows, and
what a kind adds to it. Gradients are to the parameters alone: what is reconstructed is data.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from worthit.errors import InputError
from worthit.interp.sae.entries import Encoded, Entries

Normalisation = Literal["none", "layer_norm", "constant_norm_rescale"]


@dataclass(frozen=True, kw_only=True)
class SaeConfig:
    """Sizes and options that all kinds share; a kind adds its own.

    Attributes:
        d_in: channels of what is reconstructed.
        width: latents.
        is_centred: whether the decoder's bias is taken from the input first.
        normalisation: of each input, undone after decoding. `layer_norm`: mean 0 and deviation 1;
            `constant_norm_rescale`: length sqrt(d_in).
        has_unit_decoder: decoder rows are kept at length 1; gradients along them are taken out.
        init_norm: length of decoder rows before training, where it is free.
    """

    d_in: int
    width: int
    is_centred: bool = True
    normalisation: Normalisation = "none"
    has_unit_decoder: bool = False
    init_norm: float = 0.1

    def __post_init__(self) -> None:
        for name in ("d_in", "width"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}: must be at least 1, got {getattr(self, name)}")

    def positive(self, *names: str) -> None:
        """Raise where one of these fields is not above 0."""
        for name in names:
            if not getattr(self, name) > 0:
                raise InputError(f"{name}: must be above 0, got {getattr(self, name)}")


@dataclass
class Objective:
    """What one batch gives: the loss, its parts by name, and which latents were on how often."""

    loss: Tensor
    parts: dict[str, Tensor]
    fired: Tensor
    mean_active: float
    reconstruction: Tensor


class SparseAutoencoder(nn.Module):
    """Base of all kinds. `latents` are the numbers a text is described by, most of them 0."""

    kind: ClassVar[str]
    config_class: ClassVar[type[SaeConfig]]
    # Whether dead latents are given a new start between steps; others have a loss for them.
    resamples: ClassVar[bool] = False

    def __init__(self, config: SaeConfig) -> None:
        super().__init__()
        self.config = config
        rows = nn.functional.normalize(torch.randn(config.width, config.d_in), dim=-1)
        length = 1.0 if config.has_unit_decoder else config.init_norm
        self.decoder = nn.Parameter(rows * length)
        self.encoder = nn.Parameter(rows * config.init_norm)
        self.b_dec = nn.Parameter(torch.zeros(config.d_in))
        self.add_biases()

    def add_biases(self) -> None:
        """The parameters of a kind beside the shared ones."""
        self.b_enc = nn.Parameter(torch.zeros(self.config.width))

    # What a kind defines

    def activate(self, h: Tensor) -> Tensor:
        """Latents of pre-activations `(..., width)`, in use."""
        raise NotImplementedError

    def objective(self, x: Tensor, *, dead: Tensor | None = None, warm: float = 1.0) -> Objective:
        """The loss of `x` `(batch, d_in)`.

        Args:
            dead: `(width,)` booleans, latents that have not been on for long.
            warm: what the sparsity penalty is multiplied by, from 0 to 1 during its warm-up.
        """
        raise NotImplementedError

    # What all have

    @property
    def bias(self) -> Tensor:
        """What the encoder adds before anything else."""
        return self.b_enc

    def encoded(self, x: Tensor) -> Encoded:
        """Pre-activations of `x` `(batch, d_in)`, with a way back to the parameters."""
        shift = self.b_dec if self.config.is_centred else None
        return Encoded(x, self.encoder, self.bias, shift)

    def pre_activations(self, x: Tensor) -> Tensor:
        """`(..., width)`, differentiable in `x`."""
        x = x - self.b_dec if self.config.is_centred else x
        return x @ self.encoder.T + self.bias

    def encode(self, x: Tensor) -> Tensor:
        """Latents `(..., width)` of activations `(..., d_in)`."""
        normalised, _ = self.normalise(x)
        return self.activate(self.pre_activations(normalised))

    def decode(self, latents: Tensor) -> Tensor:
        """`(..., d_in)` of latents, normalised where the inputs are."""
        return latents @ self.decoder + self.b_dec

    def forward(self, x: Tensor) -> Tensor:
        """The reconstruction of activations `(..., d_in)`."""
        normalised, undo = self.normalise(x)
        return undo(self.decode(self.activate(self.pre_activations(normalised))))

    def normalise(self, x: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """`x` as the encoder wants it, and what undoes that."""
        kind = self.config.normalisation
        if kind == "layer_norm":
            mean, deviation = x.mean(-1, keepdim=True), x.std(-1, keepdim=True)
            return (x - mean) / (deviation + 1e-5), lambda y: y * deviation + mean
        if kind == "constant_norm_rescale":
            scale = self.config.d_in**0.5 / x.norm(dim=-1, keepdim=True)
            return x * scale, lambda y: y / scale
        return x, lambda y: y

    @property
    def norms(self) -> Tensor:
        """Lengths of decoder rows, `(width,)`."""
        return self.decoder.norm(dim=-1)

    def directions(self) -> Tensor:
        """Decoder rows of length 1, `(width, d_in)`: where each latent points."""
        return nn.functional.normalize(self.decoder.detach(), dim=-1)

    def made(
        self,
        x: Tensor,
        e: Entries,
        f: Tensor,
        parts: dict[str, Tensor],
        *,
        decoded: Tensor | None = None,
    ) -> Objective:
        """The objective of values `f` at `e`, with the parts that a kind adds."""
        y = (e.decode(f, self.decoder) if decoded is None else decoded) + self.b_dec
        error = (y - x).square().sum() / len(x)
        loss = error
        for part in parts.values():
            loss = loss + part
        with torch.no_grad():
            fired = e.fired(f.detach())
        return Objective(
            loss,
            {"error": error, **parts},
            fired,
            float(fired.sum()) / len(x),
            y.detach(),
        )

    # What training does around a step

    def before_step(self) -> None:
        """Take out of the decoder's gradient what would only lengthen its rows."""
        if self.config.has_unit_decoder and self.decoder.grad is not None:
            rows, grad = self.decoder.data, self.decoder.grad
            along = (grad * rows).sum(-1, keepdim=True)
            grad.sub_(along * rows / rows.square().sum(-1, keepdim=True).clamp_min(1e-12))

    @torch.no_grad()
    def after_step(self) -> None:
        """Bring what is constrained back to where it must be."""
        if self.config.has_unit_decoder:
            self.decoder.div_(self.norms[:, None].clamp_min(1e-8))

    @torch.no_grad()
    def scale_inputs(self, factor: float) -> None:
        """Make it read inputs that are `1 / factor` times those that it was trained on.

        Its latents stay the same numbers; reconstructions follow the inputs.
        """
        self.encoder.mul_(factor)
        self.decoder.div_(factor)
        self.b_dec.div_(factor)

    @torch.no_grad()
    def whiten_inputs(self, mean: Tensor, there: Tensor, back: Tensor) -> None:
        """Make it read `x` where it was trained on `(x - mean) there`.

        Its latents stay the same numbers; reconstructions come back by `y back + mean`.

        Args:
            mean: `(d_in,)`.
            there, back: `(d_in, d_in)`, inverse to each other; computed with in their precision.
        """
        encoder = self.encoder.to(there) @ there.T
        self.encoder.copy_(encoder)
        if not self.config.is_centred:
            self.shift_latents((encoder @ mean).to(self.encoder))
        self.decoder.copy_(self.decoder.to(back) @ back)
        self.b_dec.copy_(self.b_dec.to(back) @ back + mean)

    @torch.no_grad()
    def fold_norms(self) -> None:
        """Make decoder rows unit vectors, and latents as large as what they contribute."""
        norms = self.norms.clamp_min(1e-8)
        self.decoder.div_(norms[:, None])
        self.encoder.mul_(norms[:, None])
        self.scale_latents(norms)

    def scale_latents(self, by: Tensor) -> None:
        """What a kind has to multiply when its pre-activations are, `by` `(width,)`."""
        self.b_enc.mul_(by)

    def shift_latents(self, by: Tensor) -> None:
        """Make up for pre-activations that are larger, `by` `(width,)`."""
        self.b_enc.sub_(by)


def options_of(config: SaeConfig) -> dict[str, Any]:
    """A config as plain data."""
    return {f.name: getattr(config, f.name) for f in fields(config)}
