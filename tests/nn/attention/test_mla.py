"""Multi-head latent attention: the paper's equations token by token, and DeepSeek-V3's own code."""

from __future__ import annotations

from typing import Any

import pytest

from worthit.cost.cache import cache_elements
from worthit.cost.params import mixer_params
from worthit.spec import model as spec

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from nn.tolerances import assert_near  # noqa: E402  # torch may be absent
from torch import Tensor  # noqa: E402

from worthit.nn.attention.mla import MultiHeadLatentAttention  # noqa: E402
from worthit.nn.tokens import tokens_of  # noqa: E402

D_MODEL, THETA = 40, 10_000.0
LENGTHS = (1, 63, 100)
YARN = spec.PositionScaling(
    kind="yarn", factor=8.0, original_context_len=32, mscale=1.0, mscale_all_dim=0.7
)
SPECS: dict[str, spec.LatentAttention] = {
    "compressed queries": spec.LatentAttention(
        n_heads=4,
        kv_lora_rank=16,
        q_lora_rank=12,
        qk_nope_head_dim=8,
        qk_rope_head_dim=4,
        v_head_dim=6,
    ),
    "plain queries, biased": spec.LatentAttention(
        n_heads=2,
        kv_lora_rank=10,
        qk_nope_head_dim=6,
        qk_rope_head_dim=8,
        v_head_dim=12,
        has_bias=True,
    ),
    "no rotated part": spec.LatentAttention(
        n_heads=2, kv_lora_rank=8, qk_nope_head_dim=8, qk_rope_head_dim=0, v_head_dim=8
    ),
}
every = pytest.mark.parametrize("name", SPECS)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def model_of(a: spec.LatentAttention, position: spec.Position | None = None) -> spec.ModelSpec:
    return spec.ModelSpec(
        name="m",
        d_model=D_MODEL,
        vocab_size=8,
        layers=(spec.Layer(mixers=(a,), ffn=None),),
        context_len=256,
        position=position or spec.Position(rope_theta=THETA, is_interleaved=True),
    )


def built(a: spec.LatentAttention, position: spec.Position | None = None) -> Any:
    torch.manual_seed(0)
    module = MultiHeadLatentAttention(a, model_of(a, position)).eval()
    with torch.no_grad():
        for p in module.parameters():
            p.normal_(0.8 if p.dim() == 1 else 0.0, p.shape[-1] ** -0.5)
    return module


def run(
    module: Any, x: Tensor, cache: Any = None, past: int = 0, mask: Tensor | None = None
) -> Tensor:
    out: Tensor = module(x, tokens_of(x[..., 0], past=past, attention_mask=mask), cache)
    return out


