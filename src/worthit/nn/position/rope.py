"""Rotary position embedding: turn query and key by their positions, so that scores see distance.

Su et al. 2021, "RoFormer: Enhanced Transformer with Rotary Position Embedding", arXiv:2104.09864,
equations 14-16 and 34. For each pair i of channels (a, b) at position m

    (a, b) -> (a cos m theta_i - b sin m theta_i, b cos m theta_i + a sin m theta_i)

so that the product of a query turned by m and a key turned by n depends on m - n alone.

| paper | here |
|---|---|
| theta_i = 10000^(-2i/d) | `frequencies`, `(rotary_dim / 2,)` |
| m theta_i | position times frequency, in fp32: in bf16 the angle is wrong beyond a few hundred |
| R x | `rotate(x, cos, sin)` |

The paper turns neighbouring channels (2i, 2i+1): `is_interleaved`. Most checkpoints turn channel i
with i + d/2 instead, which is the same after permuting the rows of the projections. Stretching the
context changes `frequencies` and an overall factor; each method stands in its own file.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from worthit.spec.model import Position

if TYPE_CHECKING:
    from worthit.nn.tokens import Tokens


def base_frequencies(rotary_dim: int, theta: float) -> Tensor:
    """theta^(-2i/d) for each turned pair, `(rotary_dim / 2,)`, fp32."""
    exponents = torch.arange(0, rotary_dim, 2, dtype=torch.int64).float() / rotary_dim
    return 1.0 / theta**exponents


def frequencies(position: Position, rotary_dim: int, length: int) -> tuple[Tensor, float]:
    """Frequencies of each pair for sequences of `length`, and the factor on cos and sin.

    Methods that look at the length (dynamic NTK, LongRoPE) change their answer as it grows.
    """
    from worthit.nn.position import longrope, ntk_scaling, position_interpolation, yarn

    scaling = position.scaling
    if scaling is None:
        return base_frequencies(rotary_dim, position.rope_theta), 1.0
    stretch = {
        "linear": position_interpolation.stretch,
        "ntk": ntk_scaling.stretch,
        "dynamic": ntk_scaling.stretch_dynamically,
        "llama3": ntk_scaling.stretch_by_wavelength,
        "yarn": yarn.stretch,
        "longrope": longrope.stretch,
    }[scaling.kind]
    return stretch(scaling, rotary_dim, position.rope_theta, length)


def changes_with_length(position: Position) -> bool:
    """Whether a sequence's rotation depends on how long it is."""
    scaling = position.scaling
    return scaling is not None and scaling.kind in ("dynamic", "longrope")


def rotation(
    position: Position, rotary_dim: int, tokens: Tokens, like: Tensor
) -> tuple[Tensor, Tensor]:
    """Cosine and sine for the tokens of one pass, `(batch, 1, n, rotary_dim / 2)`, fp32."""
    length = tokens.past + tokens.n
    if tokens.is_real is not None:
        # Of the longest sequence: padding is not length.
        length = int(tokens.positions.max()) + 1
    freqs, factor = frequencies(position, rotary_dim, length)
    angles = tokens.positions[:, None, :, None].float() * freqs.to(like.device)
    return angles.cos() * factor, angles.sin() * factor


def rotate(x: Tensor, cos: Tensor, sin: Tensor, *, is_interleaved: bool) -> Tensor:
    """Turn the first `2 * cos.shape[-1]` channels of `x` `(batch, heads, n, head_dim)`."""
    half = cos.shape[-1]
    turned, rest = x[..., : 2 * half].float(), x[..., 2 * half :]
    if is_interleaved:
        a, b = turned[..., 0::2], turned[..., 1::2]
        turned = torch.stack([a * cos - b * sin, b * cos + a * sin], dim=-1).flatten(-2)
    else:
        a, b = turned[..., :half], turned[..., half:]
        turned = torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)
    turned = turned.to(x.dtype)
    return turned if rest.shape[-1] == 0 else torch.cat([turned, rest], dim=-1)


def in_halves(cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """What `rotate_halves` wants: `(cos, cos)` and `(-sin, sin)`, twice as wide."""
    return torch.cat([cos, cos], dim=-1), torch.cat([-sin, sin], dim=-1)


def rotate_halves(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn all channels of `x`, each with that half the width away, in few operations.

    For a few tokens an operation costs more to start than to carry out: `rotate` takes nine.
    """
    wide = x.float()
    turned = torch.addcmul(wide * cos, wide.roll(x.shape[-1] // 2, dims=-1), sin)
    return turned.to(x.dtype)
