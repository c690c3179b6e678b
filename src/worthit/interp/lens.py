"""The logit lens: what every layer would say, if it were the last.

nostalgebraist 2020, "interpreting GPT: the logit lens": the stream after each layer goes through
the final norm and the output head. Early layers write in other bases, so that what is unreadable
there need not be absent (Belrose et al. 2023, "Eliciting Latent Predictions", arXiv:2303.08112).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from worthit.interp.hooks import capture
from worthit.nn.decoder import Decoder


@dataclass(frozen=True)
class LayerSays:
    """What one layer would say next.

    Attributes:
        top: the likeliest tokens with their probabilities.
        rank: of the token that was asked for, 0 the likeliest; None where none was.
        probability: of that token.
    """

    point: str
    top: tuple[tuple[int, float], ...]
    rank: int | None = None
    probability: float | None = None


def lens_points(model: Decoder) -> list[str]:
    """The stream after the embedding and after each layer."""
    return ["embed", *(f"layers.{i}.resid_post" for i in range(len(model.layers)))]


@torch.inference_mode()
def lens_logits(model: Decoder, input_ids: Tensor) -> dict[str, Tensor]:
    """Logits `(batch, n, vocab_size)` of every layer; the last one's are the model's own."""
    with capture(model, lens_points(model), is_detached=True) as seen:
        model(input_ids)
    return {point: model.logits(seen[point]) for point in lens_points(model)}


@torch.inference_mode()
def logit_lens(
    model: Decoder, ids: list[int], *, token: int | None = None, k: int = 5, position: int = -1
) -> list[LayerSays]:
    """What each layer would say after `ids`, from the embedding to the last.

    Args:
        token: whose rank and probability are wanted.
        position: of the token after which it speaks.
    """
    said = []
    with capture(model, lens_points(model), is_detached=True) as seen:
        model(torch.tensor([ids], device=model.device))
    for point in lens_points(model):
        logits = model.logits(seen[point][:, [position]])[0, 0].float()
        p = logits.softmax(-1)
        best = p.topk(k)
        top = tuple(zip(best.indices.tolist(), best.values.tolist(), strict=True))
        rank = None if token is None else int((logits > logits[token]).sum())
        said.append(LayerSays(point, top, rank, None if token is None else float(p[token])))
    return said