def by_the_paper(module: Any, x: Tensor) -> Tensor:
    """Equations 37 to 47 of arXiv:2405.04434, one query, head and key after another."""
    a = module.spec

    def normed(c: Tensor, weight: Tensor) -> Tensor:
        return c / (c.square().mean() + 1e-6).sqrt() * weight

    def turned(v: Tensor, place: int) -> Tensor:
        pairs = []
        for i in range(len(v) // 2):
            angle = torch.tensor(place * THETA ** (-2 * i / len(v)), dtype=torch.float64)
            cos, sin = angle.cos().to(v.dtype), angle.sin().to(v.dtype)
            pairs += [v[2 * i] * cos - v[2 * i + 1] * sin, v[2 * i] * sin + v[2 * i + 1] * cos]
        return torch.stack(pairs) if pairs else v

    queries, latents, keys = [], [], []
    for t, h in enumerate(x):
        if module.q_proj is None:
            q = module.q_up.weight @ normed(module.q_down(h), module.q_norm.weight)
        else:
            q = module.q_proj.weight @ h
        heads = q.view(a.n_heads, -1).unbind()
        n = a.qk_nope_head_dim
        queries.append([(head[:n], turned(head[n:], t)) for head in heads])
        down = module.kv_down(h)
        latents.append(normed(down[: a.kv_lora_rank], module.kv_norm.weight))
        keys.append(turned(down[a.kv_lora_rank :], t))
    up = module.kv_up.weight.view(a.n_heads, a.qk_nope_head_dim + a.v_head_dim, a.kv_lora_rank)
    scale = (a.qk_nope_head_dim + a.qk_rope_head_dim) ** -0.5
    outputs = []
    for t in range(len(x)):
        parts = []
        for i in range(a.n_heads):
            content, rotary = queries[t][i]
            scores = [
                (content @ (up[i, : a.qk_nope_head_dim] @ latents[j]) + rotary @ keys[j]) * scale
                for j in range(t + 1)
            ]
            weights = torch.stack(scores).softmax(0)
            parts.append(
                sum(w * (up[i, a.qk_nope_head_dim :] @ latents[j]) for j, w in enumerate(weights))
            )
        outputs.append(module.o_proj(torch.cat(parts)))
    return torch.stack(outputs)


@every
def test_is_the_papers(name: str) -> None:
    module = built(SPECS[name])
    x = torch.randn(2, 11, D_MODEL)
    with torch.no_grad():
        want = torch.stack([by_the_paper(module, row) for row in x])
        assert_near(run(module, x), want)


@pytest.mark.parametrize("n", LENGTHS)
@every
def test_both_forms_are_one(name: str, n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    results = []
    for is_absorbed in (False, True):
        monkeypatch.setattr(
            MultiHeadLatentAttention, "is_absorbed", lambda self, n, m, use=is_absorbed: use
        )
        module = built(SPECS[name])
        x = torch.randn(2, n, D_MODEL, generator=torch.Generator().manual_seed(n))
        mask = torch.ones(2, n, dtype=torch.long)
        mask[0, : n // 3] = 0
        y = run(module, x, mask=mask) * mask[:, :, None]
        y.square().sum().backward()
        results.append([y, *(p.grad for p in module.parameters())])
    for expanded, absorbed in zip(*results, strict=True):
        assert_near(absorbed, expanded)


def test_the_cheaper_form_is_taken() -> None:
    module = built(SPECS["compressed queries"])
    taken = []
    for form in ("attend_expanded", "attend_absorbed"):
        original = getattr(module, form)

        def spy(*args: Any, _name: str = form, _call: Any = original, **kwargs: Any) -> Tensor:
            taken.append(_name)
            out: Tensor = _call(*args, **kwargs)
            return out

        setattr(module, form, spy)
    x, cache = torch.randn(1, 20, D_MODEL), module.new_cache()
    with torch.no_grad():
        run(module, x, cache)
        run(module, x[:, :1], cache, 20)
    assert taken == ["attend_expanded", "attend_absorbed"]


@pytest.mark.parametrize("scaling", [None, YARN], ids=["plain", "yarn"])
@pytest.mark.parametrize("is_interleaved", [True, False])
@pytest.mark.parametrize("n", LENGTHS)
def test_is_deepseeks(n: int, is_interleaved: bool, scaling: spec.PositionScaling | None) -> None:
    from transformers.models.deepseek_v3 import modeling_deepseek_v3 as theirs

    from worthit.spec.hf import from_config

    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": THETA}
    if scaling is not None:
        rope |= {
            "rope_type": "yarn",
            "factor": scaling.factor,
            "original_max_position_embeddings": scaling.original_context_len,
            "mscale": scaling.mscale,
            "mscale_all_dim": scaling.mscale_all_dim,
        }
    config = transformers.DeepseekV3Config(
        vocab_size=8,
        hidden_size=D_MODEL,
        intermediate_size=16,
        num_hidden_layers=1,
        first_k_dense_replace=1,
        num_attention_heads=4,
        num_key_value_heads=4,
        kv_lora_rank=16,
        q_lora_rank=12,
        qk_nope_head_dim=8,
        qk_rope_head_dim=4,
        v_head_dim=6,
        n_group=1,
        topk_group=1,
        max_position_embeddings=256,
        rope_interleave=is_interleaved,
        rope_parameters=rope,
        attn_implementation="eager",
    )
    model = from_config(config.to_dict())
    (a,) = model.mixers
    assert isinstance(a, spec.LatentAttention)
    assert (a.scale is None) == (scaling is None)
    module = built(a, model.position)
    reference = theirs.DeepseekV3Attention(config, layer_idx=0).eval()
    names = {
        "q_a_proj.weight": module.q_down.weight,
        "q_a_layernorm.weight": module.q_norm.weight,
        "q_b_proj.weight": module.q_up.weight,
        "kv_a_proj_with_mqa.weight": module.kv_down.weight,
        "kv_a_layernorm.weight": module.kv_norm.weight,
        "kv_b_proj.weight": module.kv_up.weight,
        "o_proj.weight": module.o_proj.weight,
    }
    reference.load_state_dict({k: v.detach().clone() for k, v in names.items()})

    x = torch.randn(2, n, D_MODEL, generator=torch.Generator().manual_seed(n))
    places = torch.arange(n)[None].expand(2, n)
    rotary = theirs.DeepseekV3RotaryEmbedding(config)(x, places)
    future = torch.full((n, n), torch.finfo(x.dtype).min).triu(1)[None, None]
    want, _ = reference(x, rotary, future)
    got = run(module, x)
    assert_near(got, want)
    want.square().sum().backward()
    got.square().sum().backward()
    theirs_by_name = dict(reference.named_parameters())
    for k, p in names.items():
        assert_near(p.grad, theirs_by_name[k].grad)


@every
def test_prefill_and_decode_are_one_pass(name: str) -> None:
    module = built(SPECS[name])
    x = torch.randn(2, 23, D_MODEL)
    with torch.no_grad():
        whole = run(module, x)
        for lengths in ([23], [18, 1, 1, 1, 1, 1], [7, 1, 2, 13], [1] * 23):
            cache, past, parts = module.new_cache(), 0, []
            for n in lengths:
                parts.append(run(module, x[:, past : past + n], cache, past))
                past += n
            assert_near(torch.cat(parts, dim=1), whole)


@every
def test_padding_changes_nothing(name: str) -> None:
    module, padding, n = built(SPECS[name]), 5, 12
    x = torch.randn(2, n, D_MODEL)
    padded = torch.cat([torch.full((2, padding, D_MODEL), 50.0), x], dim=1)
    mask = torch.ones(2, padding + n, dtype=torch.long)
    mask[:, :padding] = 0
    with torch.no_grad():
        want, cache, end = run(module, x), module.new_cache(), padding + n - 2
        parts = [run(module, padded[:, :end], cache, 0, mask[:, :end])[:, padding:]]
        for i in range(end, padding + n):
            parts.append(run(module, padded[:, i : i + 1], cache, i, mask[:, : i + 1]))
    assert_near(torch.cat(parts, dim=1), want)


@every
def test_is_causal(name: str) -> None:
    module, x = built(SPECS[name]), torch.randn(1, 20, D_MODEL)
    changed = x.clone()
    changed[:, 13] += 1.0
    with torch.no_grad():
        before, after = run(module, x), run(module, changed)
    assert_near(after[:, :13], before[:, :13])
    assert not torch.allclose(after[:, 13], before[:, 13])


@every
def test_costs_what_is_predicted(name: str) -> None:
    a = SPECS[name]
    with torch.device("meta"):
        module = MultiHeadLatentAttention(a, model_of(a))
    assert sum(p.numel() for p in module.parameters()) == mixer_params(a, D_MODEL)
    for dtype in (torch.float32, torch.bfloat16):
        real = built(a).to(dtype)
        cache = real.new_cache()
        with torch.no_grad():
            run(real, torch.randn(3, 9, D_MODEL, dtype=dtype), cache)
            run(real, torch.randn(3, 1, D_MODEL, dtype=dtype), cache, 9)
        assert cache.nbytes == 3 * 10 * cache_elements(a, D_MODEL).per_token * dtype.itemsize


def test_positions_without_rotation_reach_it() -> None:
    # Latent attention put into a model with ALiBi keeps its penalty, in both forms.
    a = SPECS["no rotated part"]
    x = torch.randn(1, 9, D_MODEL)
    with torch.no_grad():
        without = run(built(a, spec.Position(kind="nope")), x)
        module = built(a, spec.Position(kind="alibi"))
        whole, cache = run(module, x), module.new_cache()
        parts = [run(module, x[:, i : i + 1], cache, i) for i in range(9)]
    assert not torch.allclose(without, whole)
    assert_near(torch.cat(parts, dim=1), whole)


def test_bfloat16() -> None:
    module = built(SPECS["compressed queries"])
    x = torch.randn(2, 30, D_MODEL)
    with torch.no_grad():
        want = run(module, x)
        half = module.bfloat16()
        cache = half.new_cache()
        y = [run(half, x[:, :25].bfloat16(), cache)]
        y += [run(half, x[:, i : i + 1].bfloat16(), cache, i) for i in range(25, 30)]
    assert_near(torch.cat(y, dim=1), want.bfloat16())
