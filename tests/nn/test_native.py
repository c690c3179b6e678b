"""The compiled pass computes what the plain layers do, to the bit whatever stands beside it."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
import torch
from nn.tolerances import assert_near
from torch import nn

from worthit.decode.engine import Engine, EngineConfig, Request
from worthit.decode.generate import tokens_of
from worthit.decode.speculative.shallow import shallow
from worthit.decode.speculative.taps import Taps
from worthit.decode.speculative.tree import Tree, tree_pass
from worthit.nn.decoder import Decoder, build
from worthit.nn.inference import optimize, products
from worthit.nn.native import build as compiled
from worthit.nn.native.linear import NativeLinear, native, packed
from worthit.nn.quant.checkpoint import unpack
from worthit.nn.quant.grid import GRIDS
from worthit.nn.quant.linear import StoredLinear
from worthit.nn.quant.quantize import quantize
from worthit.spec.hf import from_config

needs_library = pytest.mark.skipif(
    compiled.library() is None, reason=f"no compiled pass: {compiled.why_not()}"
)
CONFIG = {
    "model_type": "llama",
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": True,
}
KINDS = ("fp32", "bf16", "int8", "int8-g32", "q4_1", "int4-g32", "int4-g64")


def model_of(
    kind: str, *, has_native: bool = True, is_optimized: bool = True, **changed: Any
) -> Decoder:
    torch.manual_seed(0)
    model = build(from_config({**CONFIG, **changed})).eval()
    for p in model.parameters():
        # Random weights of the usual size answer nothing but noise.
        nn.init.normal_(p, mean=float(p.dim() == 1), std=0.2)
    if kind != "fp32":
        model.to(torch.bfloat16)
    if kind not in ("fp32", "bf16"):
        quantize(model, kind)
    return optimize(model, has_native=has_native) if is_optimized else model


@pytest.fixture
def ids() -> torch.Tensor:
    return torch.randint(0, 96, (2, 300), generator=torch.Generator().manual_seed(1))


@needs_library
@pytest.mark.parametrize("n", [1, 2, 7, 8, 9, 33])
@pytest.mark.parametrize("kind", KINDS)
def test_a_product_is_that_of_the_numbers_stored(kind: str, n: int) -> None:
    torch.manual_seed(0)
    linear: nn.Module = nn.Linear(128, 80)
    if kind != "fp32":
        linear = linear.bfloat16()
    bias = linear.bias.double()
    if kind not in ("fp32", "bf16"):
        linear = StoredLinear.of(linear, GRIDS[kind])
    weight = linear.weight if kind in ("fp32", "bf16") else linear.wide()
    quick = native(linear)
    assert quick is not None
    # Inputs that bf16 holds: nothing is rounded but sums.
    x = torch.randn(n, 128).bfloat16().float()
    with torch.inference_mode():
        y = quick(x)
        torch.testing.assert_close(
            y.double(), x.double() @ weight.double().T + bias, rtol=1e-5, atol=1e-5
        )
        for i in range(n):
            assert torch.equal(quick(x[i : i + 1]), y[i : i + 1])


def test_codes_of_four_bits_are_packed_as_they_are_read() -> None:
    codes = torch.randint(0, 16, (32, 64), generator=torch.Generator().manual_seed(0))
    words = packed(codes).int() & 0xFFFF  # (tile, eight columns, output, parity)
    for output, column in ((0, 0), (17, 9), (31, 63), (5, 38)):
        word = words[output // 16, column // 8, output % 16, column % 2]
        assert int(word >> (4 * (column % 8 // 2))) & 15 == int(codes[output, column])


def said_by(model: Decoder, ids: torch.Tensor) -> torch.Tensor:
    """Logits of a prompt and of tokens one by one behind it."""
    cache = model.new_cache()
    with torch.inference_mode():
        found = [model(ids[:, :290], cache=cache)]
        found += [model(ids[:, i : i + 1], cache=cache) for i in range(290, 300)]
    return torch.cat(found, dim=1).float()


@needs_library
@pytest.mark.parametrize("kind", ["fp32", "bf16", "int8", "q4_1"])
@pytest.mark.parametrize("n_kv_heads", [1, 2, 6])
def test_a_pass_is_that_of_the_plain_layers(kind: str, n_kv_heads: int, ids: torch.Tensor) -> None:
    quick = model_of(kind, num_key_value_heads=n_kv_heads)
    assert quick.native is not None
    plain = model_of(kind, num_key_value_heads=n_kv_heads, has_native=False)
    assert plain.native is None
    if kind == "fp32":
        assert_near(said_by(quick, ids), said_by(plain, ids))
        return
    # In bf16 the plain layers round at every step: both are measured by the same weights in fp32.
    wide = unpack(model_of(kind, num_key_value_heads=n_kv_heads, is_optimized=False)).float()
    want = said_by(wide, ids)
    errors = [(said_by(m, ids) - want).square().mean().sqrt() for m in (quick, plain)]
    assert errors[0] <= errors[1]
    assert errors[1] < 0.1 * want.square().mean().sqrt()


@needs_library
@pytest.mark.parametrize("kind", ["fp32", "bf16", "q4_1"])
def test_bits_depend_on_no_chunk_and_no_neighbour(kind: str, ids: torch.Tensor) -> None:
    model = model_of(kind)
    with torch.inference_mode():
        cache = model.new_cache()
        whole = model(ids, cache=cache)
        cache = model.new_cache()
        cuts = (0, 1, 4, 20, 37, 290, 291, 300)
        parts = [model(ids[:1, a:b], cache=cache) for a, b in pairwise(cuts)]
        assert torch.equal(torch.cat(parts, dim=1), whole[:1])
        cache.take_back(10)
        assert torch.equal(model(ids[:1, 290:], cache=cache), whole[:1, 290:])


@needs_library
@pytest.mark.parametrize("kind", ["fp32", "q4_1"])
def test_bits_depend_on_no_number_of_threads(kind: str, ids: torch.Tensor) -> None:
    model, before, found = model_of(kind), torch.get_num_threads(), []
    try:
        for n_threads in (1, 2, 3):
            torch.set_num_threads(n_threads)
            found.append(said_by(model, ids))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


@needs_library
@pytest.mark.parametrize("block_tokens", [4, 16])
def test_an_engine_says_what_each_sequence_says_alone(block_tokens: int) -> None:
    model = model_of("q4_1")
    dice = torch.Generator().manual_seed(2)
    prompts = [torch.randint(0, 96, (3 + 9 * i,), generator=dice).tolist() for i in range(6)]
    config = EngineConfig(max_sequences=4, max_batch_tokens=24, block_tokens=block_tokens)
    engine = Engine(model, config=config)
    requests = [Request(prompt=p, max_tokens=12, stop_ids=()) for p in prompts]
    for _ in range(2):  # the second time from known prefixes
        found = [one.ids for one in engine.generate(requests)]
        alone = [[t for (t,) in tokens_of(model, [p], max_tokens=12)] for p in prompts]
        assert found == alone
    assert engine.memory.hits.n_found > 0


@needs_library
def test_what_is_not_plain_keeps_its_layers(ids: torch.Tensor) -> None:
    model = build(from_config({**CONFIG, "model_type": "qwen3"})).eval()
    assert optimize(model).native is None
    quick, plain = model_of("fp32"), model_of("fp32", has_native=False)
    mask = torch.ones_like(ids)
    mask[0, :5] = 0
    with torch.inference_mode():
        # Padding goes the plain way, by the same products.
        assert_near(quick(ids, attention_mask=mask), plain(ids, attention_mask=mask))
        cache = quick.new_cache()
        quick(ids[:, :9], cache=cache)
        cache.select_rows(torch.tensor([1]))
        assert_near(quick(ids[1:, 9:12], cache=cache), plain(ids[1:, :12])[:, 9:])
    assert products(quick) == {"fp32": 13}
    assert any(isinstance(m, NativeLinear) for m in quick.modules())


@needs_library
@pytest.mark.parametrize("n_kv_heads", [1, 2])
def test_trees_and_taps_are_those_of_the_plain_layers(n_kv_heads: int, ids: torch.Tensor) -> None:
    quick = model_of("fp32", num_key_value_heads=n_kv_heads)
    plain = model_of("fp32", num_key_value_heads=n_kv_heads, has_native=False)
    tree = Tree((5, 6, 7, 8, 9), (-1, -1, 0, 1, 2))
    found, taps = [], [Taps(model, [0, 2]) for model in (quick, plain)]
    calls: list[int] = []
    call = quick.native._call
    quick.native._call = lambda *given: (calls.append(given[1]), call(*given))
    with torch.inference_mode():
        for model, tap in zip((quick, plain), taps, strict=True):
            cache = model.new_cache()
            model(ids[:1, :39], cache=cache)
            found.append((tap.features(), tree_pass(model, cache, 4, tree), tap.features()))
            if model is quick:
                # Each node by itself, behind its own path.
                for node in range(len(tree)):
                    path = [tree.tokens[i] for i in tree.path(node)]
                    alone = torch.cat([ids[:1, :39], torch.tensor([[4, *path]])], dim=1)
                    assert_near(found[0][1][node + 1], plain(alone)[0, -1])
    assert calls == [39, 6]
    for got, want in zip(*found, strict=True):
        assert_near(got, want)
    for tap in taps:
        tap.close()


@needs_library
def test_a_hook_that_changes_a_layer_and_a_view_of_some_are_heard(ids: torch.Tensor) -> None:
    quick, plain = model_of("fp32"), model_of("fp32", has_native=False)
    with torch.inference_mode():
        views = [shallow(model, [0, 2]) for model in (quick, plain)]
        assert_near(*(view(ids[:, :9], cache=view.new_cache()) for view in views))
        for model in (quick, plain):
            model.layers[1].register_forward_hook(lambda module, x, y: 2 * y)
        assert_near(*(model(ids[:, :9], cache=model.new_cache()) for model in (quick, plain)))


@pytest.fixture
def no_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> Iterator[None]:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(compiled, "_cpu_flags", lambda: compiled.NEEDED)
    compiled.library.cache_clear()
    yield
    compiled.library.cache_clear()


@pytest.mark.usefixtures("no_compiler")
def test_without_a_compiler_the_plain_layers_run(ids: torch.Tensor) -> None:
    why = compiled.why_not()
    assert why is not None
    assert "no C++ compiler" in why
    model = model_of("q4_1")
    assert model.native is None
    with torch.inference_mode():
        assert model(ids[:, :4], cache=model.new_cache()).isfinite().all()


def test_it_can_be_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORTHIT_NATIVE", "0")
    assert compiled.why_not() == "WORTHIT_NATIVE=0"
