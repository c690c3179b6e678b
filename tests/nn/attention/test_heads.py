"""Multi-head, multi-query, grouped, local and chunked attention: limits of one another."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from nn.recurrent_checks import D_MODEL, built, check_padding, model_of, run
from nn.tolerances import assert_near
from torch import Tensor
from transformers import GPTBigCodeConfig, LlamaConfig, MistralConfig
from transformers.models.gpt_bigcode.modeling_gpt_bigcode import GPTBigCodeAttention
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaRotaryEmbedding
from transformers.models.mistral.modeling_mistral import MistralAttention

from worthit.nn.attention.gqa import GroupedQueryAttention
from worthit.nn.attention.mha import MultiHeadAttention, attend_head
from worthit.nn.attention.mqa import MultiQueryAttention, merged
from worthit.nn.attention.sliding_window import (
    SlidingWindowAttention,
    chunk_mask,
    receptive_field,
    window_mask,
)
from worthit.nn.decoder import build
from worthit.spec.model import Attention, Layer, ModelSpec

PLAIN = Attention(n_heads=4, n_kv_heads=4, head_dim=8)
TURNED = replace(PLAIN, rotary_dim=8)


def split(module: GroupedQueryAttention, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values of one sequence, `(heads, n, 8)`."""
    parts = (module.q_proj, module.k_proj, module.v_proj)
    return tuple((x @ p.weight.T).view(len(x), -1, 8).transpose(0, 1) for p in parts)


