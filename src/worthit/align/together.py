"""Two completions of one prompt in one row: the prompt is read once for both.

    prompt  y_w (without its last token)  y_l (likewise)  padding

A token of y_l sees the prompt and y_l, never y_w, and stands where it would stand right behind the
prompt: every log-probability, and every gradient, is the one of a row of its own. What is saved are
the prompt's tokens of one of the two rows, in all layers, forward and back.

Source:
    Wang & Hegde 2024, "Accelerating Direct Preference Optimization with Prefix Sharing",
    arXiv:2410.20305, section 3. There a block-sparse kernel has the mask; here it is a mask.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from worthit.nn import Decoder
from worthit.nn.attention.gqa import GroupedQueryAttention
from worthit.nn.decoder import Block
from worthit.nn.ffn import FeedForward
from worthit.nn.tokens import Tokens
from worthit.train.batch import IGNORE, Batch

# Of the tokens in rows of their own, how many may remain for this to pay: what attention with a
# mask costs beside the causal kernel takes some of the gain.
LEAST_GAIN = 0.9


@dataclass(frozen=True)
class Together:
    """Rows of two completions each.

    Attributes:
        input_ids: `(n, width)`.
        tokens: how they see each other.
        rows: of the flattened `input_ids`, where each target of the original batch is predicted;
            the last token of a prompt stands there twice.
    """

    input_ids: Tensor
    tokens: Tokens
    rows: Tensor


def together(model: nn.Module, batch: Batch, rows: Tensor) -> Together | None:
    """`batch` with its lower half beside its upper one; None where that cannot be, or is no gain.

    Args:
        batch: `2n` rows, padded on the right; rows i and n + i should begin with one prompt.
        rows: places of the targets in the flattened batch.
    """
    ids, n = batch.input_ids, len(batch.input_ids) // 2
    if len(ids) % 2 or not n or not _is_possible(model):
        return None
    width = ids.shape[1]
    is_target = batch.targets != IGNORE
    counts = is_target.sum(dim=1)
    first = is_target.int().argmax(dim=1)  # the last token of each prompt
    place = torch.arange(width, device=ids.device)
    is_run = (place >= first[:, None]) & (place < (first + counts)[:, None])
    in_prompt = place <= first[:n, None]
    is_shared = (
        (first[:n] == first[n:]).all()
        & (counts > 0).all()
        & (is_run == is_target).all()
        & ((ids[:n] == ids[n:]) | ~in_prompt).all()
    )
    # Inputs of a completion: all but its last token.
    one, other = counts[:n] - 1, counts[n:] - 1
    end = first[:n] + 1 + one
    wide = int((end + other).max())
    if not bool(is_shared) or wide > LEAST_GAIN * 2 * width:
        return None
    slots = torch.arange(wide, device=ids.device)[None]  # (1, wide)
    is_other = slots >= end[:, None]
    source = torch.where(is_other, slots - one[:, None], slots)
    both = torch.where(
        is_other,
        ids[n:].gather(1, source.clamp(max=width - 1)),
        ids[:n].gather(1, source.clamp(max=width - 1)),
    )
    # Padding sees what is before it, as any token may; nobody looks at it.
    in_one = (slots > first[:n, None]) & ~is_other
    sees = (slots[..., None] >= slots[:, None]) & ~(is_other[..., None] & in_one[:, None])
    tokens = Tokens(n=wide, past=0, positions=source, slot_positions=source, among=sees[:, None])
    row, column = rows // width, rows % width
    pair = row % n
    moved = (row >= n) & (column > first[pair])
    at = pair * wide + column + torch.where(moved, one[pair], 0)
    return Together(both, tokens, at)


def _is_possible(model: nn.Module) -> bool:
    """Whether every layer of `model` looks at tokens through a mask alone."""
    if not isinstance(model, Decoder) or type(model).run is not Decoder.run:
        return False
    # Whoever watches the stream replaces it, and expects rows as they are.
    if "logits_at" in vars(model):
        return False
    return bool(model.layers) and all(
        type(block) is Block
        and (block.ffn is None or type(block.ffn) is FeedForward)
        and all(_reads_by_mask(mixer) for mixer in block.mixers)
        for block in model.layers
    )


def _reads_by_mask(mixer: nn.Module) -> bool:
    return (
        isinstance(mixer, GroupedQueryAttention)
        and mixer.is_plain
        and mixer.takes_parts
        and mixer.spec.window is None
    )
