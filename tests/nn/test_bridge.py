"""Where prediction and code check each other: parameters, cache bytes, FLOPs of products.

Parameters of every preset and cache bytes of every kind of mixer are equal to the unit. FLOPs are
those of `torch.utils.flop_counter` on the plain path: attention with every score written down (it
counts causal attention in full, as `cost` does where attention is not fused), experts segment by
segment. Scans and states are `test_scan_bridge`'s. Everything element-wise is left out. Low-rank
attention has no cache to count: it refuses one.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from nn.recurrent_checks import D_MODEL, model_of
from torch.utils.flop_counter import FlopCounterMode

from worthit.cost.cache import cache_elements
from worthit.cost.ledger import Pass
from worthit.cost.ledger import build as ledger_of
from worthit.cost.params import count_params
from worthit.nn.attention import core, gqa, low_rank_attention, mla, sparse_attention
from worthit.nn.decoder import build
from worthit.nn.moe.experts import Experts
from worthit.spec.load import load_preset, preset_names
from worthit.spec.model import (
    S4,
    Attention,
    ChannelMix,
    FeedForward,
    LatentAttention,
    Layer,
    LinearAttention,
    Mamba,
    Mamba2,
    Mixer,
    ModelSpec,
    MoE,
    Rwkv,
)

# Beyond this many layers a preset waits for `make test-all`.
QUICK_LAYERS = 24


def presets() -> list[object]:
    return [
        pytest.param(
            name, marks=[] if load_preset(name).n_layers <= QUICK_LAYERS else pytest.mark.slow
        )
        for name in preset_names()
    ]


@pytest.mark.parametrize("name", presets())
def test_parameters_of_every_preset(name: str) -> None:
    spec = load_preset(name)
    with torch.device("meta"):
        model = build(spec)
    assert sum(p.numel() for p in model.parameters()) == count_params(spec).total


# Cache bytes

PLAIN = Attention(n_heads=4, n_kv_heads=2, head_dim=8, rotary_dim=8)
LINEAR = LinearAttention(
    kind="linear", n_key_heads=2, n_value_heads=4, key_dim=6, value_dim=8, d_conv=4, chunk=8
)
LATENT = LatentAttention(
    n_heads=4,
    kv_lora_rank=16,
    qk_nope_head_dim=8,
    qk_rope_head_dim=4,
    v_head_dim=8,
    q_lora_rank=12,
)
LATER = Rwkv(d_attention=2 * D_MODEL, head_dim=8, mix_rank=3, rank=5, chunk=8)
FFN = FeedForward(d_ff=48)
MIXERS: dict[str, Mixer] = {
    "multi-head": replace(PLAIN, n_kv_heads=4),
    "grouped": PLAIN,
    "multi-query": replace(PLAIN, n_kv_heads=1, has_output_gate=True, qk_norm="head"),
    "window": replace(PLAIN, window=5),
    "chunk": replace(PLAIN, chunk=5),
    "chosen keys": replace(PLAIN, sparse_keys=8),
    "native sparse": replace(PLAIN, sparse_keys=8, sparse_near=4),
    "random features": replace(PLAIN, n_features=12),
    "latent": LATENT,
    "latent without query rank": replace(LATENT, q_lora_rank=None),
    **{
        kind: replace(LINEAR, kind=kind)
        for kind in ("linear", "retention", "gated", "delta", "gated-delta")
    },
    "linear without convolution": replace(LINEAR, d_conv=0),
    "mamba": Mamba(d_inner=64, d_state=8, d_conv=4, dt_rank=4),
    "mamba2": Mamba2(n_heads=8, head_dim=8, d_state=8, n_groups=2, d_conv=4, chunk=8),
    "rwkv": Rwkv(d_attention=D_MODEL),
    **{f"rwkv, version {n}": replace(LATER, version=n) for n in (5, 6, 7)},
    "rwkv, version 7, first": replace(LATER, version=7, has_value_mix=False),
    "s4": S4(d_state=8),
}


@pytest.mark.parametrize("mixer", MIXERS.values(), ids=MIXERS)
def test_parameters_of_every_mixer(mixer: Mixer) -> None:
    spec = model_of(mixer)
    with torch.device("meta"):
        model = build(spec)
    assert sum(p.numel() for p in model.parameters()) == count_params(spec).total


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("lengths", [(3,), (9, 1, 1), (1,) * 4])
@pytest.mark.parametrize("mixer", MIXERS.values(), ids=MIXERS)
def test_cache_bytes_of_a_real_run(
    mixer: Mixer, lengths: tuple[int, ...], dtype: torch.dtype
) -> None:
    # RWKV's cost is of a whole layer: the channel mixing remembers a token too.
    ffn = FFN
    if isinstance(mixer, Rwkv):
        ffn = ChannelMix(d_ff=48, has_receptance=mixer.version < 7)
    spec = replace(model_of(mixer), layers=(Layer(mixers=(mixer,), ffn=ffn),) * 2)
    model = build(spec).to(dtype).eval()
    cache = model.new_cache()
    with torch.no_grad():
        for n in lengths:
            model(torch.zeros(3, n, dtype=torch.long), cache=cache)
    want = cache_elements(mixer, D_MODEL)
    kept = min(sum(lengths), want.window or sum(lengths))
    # States are fp32 whatever the rest; keys, latents and convolution inputs are activations.
    each = 4 * want.fixed + dtype.itemsize * (want.conv + want.per_token * kept)
    assert cache.nbytes == 2 * 3 * each


# FLOPs

BATCH = 2
LAYERS = {
    "multi-head": Layer(mixers=(replace(PLAIN, n_kv_heads=4),), ffn=FFN),
    "grouped": Layer(mixers=(PLAIN,), ffn=FFN),
    "multi-query, gated": Layer(
        mixers=(replace(PLAIN, n_kv_heads=1, has_output_gate=True),), ffn=FFN
    ),
    "window": Layer(mixers=(replace(PLAIN, window=5),), ffn=FFN),
    "plain feed-forward": Layer(mixers=(PLAIN,), ffn=replace(FFN, is_gated=False)),
    "feed-forward alone": Layer(mixers=(), ffn=FFN),
    "latent": Layer(mixers=(LATENT,), ffn=FFN),
    "latent without query rank": Layer(mixers=(replace(LATENT, q_lora_rank=None),), ffn=FFN),
    "two mixers": Layer(mixers=(PLAIN, LATENT), ffn=FFN, is_parallel=True, has_one_norm=True),
    "experts": Layer(
        mixers=(PLAIN,), ffn=MoE(n_experts=4, n_experts_per_token=2, expert=FeedForward(d_ff=16))
    ),
    "shared experts": Layer(
        mixers=(PLAIN,),
        ffn=MoE(
            n_experts=4,
            n_experts_per_token=2,
            expert=FeedForward(d_ff=16),
            shared=FeedForward(d_ff=24),
            n_shared_experts=1,
            has_shared_gate=True,
        ),
    ),
    "experts in a latent": Layer(
        mixers=(PLAIN,),
        ffn=MoE(n_experts=4, n_experts_per_token=2, expert=FeedForward(d_ff=16), d_latent=8),
    ),
    "all experts": Layer(
        mixers=(PLAIN,),
        ffn=MoE(n_experts=4, n_experts_per_token=2, expert=FeedForward(d_ff=16), routing="soft"),
    ),
    "low rank": Layer(mixers=(replace(PLAIN, low_rank=6),), ffn=FFN),
    "chosen keys": Layer(mixers=(replace(PLAIN, sparse_keys=8),), ffn=FFN),
    "native sparse": Layer(mixers=(replace(PLAIN, sparse_keys=8, sparse_near=4),), ffn=FFN),
    "random features": Layer(mixers=(replace(PLAIN, n_features=12),), ffn=FFN),
    "linear attention": Layer(mixers=(LINEAR,), ffn=FFN),
    "retention": Layer(mixers=(replace(LINEAR, kind="retention"),), ffn=FFN),
}
# Counted otherwise one token at a time, or not able to run so. Native sparse attention compresses
# the whole past again at every step, where `cost` keeps what is compressed.
WHOLE = (
    *("linear attention", "retention", "random features"),
    *("low rank", "window", "native sparse"),
)


def spec_of(layer: Layer) -> ModelSpec:
    return ModelSpec(name="m", d_model=D_MODEL, vocab_size=40, layers=(layer,) * 2, context_len=64)


def predicted(spec: ModelSpec, p: Pass) -> float:
    return float(sum(op.flops * op.count for op in ledger_of(spec, p)))


@pytest.fixture
def plain_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every score written down, MLA expanded, experts one after the other."""

    def attend(*args: object, is_causal: bool = False, **options: object) -> torch.Tensor:
        return core.attend_plainly(*args, **options)

    monkeypatch.setattr(gqa, "attend", attend)
    monkeypatch.setattr(mla, "attend", attend)
    monkeypatch.setattr(low_rank_attention, "attend", attend)
    monkeypatch.setattr(sparse_attention, "attend", attend)
    monkeypatch.setattr(mla.MultiHeadLatentAttention, "is_absorbed", lambda self, n, m: n == 1)
    monkeypatch.setattr(Experts, "_is_aligned", lambda self, x: False)


