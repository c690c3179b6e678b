"""Reference cases: one of every kind that a technique may meet."""

from __future__ import annotations

from dataclasses import replace

from technique_cases import device, llama_8b, llama_70b, serving, training

from worthit.spec.case import INSIDES, Case, Data, Layout, Runtime
from worthit.spec.model import (
    Attention,
    ChannelMix,
    FeedForward,
    LatentAttention,
    Layer,
    Mamba,
    ModelSpec,
    MoE,
    Norm,
    Position,
    Rwkv,
)
from worthit.spec.preference_facts import SHAPES, PreferenceFacts, Shape

LAYERNORM = Norm(kind="layernorm", has_bias=True)


def llama_2_7b() -> ModelSpec:
    """Llama 2 7B: 32 layers of 4096, 32 full heads; 6,738,415,616 parameters."""
    layer = Layer(
        mixers=(Attention(n_heads=32, n_kv_heads=32, head_dim=128, rotary_dim=128),),
        ffn=FeedForward(d_ff=11008),
    )
    return ModelSpec(
        name="llama-2-7b", d_model=4096, vocab_size=32000, layers=(layer,) * 32, context_len=4096
    )


def tutor() -> ModelSpec:
    """The grammar tutor: one dense layer of 192, 500,544 parameters."""
    layer = Layer(
        mixers=(
            Attention(n_heads=6, n_kv_heads=6, head_dim=32, has_qkv_bias=True, has_out_bias=True),
        ),
        ffn=FeedForward(d_ff=768, is_gated=False, activation="gelu", has_bias=True),
        norm=LAYERNORM,
    )
    return ModelSpec(
        name="tutor",
        d_model=192,
        vocab_size=128,
        layers=(layer,),
        context_len=32,
        n_positions=32,
        position=Position(kind="learned"),
        norm=LAYERNORM,
    )


def post_norm() -> ModelSpec:
    """A model of 2017: norms after the additions, sinusoids, ReLU."""
    layer = Layer(
        mixers=(Attention(n_heads=8, n_kv_heads=8, head_dim=64),),
        ffn=FeedForward(d_ff=2048, is_gated=False, activation="relu"),
        norm=LAYERNORM,
        placement="post",
    )
    return ModelSpec(
        name="of-2017",
        d_model=512,
        vocab_size=37000,
        layers=(layer,) * 6,
        context_len=512,
        position=Position(kind="sinusoidal"),
        norm=LAYERNORM,
        has_final_norm=False,
    )


def mixtral() -> ModelSpec:
    """Mixtral 8x7B: 46,702,792,704 parameters."""
    layer = Layer(
        mixers=(Attention(n_heads=32, n_kv_heads=8, head_dim=128),),
        ffn=MoE(n_experts=8, n_experts_per_token=2, expert=FeedForward(d_ff=14336)),
    )
    return ModelSpec(
        name="mixtral", d_model=4096, vocab_size=32000, layers=(layer,) * 32, context_len=32768
    )


def deepseek() -> ModelSpec:
    """DeepSeek-V2-Lite's shape: latent attention, one dense layer, shared and routed experts."""
    mixer = LatentAttention(
        n_heads=16, kv_lora_rank=512, qk_nope_head_dim=128, qk_rope_head_dim=64, v_head_dim=128
    )
    experts = MoE(
        n_experts=64,
        n_experts_per_token=6,
        expert=FeedForward(d_ff=1408),
        shared=FeedForward(d_ff=2816),
        n_shared_experts=2,
        balance="bias",
    )
    dense = Layer(mixers=(mixer,), ffn=FeedForward(d_ff=10944))
    layers = (dense, *(Layer(mixers=(mixer,), ffn=experts),) * 26)
    return ModelSpec(
        name="deepseek", d_model=2048, vocab_size=102400, layers=layers, context_len=163840
    )


def pure_mamba() -> ModelSpec:
    """Mamba-2.8b's shape: 64 bare blocks of 2560."""
    mixer = Mamba(d_inner=5120, d_state=16, d_conv=4, dt_rank=160)
    return ModelSpec(
        name="mamba",
        d_model=2560,
        vocab_size=50280,
        layers=(Layer(mixers=(mixer,), ffn=None),) * 64,
        context_len=2048,
        position=Position(kind="nope"),
        has_tied_embeddings=True,
    )


