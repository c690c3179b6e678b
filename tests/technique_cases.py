"""Cases with round numbers, built by hand, for tests of techniques."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from worthit.spec.case import Case, Device, Efficiency, Hardware, Layout, Serving, Training
from worthit.spec.model import (
    Attention,
    FeedForward,
    LatentAttention,
    Layer,
    Mamba,
    ModelSpec,
    MoE,
)

EFFICIENCY = Efficiency(
    gemm_compute=0.8,
    gemm_memory=0.9,
    decode_attention_memory=0.9,
    prefill_attention_compute=0.5,
    launch_s=5e-6,
    decode_attention_launch_s=1e-5,
    comm_floor_s=1e-5,
    source="round numbers",
)


def device(*, has_fp8: bool = True, has_fp4: bool = False, **changes: Any) -> Device:
    """An accelerator of 80 GB in domains of 8, with or without narrow arithmetic."""
    peaks: dict[str, float | None] = {"fp32": 1e14, "bf16": 1e15, "int8": 2e15}
    peaks["fp8"] = 2e15 if has_fp8 else None
    peaks["fp4"] = 4e15 if has_fp4 else None
    made = Device(
        id="made-up",
        name="Made-up accelerator",
        kind="gpu",
        flops_per_s=peaks,
        mem_bytes_per_s=3e12,
        mem_bytes=80e9,
        efficiency=EFFICIENCY,
        link_bytes_per_s=4e11,
        link_domain=8,
        net_bytes_per_s=5e10,
    )
    return replace(made, **changes)


def attention_layer(
    *, n_heads: int = 32, n_kv_heads: int = 8, head_dim: int = 128, d_ff: int = 14336
) -> Layer:
    """One layer of Llama 3.1 8B, unless told otherwise."""
    return Layer(
        mixers=(Attention(n_heads=n_heads, n_kv_heads=n_kv_heads, head_dim=head_dim),),
        ffn=FeedForward(d_ff=d_ff),
    )


def llama_8b(*, n_layers: int = 32) -> ModelSpec:
    """Llama 3.1 8B: 8,030,261,248 parameters (FACTS: counted on the reference code)."""
    return ModelSpec(
        name="llama-8b",
        d_model=4096,
        vocab_size=128256,
        layers=(attention_layer(),) * n_layers,
        context_len=131072,
    )


def llama_70b() -> ModelSpec:
    """Llama 3.1 70B: 64 heads over 8, 80 layers of 8192."""
    layer = attention_layer(n_heads=64, d_ff=28672)
    return ModelSpec(
        name="llama-70b", d_model=8192, vocab_size=128256, layers=(layer,) * 80, context_len=131072
    )


def one_layer() -> ModelSpec:
    """A tutor of one small layer."""
    layer = attention_layer(n_heads=4, n_kv_heads=4, head_dim=32, d_ff=512)
    return ModelSpec(name="tutor", d_model=128, vocab_size=64, layers=(layer,), context_len=32)


def mixture(*, n_experts: int = 8, n_layers: int = 4) -> ModelSpec:
    """A small Mixtral: every feed-forward is `n_experts` experts, two a token."""
    layer = Layer(
        mixers=(Attention(n_heads=8, n_kv_heads=8, head_dim=64),),
        ffn=MoE(n_experts=n_experts, n_experts_per_token=2, expert=FeedForward(d_ff=1024)),
    )
    return ModelSpec(
        name="mixture",
        d_model=512,
        vocab_size=1000,
        layers=(layer,) * n_layers,
        context_len=4096,
    )


def latent_layer() -> Layer:
    """A layer of latent attention, in DeepSeek-V2's proportions."""
    mixer = LatentAttention(
        n_heads=16, kv_lora_rank=512, qk_nope_head_dim=128, qk_rope_head_dim=64, v_head_dim=128
    )
    return Layer(mixers=(mixer,), ffn=FeedForward(d_ff=4096))


def mamba() -> ModelSpec:
    """A model that keeps a fixed state and no growing cache."""
    layer = Layer(mixers=(Mamba(d_inner=512, d_state=16, d_conv=4, dt_rank=16),), ffn=None)
    return ModelSpec(
        name="mamba", d_model=256, vocab_size=1000, layers=(layer,) * 4, context_len=4096
    )


def serving(
    model: ModelSpec | None = None,
    *,
    n_devices: int = 1,
    layout: Layout | None = None,
    on: Device | None = None,
    **workload: Any,
) -> Case:
    """`model` answering: 1000 tokens in, 200 out, one at a time, unless told otherwise."""
    asked = {"prompt": 1000, "output": 200, "concurrency": 1} | workload
    return Case(
        model=llama_8b() if model is None else model,
        workload=Serving(**asked),
        hardware=Hardware(
            device=device() if on is None else on,
            n_devices=n_devices,
            layout=Layout() if layout is None else layout,
        ),
    )


def training(
    model: ModelSpec | None = None,
    *,
    n_devices: int = 1,
    layout: Layout | None = None,
    on: Device | None = None,
    **workload: Any,
) -> Case:
    """`model` trained on a billion tokens, 4096 a sequence, a million a step."""
    asked = {"tokens": 10**9, "seq": 4096, "batch_tokens": 2**20} | workload
    return replace(
        serving(model, n_devices=n_devices, layout=layout, on=on), workload=Training(**asked)
    )
