"""Published and reference counts of well-known models, from the presets' own config files.

The numbers typed here were counted by building the reference modelling code without weights, or
stated by the authors; where only rounded values are known the tolerance is half their last digit.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from worthit.cost.cache import layer_cache
from worthit.cost.params import count_params
from worthit.spec.hf import from_config, known_model_types
from worthit.spec.model import ModelSpec

PRESETS = Path(__file__).parents[3] / "src" / "worthit" / "spec" / "presets"
BYTES = 2  # bf16
HALF_DIGIT = 0.5e6


def preset(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((PRESETS / f"{name}.json").read_text(encoding="utf-8"))
    return found


def cache_bytes(model: ModelSpec, n_tokens: int) -> int:
    """Bytes of the keys, values and latents of one sequence of `n_tokens`."""
    entries = [e for layer in model.layers for e in layer_cache(layer, model.d_model)]
    return BYTES * sum(e.per_token * min(n_tokens, e.window or n_tokens) for e in entries)


@dataclass(frozen=True)
class Known:
    name: str
    total: int
    cache_bytes_per_token: int
    active: float | None = None
    active_without_embeddings: float | None = None
    # OpenAI's convention: the output head counts, the input table does not.
    active_without_input: float | None = None


KNOWN = (
    Known("gpt2", 124_439_808, 36_864, 124_439_808, 85_056_000),
    Known("llama-2-7b", 6_738_415_616, 524_288, 6_738_415_616),
    Known("llama-3.1-8b", 8_030_261_248, 131_072, None, 6.980e9),
    Known("llama-3.1-405b", 405_853_388_800, 516_096, None, 401.651e9),
    Known("qwen3-8b", 8_190_735_360, 147_456, None, 6.946e9),
    Known("qwen3-30b-a3b", 30_532_122_624, 98_304, 3.353e9, 2.731e9),
    Known("mixtral-8x7b", 46_702_792_704, 131_072, 12.880e9, 12.618e9),
    Known("deepseek-v3", 671_026_404_352, 70_272, 37.552e9, 35.699e9),
    Known("gpt-oss-20b", 20_914_757_184, 49_152, active_without_input=3.608e9),
    Known("gemma-3-27b", 27_009_346_304, 507_904, 27_009_346_304),
    Known("smollm2-135m", 134_515_008, 23_040, 134_515_008),
)


@pytest.mark.parametrize("known", KNOWN, ids=lambda known: known.name)
def test_counts_of_known_models(known: Known) -> None:
    model = from_config(preset(known.name)["config"])
    params = count_params(model)
    assert params.total == known.total
    for counted, stated in (
        (params.active, known.active),
        (params.active_without_embeddings, known.active_without_embeddings),
        (params.active - params.embedding, known.active_without_input),
    ):
        if stated is not None:
            tolerance = 0 if isinstance(stated, int) else HALF_DIGIT
            assert counted == pytest.approx(stated, abs=tolerance)
    # One token: no window is full.
    assert cache_bytes(model, 1) == known.cache_bytes_per_token


def test_windows_bound_the_cache_of_gemma_3() -> None:
    model = from_config(preset("gemma-3-27b")["config"])
    assert cache_bytes(model, 32_768) == pytest.approx(3.12e9, abs=0.005e9)
    assert sum(m.window is None for layer in model.layers for m in layer.mixers) == 10


@pytest.mark.parametrize("path", sorted(PRESETS.glob("*.json")), ids=lambda path: path.stem)
def test_every_preset_reads_as_the_reference_counts_it(path: Path) -> None:
    entry = json.loads(path.read_text(encoding="utf-8"))
    if "config" not in entry:
        pytest.skip("given as a spec of our own, counted beside its module")
    model = from_config(entry["config"], where=path.name)
    assert count_params(model).total == entry["counted_params"]


def test_every_model_type_has_a_preset() -> None:
    configs = [
        json.loads(p.read_text(encoding="utf-8")).get("config", {}) for p in PRESETS.glob("*")
    ]
    texts = [config.get("text_config", {}) for config in configs]
    types = {config.get("model_type") for config in configs + texts}
    assert set(known_model_types()) <= types


@pytest.mark.parametrize(
    ("name", "context_len"),
    [
        # As the model cards state them: some files give the context after scaling, ...
        ("llama-3.1-8b", 131_072),
        ("llama-3.2-1b", 131_072),
        ("deepseek-v3", 163_840),
        ("gpt-oss-20b", 131_072),
        ("gemma-3-27b", 131_072),
        ("phi-3-mini-128k", 131_072),
        ("mistral-7b", 32_768),
    ],
)
def test_stated_contexts(name: str, context_len: int) -> None:
    assert from_config(preset(name)["config"]).context_len == context_len


def test_context_before_scaling_is_stretched() -> None:
    # ... others the one before it: the Qwen 2.5 card's own setting for 128K.
    yarn = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32_768}
    config = preset("qwen2.5-7b")["config"]
    config |= {"max_position_embeddings": 32_768, "rope_scaling": yarn}
    assert from_config(config).context_len == 131_072


def test_gemma_3_keeps_two_kinds_of_positions() -> None:
    model = from_config(preset("gemma-3-27b")["config"])
    assert (model.position.rope_theta, model.position.scaling.factor) == (1e6, 8.0)
    local, spread = model.layers[0].mixers[0], model.layers[5].mixers[0]
    assert (local.window, local.position.rope_theta, local.position.scaling) == (1024, 1e4, None)
    assert (spread.window, spread.position) == (None, None)
    # query_pre_attn_scalar of the 27B alone differs from its head size.
    assert local.scale == pytest.approx(168**-0.5)
    assert model.embedding_scale == pytest.approx(5376**0.5)


def test_deepseek_v3_moves_yarns_temperature_into_the_scale() -> None:
    model = from_config(preset("deepseek-v3")["config"])
    mla, moe = model.layers[-1].mixers[0], model.layers[-1].ffn
    # mscale = 0.1 ln 40 + 1, squared (DeepSeek-V3's inference code); queries of 128 + 64.
    assert mla.scale == pytest.approx(1.3688879454**2 / 192**0.5)
    assert (moe.score, moe.n_groups, moe.n_groups_per_token, moe.weight_scale) == (
        "sigmoid",
        8,
        4,
        2.5,
    )


@pytest.mark.parametrize("name", ["llama-3.1-405b", "gemma-3-27b", "llama-4-maverick"])
def test_equal_layers_are_one_object(name: str) -> None:
    model = from_config(preset(name)["config"])
    assert len({id(layer) for layer in model.layers}) == len(set(model.layers)) <= 4