def counted(run) -> int:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


@pytest.mark.parametrize("mixer", MIXERS.values(), ids=MIXERS)
def test_a_pass_reads_every_projection_once(mixer: Mixer) -> None:
    spec = spec_of(Layer(mixers=(mixer,), ffn=FFN))
    model = build(spec)
    matrices = [m.weight for m in model.modules() if isinstance(m, torch.nn.Linear)]
    # Matrices that are no `nn.Linear`: RWKV-6's mixes, and Performer's features, which are drawn.
    tensors = model.state_dict()
    matrices += [tensors[n] for n in tensors if n.endswith((".mix_out", ".features"))]
    ledger = ledger_of(spec, Pass(phase="decode", batch=1, new=1, past=8))
    # bf16 weights, two bytes each.
    assert sum(op.weights * op.count for op in ledger) == 2 * sum(w.numel() for w in matrices)


@pytest.mark.usefixtures("plain_path")
@pytest.mark.parametrize("name", LAYERS)
def test_flops_of_a_prefill(name: str) -> None:
    spec, n = spec_of(LAYERS[name]), 24
    model = build(spec).eval()
    got = counted(lambda: model(torch.randint(40, (BATCH, n))))
    assert got == predicted(spec, Pass(phase="prefill", batch=BATCH, new=n, is_fused=False))


