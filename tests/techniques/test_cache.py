"""Records of the cache family: what they change, when they refuse, and how they are removed."""

from __future__ import annotations

from dataclasses import replace

import pytest
from technique_cases import device, llama_8b, mamba, serving, training

from worthit.errors import NotApplicable
from worthit.spec.formats import format_of
from worthit.spec.model import Precision
from worthit.techniques.cache import (
    chunked_prefill,
    continuous_batching,
    kv_eviction,
    kv_quantization,
    paged_attention,
    prefix_caching,
)

ALL = (
    chunked_prefill,
    continuous_batching,
    kv_eviction,
    kv_quantization,
    paged_attention,
    prefix_caching,
)
# Llama 3.1 8B keeps 32 layers x 2 x 8 heads x 128 elements a token: 131,072 bytes at 16 bits.
ELEMENTS = 32 * 2 * 8 * 128


@pytest.mark.parametrize("module", ALL, ids=lambda m: m.TECHNIQUE.id)
def test_apply_is_seen_and_taken_out_again(module):
    case = serving(concurrency=8)
    after = module.apply(case)
    assert after != case
    assert not module.is_present(case)
    assert module.is_present(after)
    restored = module.remove(after)
    assert not module.is_present(restored)
    assert restored.model == case.model


@pytest.mark.parametrize("module", ALL, ids=lambda m: m.TECHNIQUE.id)
def test_all_refuse_training(module):
    with pytest.raises(NotApplicable, match="acts when a model is served; this case trains one"):
        module.apply(training())


@pytest.mark.parametrize("module", [kv_eviction, kv_quantization, paged_attention])
def test_a_fixed_state_has_no_cache_to_shrink(module):
    with pytest.raises(NotApplicable, match=r"layers \(mamba\) keep a fixed state"):
        module.apply(serving(mamba()))


@pytest.mark.parametrize(
    ("format", "bytes_per_token"),
    [("fp8", 65_536), ("int8", 65_536), ("int4-g64", 36_864)],  # 36,864 = 65,536 x 4.5 / 8
)
def test_quantized_cache_of_llama_8b(format, bytes_per_token):
    after = kv_quantization.apply(serving(), format=format)
    assert ELEMENTS * format_of(after.model.precision.cache).bytes == bytes_per_token
    assert after.model.precision.weights == "bf16"


def test_cache_format_follows_what_the_device_computes_in():
    assert kv_quantization.apply(serving()).model.precision.cache == "fp8"
    older = serving(on=device(has_fp8=False))
    assert kv_quantization.apply(older).model.precision.cache == "int8"


def test_a_narrow_cache_is_not_quantized_again():
    model = replace(llama_8b(), precision=Precision(cache="int8"))
    with pytest.raises(NotApplicable, match=r"in int8 \(8 bits\) already"):
        kv_quantization.apply(serving(model), format="fp8")
    assert kv_quantization.apply(serving(model), format="int4-g64").model.precision.cache


def test_dequantizing_restores_a_wide_format_whatever_the_activations():
    narrow = replace(llama_8b(), precision=Precision(cache="fp8", activations="fp8"))
    assert kv_quantization.remove(serving(narrow)).model.precision.cache == "bf16"
    full = replace(llama_8b(), precision=Precision(cache="fp8", activations="fp32"))
    assert kv_quantization.remove(serving(full)).model.precision.cache == "fp32"


@pytest.mark.parametrize(
    ("prompt", "output", "keep", "kept"),
    [(1000, 200, 0.5, 600), (1000, 201, 0.5, 601), (1000, 200, 0.2, 240), (20, 12, 0.5, 64)],
)
def test_eviction_keeps_a_share_but_never_less_than_sinks_and_a_window(prompt, output, keep, kept):
    case = serving(prompt=prompt, output=output)
    assert kv_eviction.apply(case, keep=keep).runtime.kept_tokens == kept


def test_knobs_of_scheduling():
    assert chunked_prefill.apply(serving(), chunk=256).runtime.prefill_chunk == 256
    assert paged_attention.apply(serving(), page_tokens=64).runtime.page_tokens == 64


def test_a_stall_and_a_first_token_are_judged_under_any_goal():
    named = {m.TECHNIQUE.id: m.TECHNIQUE.metric for m in ALL if m.TECHNIQUE.metric}
    assert named == {"chunked-prefill": "stall_s", "prefix-caching": "ttft_s"}