@pytest.mark.parametrize("n", [1, 63, 100])
@pytest.mark.parametrize("n_kv_heads", [1, 2, 4])
def test_heads_attend_each_on_its_own(n_kv_heads: int, n: int) -> None:
    module = built(replace(PLAIN, n_kv_heads=n_kv_heads))
    x = torch.randn(1, n, D_MODEL)
    q, k, v = split(module, x[0])
    group = 4 // n_kv_heads
    heads = [attend_head(q[h], k[h // group], v[h // group]) for h in range(4)]
    assert_near(run(module, x)[0], torch.cat(heads, dim=-1) @ module.o_proj.weight.T)


def copied(ours: GroupedQueryAttention, theirs: torch.nn.Module) -> None:
    with torch.no_grad():
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            getattr(theirs, name).weight.copy_(getattr(ours, name).weight)


@pytest.mark.parametrize("window", [None, 1, 5])
@pytest.mark.parametrize(("n", "n_kv_heads"), [(1, 2), (63, 1), (63, 4), (100, 2)])
def test_outputs_and_gradients_are_llamas_and_mistrals(
    n_kv_heads: int, n: int, window: int | None
) -> None:
    ours = built(replace(TURNED, n_kv_heads=n_kv_heads, window=window))
    make = (LlamaConfig, LlamaAttention) if window is None else (MistralConfig, MistralAttention)
    config = make[0](
        hidden_size=D_MODEL,
        num_attention_heads=4,
        num_key_value_heads=n_kv_heads,
        head_dim=8,
        attn_implementation="eager",
    )
    theirs = make[1](config, layer_idx=0)
    copied(ours, theirs)
    x = torch.randn(2, n, D_MODEL)
    inputs = [x.clone().requires_grad_(), x.clone().requires_grad_()]
    rotation = LlamaRotaryEmbedding(LlamaConfig(head_dim=8))(x, torch.arange(n)[None])
    keep = window_mask(n, window or n)
    mask = torch.zeros(n, n).masked_fill(~keep, torch.finfo(torch.float32).min)[None, None]
    got = run(ours, inputs[0])
    want, _ = theirs(inputs[1], position_embeddings=rotation, attention_mask=mask)
    assert_near(got, want)
    weights = torch.randn_like(want)
    (got * weights).sum().backward()
    (want * weights).sum().backward()
    assert_near(inputs[0].grad, inputs[1].grad)
    # Together: with a window of one no score matters, and zeros come out as rounding.
    names = ("q_proj", "k_proj", "v_proj", "o_proj")
    got, want = (
        torch.cat([getattr(m, name).weight.grad.flatten() for name in names])
        for m in (ours, theirs)
    )
    assert_near(got, want)


def test_multi_query_is_bigcodes() -> None:
    ours = built(replace(PLAIN, n_kv_heads=1, has_qkv_bias=True, has_out_bias=True))
    config = GPTBigCodeConfig(
        n_embd=D_MODEL, n_head=4, multi_query=True, attn_implementation="eager"
    )
    theirs = GPTBigCodeAttention(config, layer_idx=0).eval()
    with torch.no_grad():
        for name in ("weight", "bias"):
            parts = (ours.q_proj, ours.k_proj, ours.v_proj)
            getattr(theirs.c_attn, name).copy_(torch.cat([getattr(p, name) for p in parts]))
            getattr(theirs.c_proj, name).copy_(getattr(ours.o_proj, name))
    x = torch.randn(2, 21, D_MODEL)
    mask = torch.zeros(21, 21).masked_fill(~window_mask(21, 21), torch.finfo(torch.float32).min)
    want = theirs(x, attention_mask=mask[None, None])[0]
    assert_near(run(ours, x), want)


def test_copied_groups_are_multi_head_attention_and_their_mean_brings_them_back() -> None:
    grouped = built(replace(TURNED, n_kv_heads=2))
    full = built(TURNED)
    with torch.no_grad():
        full.q_proj.weight.copy_(grouped.q_proj.weight)
        full.o_proj.weight.copy_(grouped.o_proj.weight)
        for name in ("k_proj", "v_proj"):
            rows = getattr(grouped, name).weight.view(2, 8, D_MODEL)
            getattr(full, name).weight.copy_(rows.repeat_interleave(2, 0).flatten(0, 1))
    x = torch.randn(2, 30, D_MODEL)
    assert_near(run(full, x), run(grouped, x))
    for name in ("k_proj", "v_proj"):
        back = merged(getattr(full, name).weight, n_heads=4, n_kv_heads=2)
        assert_near(back, getattr(grouped, name).weight)
    one = merged(full.k_proj.weight, n_heads=4)
    assert_near(one, full.k_proj.weight.view(4, 8, D_MODEL).mean(0))


def test_each_name_holds_what_it_says() -> None:
    model = model_of(PLAIN)
    MultiHeadAttention(PLAIN, model)
    MultiQueryAttention(replace(PLAIN, n_kv_heads=1), model)
    SlidingWindowAttention(replace(PLAIN, window=3), model)
    SlidingWindowAttention(replace(PLAIN, chunk=3), model)
    with pytest.raises(AssertionError, match="for each query head"):
        MultiHeadAttention(replace(PLAIN, n_kv_heads=2), model)
    with pytest.raises(AssertionError, match="one key/value head"):
        MultiQueryAttention(PLAIN, model)
    with pytest.raises(AssertionError, match="a window or a chunk"):
        SlidingWindowAttention(PLAIN, model)


LOCAL = {
    "window": replace(TURNED, window=4),
    "window of one": replace(TURNED, window=1),
    "chunk": replace(TURNED, chunk=5),
    "chunk and window": replace(TURNED, chunk=5, window=3),
    "window with sinks": replace(TURNED, window=4, has_sinks=True),
}


def masked(part: Attention, n: int) -> Tensor:
    keep = window_mask(n, part.window or n)
    return keep if part.chunk is None else keep & chunk_mask(n, part.chunk)


@pytest.mark.parametrize("part", LOCAL.values(), ids=LOCAL)
@pytest.mark.parametrize("n", [1, 23, 63])
def test_local_attention_is_full_attention_under_the_mask(part: Attention, n: int) -> None:
    module = built(replace(part, rotary_dim=None))
    x = torch.randn(1, n, D_MODEL)
    q, k, v = split(module, x[0])
    scores = (q @ k.transpose(-1, -2) / 8**0.5).masked_fill(~masked(part, n), -torch.inf)
    if module.sinks is not None:
        scores = torch.cat([scores, module.sinks[:, None, None].expand(4, n, 1)], dim=-1)
    out = scores.softmax(-1)[..., :n] @ v
    want = out.transpose(0, 1).flatten(1) @ module.o_proj.weight.T
    assert_near(run(module, x)[0], want)


@pytest.mark.parametrize("part", LOCAL.values(), ids=LOCAL)
def test_local_caches_roll_and_stay_small(part: Attention) -> None:
    module = built(part)
    x = torch.randn(2, 23, D_MODEL)
    whole = run(module, x)
    for lengths in ([23], [18, 1, 1, 1, 1, 1], [1] * 23, [7, 1, 2, 13]):
        cache, past, parts = module.new_cache(), 0, []
        for length in lengths:
            parts.append(run(module, x[:, past : past + length], cache, past))
            past += length
            kept = min(past, part.reach)
            assert cache.nbytes == 2 * (2 * 4 * kept * 8 * 4)
        assert_near(torch.cat(parts, dim=1), whole)
    check_padding(part)


def test_a_window_as_long_as_the_sequence_is_full_attention() -> None:
    x = torch.randn(2, 23, D_MODEL)
    full = run(built(TURNED), x)
    for limits in ({"window": 23}, {"window": 99}, {"chunk": 23}):
        assert_near(run(built(replace(TURNED, **limits)), x), full)


def test_information_travels_one_window_less_one_a_layer() -> None:
    layer = Layer(mixers=(replace(TURNED, window=3),), ffn=None)
    spec = ModelSpec(name="m", d_model=16, vocab_size=9, layers=(layer,) * 3, context_len=64)
    assert receptive_field(spec.layers) == 7
    assert receptive_field((layer, Layer(mixers=(TURNED,), ffn=None))) is None
    torch.manual_seed(0)
    model = build(spec)
    ids = torch.randint(9, (1, 20))
    with torch.no_grad():
        before = model(ids)[0, -1]
        for place in range(20):
            changed = ids.clone()
            changed[0, place] = (ids[0, place] + 1) % 9
            reaches = not torch.allclose(model(changed)[0, -1], before, atol=1e-9, rtol=0)
            assert reaches == (place >= 20 - 7), place
