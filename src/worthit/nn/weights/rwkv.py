"""RWKV-4 as transformers writes it: time mixing is `attention`, the first norm is layer 0's."""

from __future__ import annotations

from torch import Tensor

from worthit.nn.weights.names import Entry, Names, each
from worthit.spec.model import ModelSpec

LAYER = "rwkv.blocks.*"


def _flat(mix: Tensor) -> Tensor:
    return mix.flatten()


def _broadcastable(mix: Tensor) -> Tensor:
    return mix[None, None]


# Shares of the token shift have a batch and a token axis there.
MIX = each(_flat, _broadcastable)


def rwkv(spec: ModelSpec) -> Names:
    """Both halves of a layer."""
    time, channel = "layers.*.mixers.0", "layers.*.ffn"
    their_time, their_channel = f"{LAYER}.attention", f"{LAYER}.feed_forward"
    return Names(
        (
            Entry("embedding", "rwkv.embeddings"),
            Entry("embedding_norm", "rwkv.blocks.0.pre_ln"),
            Entry("layers.*.mixer_norm", f"{LAYER}.ln1"),
            Entry("layers.*.ffn_norm", f"{LAYER}.ln2"),
            Entry(f"{time}.log_decay", f"{their_time}.time_decay"),
            Entry(f"{time}.bonus", f"{their_time}.time_first"),
            *(
                Entry(f"{time}.mix_{part}", f"{their_time}.time_mix_{part}", MIX)
                for part in ("key", "value", "receptance")
            ),
            *(
                Entry(f"{time}.{part}", f"{their_time}.{part}")
                for part in ("key", "value", "receptance", "output")
            ),
            *(
                Entry(f"{channel}.mix_{part}", f"{their_channel}.time_mix_{part}", MIX)
                for part in ("key", "receptance")
            ),
            *(
                Entry(f"{channel}.{part}", f"{their_channel}.{part}")
                for part in ("key", "value", "receptance")
            ),
            Entry("final_norm", "rwkv.ln_out"),
            Entry("head", "head"),
        ),
        base="rwkv.",
    )


NAMES = {"rwkv": rwkv}
