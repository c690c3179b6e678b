"""No position encoding: the causal mask alone tells a decoder the order.

Haviv et al. 2022, "Transformer Language Models without Positional Encodings Still Learn Positional
Information", arXiv:2203.16634; Kazemnejad et al. 2023, "The Impact of Positional Encoding on Length
Generalization in Transformers", arXiv:2305.19466, theorem 1:

    o_t = sum_{i <= t} softmax_i(q_t k_i) v_i

| paper | here |
|---|---|
| the causal mask, i <= t | `worthit.nn.attention.core.causal_mask`: all that knows the order |
| NoPE | `Position(kind="nope")`, or `is_position_free` |

The first token sees one key, the second two: that is enough to count (a value that only the first
token has comes out as 1/t). Without the mask it is not: attention alone sees a set.

There is nothing to compute. A model has no positions when its `position.kind` is "nope"; a layer
among others that have (Llama 4, SmolLM3) when its attention says `is_position_free`.
"""

from __future__ import annotations

from worthit.spec.model import Attention, Position


def is_told_no_order(attention: Attention, position: Position) -> bool:
    """Whether neither rotation nor bias reaches the scores of `attention`."""
    return attention.is_position_free or (attention.position or position).kind == "nope"