@pytest.mark.usefixtures("plain_path")
@pytest.mark.parametrize("name", [name for name in LAYERS if name not in WHOLE])
def test_flops_of_one_more_token(name: str) -> None:
    """Linear states step by element-wise products, and a window's cache holds one key that the new
    query no longer sees: the plain path multiplies it before the mask."""
    spec, past = spec_of(LAYERS[name]), 24
    model = build(spec).eval()
    cache = model.new_cache()
    with torch.no_grad():
        model(torch.randint(40, (BATCH, past)), cache=cache)
    got = counted(lambda: model(torch.randint(40, (BATCH, 1)), cache=cache))
    p = Pass(phase="decode", batch=BATCH, new=1, past=past, is_fused=False)
    assert got == predicted(spec, p)


@pytest.mark.usefixtures("plain_path")
def test_flops_of_a_chunk_after_a_past() -> None:
    spec = spec_of(LAYERS["grouped"])
    model = build(spec).eval()
    cache = model.new_cache()
    model(torch.randint(40, (BATCH, 24)), cache=cache)
    got = counted(lambda: model(torch.randint(40, (BATCH, 7)), cache=cache))
    p = Pass(phase="prefill", batch=BATCH, new=7, past=24, is_fused=False)
    assert got == predicted(spec, p)


@pytest.mark.usefixtures("plain_path")
@pytest.mark.parametrize("around", [{"embedding_dim": 8}, {"has_tied_embeddings": True}])
def test_flops_around_the_layers(around: dict[str, object]) -> None:
    spec = replace(spec_of(LAYERS["grouped"]), **around)
    model = build(spec).eval()
    ids = torch.randint(40, (BATCH, 9))
    p = Pass(phase="prefill", batch=BATCH, new=9, is_fused=False)
    assert counted(lambda: model(ids)) == predicted(spec, p)
    assert counted(lambda: model(ids, last_only=True)) == predicted(spec, replace(p, logits=1))
