"""Norms against torch's and transformers' own, in every kind that checkpoints use."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from nn.tolerances import assert_near
from torch import Tensor, nn
from transformers.models.cohere.modeling_cohere import CohereLayerNorm
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.olmo2.modeling_olmo2 import Olmo2RMSNorm
from transformers.models.stablelm.modeling_stablelm import StableLmLayerNormPerHead

from worthit.nn.norm import norm_for
from worthit.nn.norm.layernorm import LayerNorm
from worthit.nn.norm.qk_norm import PerHeadNorm, QKNorm
from worthit.nn.norm.rmsnorm import RMSNorm
from worthit.spec.model import Attention, Layer, ModelSpec, Norm

WIDTH = 24


def same(ours: nn.Module, theirs: nn.Module, x: Tensor) -> None:
    """Outputs, and gradients of input and weights."""
    torch.manual_seed(1)
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        with torch.no_grad():
            p.copy_(torch.randn(p.shape))
            q.copy_(p)
    inputs = [x.clone().requires_grad_(), x.clone().requires_grad_()]
    got, want = ours(inputs[0]), theirs(inputs[1])
    assert_near(got, want)
    weights = torch.randn(want.shape, dtype=want.dtype)
    (got * weights).sum().backward()
    (want * weights).sum().backward()
    assert_near(inputs[0].grad, inputs[1].grad)
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert_near(p.grad, q.grad)


def x_of(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    torch.manual_seed(0)
    return (3 * torch.randn(*shape) + 1).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
# torch has no norm with a bias alone.
@pytest.mark.parametrize(("has_weight", "has_bias"), [(False, False), (True, False), (True, True)])
def test_layernorm_is_torchs(has_weight: bool, has_bias: bool, dtype: torch.dtype) -> None:
    ours = LayerNorm(WIDTH, eps=1e-5, has_weight=has_weight, has_bias=has_bias)
    theirs = nn.LayerNorm(WIDTH, eps=1e-5, elementwise_affine=has_weight, bias=has_bias)
    same(ours.to(dtype), theirs.to(dtype), x_of(2, 7, WIDTH, dtype=dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rmsnorm_is_llamas_torchs_and_gemmas(dtype: torch.dtype) -> None:
    x = x_of(2, 7, WIDTH, dtype=dtype)
    same(RMSNorm(WIDTH, eps=1e-5).to(dtype), LlamaRMSNorm(WIDTH, eps=1e-5).to(dtype), x)
    same(RMSNorm(WIDTH, eps=1e-5).to(dtype), nn.RMSNorm(WIDTH, eps=1e-5).to(dtype), x)
    gemma = RMSNorm(WIDTH, eps=1e-5, has_unit_offset=True)
    same(gemma.to(dtype), GemmaRMSNorm(WIDTH, eps=1e-5).to(dtype), x)


def test_gemmas_norm_starts_as_the_identity_of_weights() -> None:
    x = x_of(2, 3, WIDTH)
    offset = RMSNorm(WIDTH, eps=1e-6, has_unit_offset=True)
    assert_near(offset(x), RMSNorm(WIDTH, eps=1e-6, has_weight=False)(x))


def test_rmsnorm_may_add_a_bias() -> None:
    x = x_of(2, 3, WIDTH)
    norm = norm_for(Norm(eps=1e-6, has_bias=True), WIDTH)
    with torch.no_grad():
        norm.bias.fill_(2.0)
    assert_near(norm(x), RMSNorm(WIDTH, eps=1e-6)(x) + 2.0)


def test_bfloat16_is_normalised_in_float32() -> None:
    # 256 channels of 16: a sum of squares in bf16 would lose most of them.
    x = torch.full((1, 4096), 16.0, dtype=torch.bfloat16)
    y = RMSNorm(4096, eps=0.0, has_weight=False)(x)
    assert (y == 1).all()


def model_of(attention: Attention, norm: Norm) -> ModelSpec:
    layer = Layer(mixers=(attention,), ffn=None, norm=norm)
    return ModelSpec(name="m", d_model=32, vocab_size=8, layers=(layer,), context_len=16)


HEADS = Attention(n_heads=4, n_kv_heads=2, head_dim=6, qk_norm="head")


def qk_of() -> tuple[Tensor, Tensor]:
    return x_of(2, 4, 5, 6), x_of(2, 2, 5, 6) + 1


def test_head_norm_has_one_weight_for_all_heads() -> None:
    norm = QKNorm(HEADS, model_of(HEADS, Norm(eps=1e-5)))
    q, k = qk_of()
    same(norm.query, LlamaRMSNorm(6, eps=1e-5), q)
    same(norm.key, LlamaRMSNorm(6, eps=1e-5), k)
    with torch.no_grad():
        # Drawn alike above: queries and keys have weights of their own.
        norm.key.weight.normal_()
    got = norm(q, k)
    assert_near(got[0], norm.query(q))
    assert_near(got[1], norm.key(k))


def test_full_norm_spans_the_whole_projection() -> None:
    full = replace(HEADS, qk_norm="full")
    norm = QKNorm(full, model_of(full, Norm(eps=1e-5)))
    same(norm.query, Olmo2RMSNorm(24, eps=1e-5), x_of(2, 5, 24))
    same(norm.key, Olmo2RMSNorm(12, eps=1e-5), x_of(2, 5, 12))


def test_per_head_norms_have_weights_of_their_own() -> None:
    own = replace(HEADS, qk_norm="per-head")
    norm = QKNorm(own, model_of(own, Norm(kind="layernorm", eps=1e-5)))
    q, _ = qk_of()
    theirs = StableLmLayerNormPerHead(6, 4, eps=1e-5, bias=False)
    assert isinstance(norm.query, PerHeadNorm)
    with torch.no_grad():
        norm.query.weight.normal_()
        for head, weight in zip(theirs.norms, norm.query.weight, strict=True):
            head.weight.copy_(weight)
    assert_near(norm.query(q), theirs(q))
    cohere = CohereLayerNorm(hidden_size=(4, 6), eps=1e-5)
    with torch.no_grad():
        cohere.weight.copy_(norm.query.weight)
    # Cohere keeps (batch, n, heads, head_dim).
    assert_near(norm.query(q), cohere(q.transpose(1, 2)).transpose(1, 2))


def test_no_weight_leaves_unit_power() -> None:
    bare = replace(HEADS, qk_norm="no-weight")
    norm = QKNorm(bare, model_of(bare, Norm(eps=0.0)))
    assert not list(norm.parameters())
    q, k = norm(*qk_of())
    for t in (q, k):
        assert_near(t.square().mean(-1), torch.ones(t.shape[:-1]))


@pytest.mark.parametrize("kind", ["layernorm", "rmsnorm"])
def test_norm_for_builds_what_the_spec_says(kind: str) -> None:
    norm = norm_for(Norm(kind=kind, eps=0.1, has_weight=False), WIDTH)
    x = x_of(3, WIDTH)
    centred = x - x.mean(-1, keepdim=True) if kind == "layernorm" else x
    assert_near(norm(x), centred / (centred.square().mean(-1, keepdim=True) + 0.1).sqrt())
