"""RWKV, version 4."""

from __future__ import annotations

from worthit.spec.hf._fields import Fields
from worthit.spec.hf._parts import MAX_LAYERS
from worthit.spec.hf._read import Reader
from worthit.spec.model import ChannelMix, Layer, ModelSpec, Norm, Position, Rwkv


def rwkv(fields: Fields) -> ModelSpec:
    """RWKV-4: time mixing, then channel mixing; the first norm is on the embeddings."""
    d_model = fields.size("hidden_size")
    n_layers = fields.size("num_hidden_layers", at_most=MAX_LAYERS)
    # The final norm's eps is 1e-5 whatever the file says; every published file says 1e-5.
    norm = Norm(kind="layernorm", eps=fields.number("layer_norm_epsilon", 1e-5), has_bias=True)
    # Halving the stream every few layers keeps fp16 in range; norms take it out again.
    fields.ignore("rescale_every")
    layer = fields.part(
        Layer,
        mixers=(
            fields.part(Rwkv, d_attention=fields.size("attention_hidden_size", default=d_model)),
        ),
        ffn=fields.part(ChannelMix, d_ff=fields.size("intermediate_size", default=4 * d_model)),
        norm=norm,
    )
    return fields.part(
        ModelSpec,
        name="",
        d_model=d_model,
        vocab_size=fields.size("vocab_size"),
        layers=(layer,) * n_layers,
        context_len=fields.size("context_length", "max_position_embeddings", default=1024),
        position=Position(kind="nope"),
        norm=norm,
        has_embedding_norm=True,
        has_tied_embeddings=fields.flag("tie_word_embeddings", False),
    )


READERS: dict[str, Reader] = {"rwkv": rwkv}