def jamba() -> ModelSpec:
    """A small Jamba: one attention layer in eight, no positions, experts in every second layer."""
    mamba = Mamba(d_inner=2048, d_state=16, d_conv=4, dt_rank=64)
    attention = Attention(n_heads=16, n_kv_heads=4, head_dim=64)
    ffns = (
        FeedForward(d_ff=3584),
        MoE(n_experts=16, n_experts_per_token=2, expert=FeedForward(d_ff=3584)),
    )
    layers = tuple(
        Layer(mixers=(attention if i % 8 == 4 else mamba,), ffn=ffns[i % 2]) for i in range(16)
    )
    return ModelSpec(
        name="jamba",
        d_model=1024,
        vocab_size=65536,
        layers=layers,
        context_len=262144,
        position=Position(kind="nope"),
    )


def rwkv() -> ModelSpec:
    """A small RWKV-4: time mixing and channel mixing, no attention."""
    layer = Layer(mixers=(Rwkv(d_attention=768),), ffn=ChannelMix(d_ff=3072), norm=LAYERNORM)
    return ModelSpec(
        name="rwkv",
        d_model=768,
        vocab_size=50277,
        layers=(layer,) * 12,
        context_len=1024,
        position=Position(kind="nope"),
        norm=LAYERNORM,
    )


def naive(case: Case) -> Case:
    """`case` with unfused attention."""
    return replace(case, runtime=replace(case.runtime, attention="naive"))


def with_checkpoints(case: Case, n: int) -> Case:
    """`case` with fine-tuned checkpoints at hand."""
    return replace(case, data=Data(checkpoints=n))


def looking_inside(need: str) -> Case:
    """A served model whose activations are wanted for something, with labels at hand."""
    return replace(serving(llama_8b()), data=Data(inside=need, labels=200))


def with_preferences(shape: Shape) -> Case:
    """A fine-tuning on preferences of a shape."""
    case = training(llama_8b(), n_devices=8)
    facts = PreferenceFacts(shape=shape, n=5000, desirable=0.4 if shape == "binary" else None)
    return replace(case, data=Data(preferences=facts), stage="deployed", max_adoption="finetune")


def with_answer_check(case: Case) -> Case:
    """`case` whose answers can be checked."""
    return replace(case, data=Data(answer_check="exact"))


# Built once: frozen, and shared by every test.
CASES: dict[str, Case] = {
    "mha-chat": serving(llama_2_7b(), concurrency=8),
    "mha-long": serving(llama_2_7b(), prompt=30_000, output=500, concurrency=4),
    "mha-score": serving(llama_2_7b(), prompt=4000, output=1, concurrency=8),
    "mha-training": training(llama_2_7b(), n_devices=8),
    "mha-naive": naive(training(llama_2_7b(), n_devices=8)),
    "gqa-chat": serving(llama_8b()),
    "gqa-long": serving(llama_8b(), prompt=200_000, output=1000, concurrency=4),
    "gqa-node": serving(llama_70b(), n_devices=8, layout=Layout(tensor=8), concurrency=64),
    "gqa-training": training(llama_70b(), n_devices=64),
    "fp4-training": training(llama_8b(), n_devices=8, on=device(has_fp4=True)),
    "moe-chat": serving(mixtral(), n_devices=2, concurrency=16),
    "moe-training": training(mixtral(), n_devices=16),
    "mla-long": serving(deepseek(), prompt=100_000, output=1000, concurrency=16),
    "ssm-chat": serving(pure_mamba()),
    "hybrid-long": serving(jamba(), prompt=200_000, output=1000),
    "rwkv-chat": serving(rwkv()),
    "post-norm-training": training(post_norm(), seq=512),
    "merge-training": with_checkpoints(training(llama_8b(), n_devices=8), 2),
    **{f"align-{shape}": with_preferences(shape) for shape in SHAPES},
    "merge-serving": with_checkpoints(serving(llama_8b()), 2),
    **{f"inside-{need}": looking_inside(need) for need in INSIDES},
    "checked-serving": with_answer_check(serving(llama_8b())),
    "tutor-serving": replace(
        serving(tutor(), prompt=16, output=16),
        stage="design",
        runtime=Runtime(attention="naive", is_compiled=False),
    ),
    "tutor-training": replace(
        training(tutor(), tokens=10**6, seq=32, batch_tokens=2048), stage="design"
    ),
}
