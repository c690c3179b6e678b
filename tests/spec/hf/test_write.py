"""A spec to a config and back: every shipped model of the types that can be written."""

from __future__ import annotations

from dataclasses import replace

import pytest

from worthit.spec._shipped import load_preset, preset_names
from worthit.spec.hf import from_config, to_config
from worthit.spec.hf.write import WRITERS
from worthit.spec.model import Attention, FeedForward, Layer, Mamba2, ModelSpec

PRESETS = [name for name in preset_names() if load_preset(name).model_type in WRITERS]


@pytest.mark.parametrize("name", PRESETS)
def test_shipped_models_come_back(name: str) -> None:
    model = load_preset(name)
    config = to_config(model)
    assert config is not None
    read = from_config(config)
    about_files = {"name", "model_type", "precision", "source"}
    assert replace(read, **{key: getattr(model, key) for key in about_files}) == model


def test_every_type_is_tried() -> None:
    assert {load_preset(name).model_type for name in PRESETS} >= {"llama", "qwen3", "deepseek_v3"}


def test_a_spec_of_no_type_finds_the_most_read_one() -> None:
    attention = Attention(n_heads=4, n_kv_heads=2, head_dim=8, rotary_dim=8)
    layer = Layer(mixers=(attention,), ffn=FeedForward(d_ff=20))
    plain = ModelSpec(name="mine", d_model=16, vocab_size=50, context_len=64, layers=(layer,) * 2)
    config = to_config(plain)
    assert config is not None
    assert config["model_type"] == "llama"
    local = plain.map_mixers(lambda m: replace(m, window=8))
    config = to_config(local)
    assert config is not None
    assert (config["model_type"], config["sliding_window"]) == ("mistral", 8)


def test_what_no_type_describes() -> None:
    mamba = Mamba2(n_heads=4, head_dim=8, d_state=8, n_groups=1, d_conv=4)
    layer = Layer(mixers=(mamba,), ffn=FeedForward(d_ff=20, activation="relu2", is_gated=False))
    model = ModelSpec(name="mine", d_model=16, vocab_size=50, context_len=64, layers=(layer,))
    assert to_config(model) is None
