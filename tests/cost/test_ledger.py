"""The ledger against sums done by hand from the published formulas, and against torch's counter."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from technique_cases import (
    attention_layer,
    latent_layer,
    llama_8b,
    mamba,
    mixture,
    serving,
    training,
)

from worthit.cost.clock import time_pass
from worthit.cost.evaluate import evaluate
from worthit.cost.ledger import Op, Pass, all_reduce, build, layer_ops, matmul
from worthit.cost.memory import Split, cache_bytes, weight_bytes
from worthit.cost.ops import distinct_experts, ffn_ops, mixer_ops
from worthit.cost.params import count_params
from worthit.cost.serve import ServeCost
from worthit.cost.train import TrainCost
from worthit.spec.case import Layout, Runtime
from worthit.spec.formats import format_of
from worthit.spec.load import load_preset
from worthit.spec.model import Attention, FeedForward, Mamba, ModelSpec, MoE, Precision


def named(ops: list[Op], name: str) -> Op:
    (found,) = [op for op in ops if op.name == name]
    return found


# 1. Linear: F = 2 m n k; bytes = weights plus both activations.


@pytest.mark.parametrize(("storage", "bits"), [("bf16", 16), ("int8", 8), ("int4-g32", 4.5)])
def test_linear(storage: str, bits: float) -> None:
    m, n, k = 32, 4096, 11008
    p = Pass(phase="prefill", batch=4.0, new=8.0, precision=Precision(weights=storage))
    op = matmul("product", p, n, k)
    assert op.flops == 2 * m * n * k
    assert op.weights == n * k * bits / 8
    assert op.other == m * (n + k) * 2


def test_group_scales_are_part_of_the_bits() -> None:
    # 16 bits of scale a group; a zero point too where the format has one.
    assert format_of("int4-g32").bits == 4 + 16 / 32
    assert format_of("int4-g128").bits == 4 + 32 / 128
    assert format_of("mxfp4").bits == 4 + 8 / 32
    assert format_of("nvfp4").bits == 4 + 8 / 16


# 2. Parameters: the hand sum of one Llama layer and what surrounds 32 of them.


def test_parameters_of_llama_8b() -> None:
    d, heads, kv, width, ffn, vocab = 4096, 32, 8, 128, 14336, 128256
    attention = d * heads * width + 2 * d * kv * width + heads * width * d
    layer = attention + 3 * d * ffn + 2 * d
    params = count_params(llama_8b())
    assert params.total == 32 * layer + 2 * vocab * d + d == 8_030_261_248
    assert params.active_without_embeddings == 32 * layer + d
    assert weight_bytes(llama_8b(), Split()) == 2 * params.total


# 3. Cache: 2 n_kv hd b a layer and token; latents once; windows; states; pages; replication.


def cached(model: ModelSpec, tokens: float, **split: float) -> float:
    return float(cache_bytes(model, Split(**split), tokens).per_sequence)


def test_cache_of_grouped_queries() -> None:
    assert cached(llama_8b(), 1000) == 1000 * 32 * 2 * 8 * 128 * 2


def test_cache_of_latents_is_not_doubled_and_not_split() -> None:
    model = replace(llama_8b(), layers=(latent_layer(),) * 4)
    assert cached(model, 1000) == 1000 * 4 * (512 + 64) * 2
    assert cached(model, 1000, tensor=8) == cached(model, 1000)


def test_cache_stops_at_the_window() -> None:
    layer = replace(
        attention_layer(),
        mixers=(Attention(n_heads=32, n_kv_heads=8, head_dim=128, window=128),),
    )
    model = replace(llama_8b(), layers=(layer,) * 2)
    assert cached(model, 10_000) == cached(model, 128) == 128 * 2 * 2 * 8 * 128 * 2
    assert cached(model, 100) == 100 * 2 * 2 * 8 * 128 * 2


def test_state_is_constant() -> None:
    # Per layer 512 x 16 elements of fp32 state and 512 x 4 of convolution inputs in 16 bits.
    assert cached(mamba(), 10) == cached(mamba(), 10_000) == 4 * (512 * 16 * 4 + 512 * 4 * 2)


def test_pages_round_up() -> None:
    runtime = Runtime(has_paging=True, page_tokens=16)
    for tokens, paged in ((1, 16), (16, 16), (17, 32)):
        use = cache_bytes(llama_8b(), Split(), float(tokens), runtime=runtime)
        assert use.per_sequence == paged * 131_072


@pytest.mark.parametrize(("tensor", "share"), [(1, 1), (4, 1 / 4), (8, 1 / 8), (16, 1 / 8)])
def test_more_ranks_than_kv_heads_replicate_them(tensor: int, share: float) -> None:
    assert cached(llama_8b(), 1000, tensor=tensor) == cached(llama_8b(), 1000) * share


# 4. Attention: 2 H (d_qk + d_v) S a token, full S in decode and half of it on average in prefill.


def attention_flops(phase: str, new: float, past: float, **changes: object) -> float:
    mixer = replace(attention_layer().mixers[0], **changes)
    p = Pass(phase=phase, batch=1.0, new=new, past=past)
    return float(named(list(mixer_ops(mixer, 4096, p)), "attention").flops)


def test_attention_of_one_decoded_token() -> None:
    assert attention_flops("decode", 1.0, 999.0) == 2 * 32 * (128 + 128) * 1000


def test_attention_of_a_prompt_is_causal() -> None:
    pairs = 1000 * 1001 / 2
    assert attention_flops("prefill", 1000.0, 0.0) == 2 * 32 * 256 * pairs


def test_attention_in_a_window() -> None:
    # Query i sees min(i, 100) keys: 1 + ... + 100, then 900 times 100.
    pairs = 100 * 101 / 2 + 900 * 100
    assert attention_flops("prefill", 1000.0, 0.0, window=100) == pytest.approx(
        2 * 32 * 256 * pairs, rel=1e-12
    )


def test_decode_reads_keys_once_a_group() -> None:
    p = Pass(phase="decode", batch=3.0, new=1.0, past=1000.0)
    op = named(list(mixer_ops(attention_layer().mixers[0], 4096, p)), "attention")
    # 1000 past tokens read and one written, keys and values of 8 heads, not of 32.
    assert op.cache == 3 * 1001 * 2 * 8 * 128 * 2


# 5. Latent attention: absorbed in decode, expanded in prefill.


def test_latent_attention_is_absorbed_in_decode() -> None:
    (mixer,) = latent_layer().mixers
    rank, rope, nope, value, heads = 512, 64, 128, 128, 16
    decode = Pass(phase="decode", batch=1.0, new=1.0, past=999.0)
    op = named(list(mixer_ops(mixer, 4096, decode)), "attention")
    assert op.flops == 2 * heads * 1000 * (2 * rank + rope)
    assert op.cache == 1000 * (rank + rope) * 2
    prefill = Pass(phase="prefill", batch=1.0, new=1000.0)
    op = named(list(mixer_ops(mixer, 4096, prefill)), "attention")
    assert op.flops == 2 * heads * (nope + rope + value) * 1000 * 1001 / 2
    # The reason to expand: per pair 320 products against 1088, the 3.4 of the reports.
    assert (2 * rank + rope) / (nope + rope + value) == pytest.approx(3.4)


# 6. Mixtures: distinct experts E (1 - (1 - k/E)^B), never k only once several tokens meet.


def test_distinct_experts_by_enumeration() -> None:
    # Two tokens, each choosing 1 of 4 uniformly: 4 of 16 pairs meet, mean (4 * 1 + 12 * 2) / 16.
    assert distinct_experts(4, 1, 2) == pytest.approx((4 * 1 + 12 * 2) / 16)
    assert distinct_experts(8, 2, 1) == pytest.approx(2)
    assert distinct_experts(8, 8, 1) == 8


@pytest.mark.parametrize("batch", [1, 4, 64])
def test_experts_read_in_decode(batch: int) -> None:
    moe = MoE(n_experts=8, n_experts_per_token=2, expert=FeedForward(d_ff=1024))
    p = Pass(phase="decode", batch=float(batch), new=1.0, past=10.0)
    op = named(list(ffn_ops(moe, 512, p)), "experts")
    size = 3 * 512 * 1024
    distinct = 8 * (1 - (1 - 2 / 8) ** batch)
    assert op.flops == batch * 2 * 2 * size
    assert op.weights == pytest.approx(distinct * size * 2, rel=1e-12)
    assert 2 * size * 2 <= op.weights * (1 + 1e-12) <= min(8, 2 * batch) * size * 2 * (1 + 1e-9)


def test_expert_parallel_ranks_hold_a_share_each() -> None:
    model = mixture()
    whole, split = weight_bytes(model, Split()), weight_bytes(model, Split(expert=4))
    experts = 4 * 8 * 3 * 512 * 1024 * 2
    assert whole - split == experts * 3 / 4


@pytest.mark.parametrize(("is_gated", "n_up"), [(True, 2), (False, 1)])
def test_experts_move_what_a_dense_feed_forward_of_their_size_does(
    is_gated: bool, n_up: int
) -> None:
    """Up: d in, n w out. Activation: n w in, w out. Down: w in, d out. In 16 bits, m tokens."""
    d, w, m = 512, 1024, 48
    dense = FeedForward(d_ff=w, is_gated=is_gated)
    p = Pass(phase="prefill", batch=1.0, new=float(m))
    moved = sum(float(op.other) for op in ffn_ops(dense, d, p))
    assert moved == 2 * m * ((d + n_up * w) + (n_up + 1) * w + (w + d))
    # One expert that every token takes; the router's own operands aside.
    alone = MoE(n_experts=1, n_experts_per_token=1, expert=dense)
    assert float(named(list(ffn_ops(alone, d, p)), "experts").other) == moved


# 7. Gain of a narrower cache: 1 / (1 - f (1 - 1/r)) on the bytes of a step.


def test_narrower_cache_saves_its_share() -> None:
    wide = llama_8b()
    narrow = replace(wide, precision=Precision(cache="fp8"))
    p = Pass(phase="decode", batch=64.0, new=1.0, past=8000.0)
    before = build(wide, p)
    after = build(narrow, replace(p, precision=narrow.precision))

    def moved(ops: list[Op]) -> float:
        return sum(float(op.bytes * op.count) for op in ops)

    share = sum(float(op.cache * op.count) for op in before) / moved(before)
    assert moved(before) / moved(after) == pytest.approx(1 / (1 - share * (1 - 1 / 2)))


# 8. Parallelism: two all-reduces a layer of B h 2 bytes, ring factor 2 (t - 1) / t; the bubble.


@pytest.mark.parametrize("tensor", [2, 8])
def test_tensor_parallel_sends_twice_a_layer(tensor: int) -> None:
    p = Pass(phase="decode", batch=16.0, new=1.0, past=100.0, tensor=float(tensor))
    (layer,) = {id(x): x for x in llama_8b().layers}.values()
    sent = [op for op in layer_ops(layer, llama_8b(), p) if op.kernel == "comm"]
    assert len(sent) == 2
    for op in sent:
        assert op.sent == pytest.approx(2 * (tensor - 1) / tensor * 16 * 4096 * 2)
        assert op.launches == 1


def test_one_device_sends_nothing() -> None:
    op = all_reduce("all-reduce", Pass(phase="decode", batch=1.0, new=1.0), 4096)
    assert op.sent == 0
    assert op.launches == 0


def test_pipeline_bubble() -> None:
    case = training(n_devices=4, layout=Layout(pipeline=4), seq=4096, batch_tokens=12 * 4096)
    found = TrainCost(case)
    assert found.micro_steps[0] == 12
    assert found.bubble[0] == 3 / (12 + 3)


@pytest.mark.parametrize(("zero", "trips"), [(0, 2), (1, 2), (2, 2), (3, 3)])
def test_data_parallel_traffic(zero: int, trips: int) -> None:
    # A ring's all-reduce is a reduce-scatter and an all-gather; ZeRO 3 gathers once more.
    case = training(n_devices=8, layout=Layout(zero=zero))  # type: ignore[arg-type]  # 0 to 3
    found = TrainCost(case)
    sent = trips * 2 * 8_030_261_248 * 7 / 8
    assert found.gradient_s[0] == pytest.approx(sent / (0.8 * 4e11))


# 9. State spaces: 9 B S D N outside the matrix units; the state moves every decoded token.


def test_selective_scan() -> None:
    mixer = Mamba(d_inner=512, d_state=16, d_conv=4, dt_rank=16)
    prefill = named(
        list(mixer_ops(mixer, 256, Pass(phase="prefill", batch=2.0, new=100.0))), "selective scan"
    )
    assert prefill.flops == 9 * 2 * 100 * 512 * 16
    assert prefill.math == "vector"
    decode = named(
        list(mixer_ops(mixer, 256, Pass(phase="decode", batch=2.0, new=1.0, past=5000.0))),
        "selective scan",
    )
    # Read and written, in fp32, once a sequence.
    assert decode.cache == 2 * 2 * 512 * 16 * 4


def test_state_space_layer_costs_more_than_short_attention() -> None:
    """Granite 4.0 H: at 512 tokens the state is larger than the keys it replaces."""
    model = load_preset("granite-4.0-h-small")
    hybrid, attention = (
        sum(
            float(op.cache)
            for op in mixer_ops(
                mixer, model.d_model, Pass(phase="decode", batch=1.0, new=1.0, past=512.0)
            )
        )
        for mixer in (
            next(m for m in model.mixers if not isinstance(m, Attention)),
            next(m for m in model.mixers if isinstance(m, Attention)),
        )
    )
    assert hybrid > attention


# Time: the three constants of a device, summed over kernels.


def test_time_is_the_larger_of_two_and_a_start() -> None:
    case = serving()
    device = case.hardware.device
    op = Op(name="product", kernel="gemm", flops=1e12, weights=3e9)
    time = time_pass([op], device, is_decode=True, points=1, link_bytes_per_s=1.0)
    # 80 % of 1e15 FLOP/s; 90 % of 3e12 B/s; 5 us to start.
    assert time.mid[0] == pytest.approx(max(1e12 / 8e14, 3e9 / 2.7e12) + 5e-6, rel=1e-12)


def test_step_is_the_sum_of_its_kernels() -> None:
    found = evaluate(serving())
    assert isinstance(found, ServeCost)
    step = sum(
        float(found.time([op], found.forward("decode", batch=1.0, new=1.0, past=1100.0)).mid[0])
        for op in build(found.model, found.forward("decode", batch=1.0, new=1.0, past=1100.0))
    )
    assert found.step.mid[0] == pytest.approx(step, rel=1e-9)


# The independent count: torch's own, on the plain eager path, where causal attention is computed
# and counted in full.


def test_flops_equal_those_that_torch_counts() -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from torch.utils.flop_counter import FlopCounterMode

    from worthit.spec.hf import from_config

    config = transformers.LlamaConfig(
        hidden_size=48,
        intermediate_size=80,
        num_hidden_layers=3,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=16,
        vocab_size=101,
        tie_word_embeddings=False,
        attn_implementation="eager",
    )
    model = transformers.LlamaForCausalLM(config).eval()
    batch, seq = 2, 37
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.zeros(batch, seq, dtype=torch.long))
    spec = from_config(config.to_dict())
    p = Pass(phase="prefill", batch=float(batch), new=float(seq), is_fused=False)
    predicted = sum(float(np.ravel(op.flops * op.count)[0]) for op in build(spec, p))
    assert counter.get_total_flops() == predicted
