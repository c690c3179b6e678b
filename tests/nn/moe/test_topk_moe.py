"""Top-k mixtures against transformers' and against a loop over tokens."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from nn.moe.mixtures import D_FF, EXPERT, MIXTURE, D, E, K, built, model_of
from nn.tolerances import assert_near
from torch import Tensor, nn
from torch.nn import functional

from worthit.cost.params import ffn_params
from worthit.nn.moe.experts import Experts, Sorted
from worthit.nn.moe.topk_moe import TopKMoE, build_moe
from worthit.nn.norm.swiglu import clamped_swish
from worthit.spec.model import FeedForward, MoE

GATE_UP = "{0}.gate_proj.weight+{0}.up_proj.weight"


def slowly(m: TopKMoE, x: Tensor) -> Tensor:
    """The paper's sum, one token and one expert at a time."""
    moe, out = m.spec, []
    bias = m.router.selection_bias
    for row in x.reshape(-1, D):
        logits = functional.linear(row, m.router.linear.weight, m.router.linear.bias)
        scores = logits.sigmoid() if moe.score == "sigmoid" else logits.softmax(-1)
        prefer = scores.detach() if bias is None else scores.detach() + bias
        size = moe.n_experts // moe.n_groups
        groups = sorted(
            range(moe.n_groups),
            key=lambda g: (
                -sum(sorted(prefer[g * size : (g + 1) * size].tolist())[-moe.n_group_scores :])
            ),
        )[: moe.n_groups_per_token]
        allowed = [i for g in groups for i in range(g * size, (g + 1) * size)]
        chosen = sorted(allowed, key=lambda i: -prefer[i].item())[: moe.n_experts_per_token]
        total = sum(scores[i] for i in chosen) if moe.has_normalised_weights else 1.0
        h = row if m.latent_in is None else m.latent_in(row)
        y = torch.zeros_like(h)
        for i in chosen:
            weight = scores[i] / total * moe.weight_scale
            y = y + (
                m.experts.expert(i, h * weight)
                if moe.scales_input
                else m.experts.expert(i, h) * weight
            )
        y = y if m.latent_out is None else m.latent_out(y)
        out.append(y if m.shared is None else y + m.shared(row))
    return torch.stack(out).view_as(x)


KINDS = {
    "mixtral": MIXTURE,
    "plain weights": replace(MIXTURE, has_normalised_weights=False),
    "router bias": replace(
        MIXTURE,
        has_router_bias=True,
        expert=replace(EXPERT, activation="clamped-swish", activation_limit=0.7, has_bias=True),
    ),
    "groups": replace(
        MIXTURE,
        score="sigmoid",
        n_groups=4,
        n_groups_per_token=2,
        n_group_scores=2,
        weight_scale=2.5,
        balance="bias",
        shared=FeedForward(d_ff=24),
        n_shared_experts=1,
    ),
    "best expert of a group": replace(MIXTURE, n_groups=2, n_groups_per_token=1),
    "gated shared": replace(
        MIXTURE, shared=FeedForward(d_ff=24), n_shared_experts=1, has_shared_gate=True
    ),
    "scaled input": replace(
        MIXTURE, score="sigmoid", scales_input=True, has_normalised_weights=False
    ),
    "latent": replace(
        MIXTURE,
        d_latent=12,
        has_latent_bias=True,
        expert=replace(EXPERT, is_gated=False, activation="relu2"),
    ),
    "one expert": replace(MIXTURE, n_experts_per_token=1, has_normalised_weights=False),
    "unaligned": replace(MIXTURE, expert=replace(EXPERT, d_ff=5)),
}


@pytest.mark.parametrize("n", [1, 63, 700])
@pytest.mark.parametrize("kind", KINDS)
def test_equals_the_loop_over_tokens(kind: str, n: int) -> None:
    m = built(KINDS[kind])
    x = torch.randn(1, n, D, requires_grad=True)
    with torch.no_grad():
        # One token alone, and enough rows to go expert by expert, have paths of their own.
        assert_near(m(x), slowly(m, x))
    if n > 100:
        return
    signal = torch.randn(1, n, D)
    got, want = m(x), slowly(m, x)
    assert_near(got, want)
    leaves = [x, *m.parameters()]
    for a, b in zip(
        torch.autograd.grad((got * signal).sum(), leaves, allow_unused=True),
        torch.autograd.grad((want * signal).sum(), leaves, allow_unused=True),
        strict=True,
    ):
        assert_near(
            torch.zeros(()) if a is None else a,
            torch.zeros(()) if b is None else b if a is not None or b.any() else torch.zeros(()),
        )


@pytest.mark.parametrize("kind", KINDS)
def test_parameters_are_as_counted(kind: str) -> None:
    moe = KINDS[kind]
    with torch.device("meta"):
        m = build_moe(moe, model_of(moe))
    assert sum(p.numel() for p in m.parameters()) == ffn_params(moe, D).total


def transformers_block(name: str) -> tuple[nn.Module, MoE, dict[str, str]]:
    """A block of transformers, the spec that describes it, and where our names stand in it."""
    sizes = {
        "hidden_size": D,
        "intermediate_size": D_FF,
        "moe_intermediate_size": D_FF,
        "num_local_experts": E,
        "num_experts": E,
        "num_experts_per_tok": K,
    }
    usual = {
        "router.linear.weight": "gate.weight",
        "experts.up": "experts.gate_up_proj",
        "experts.down": "experts.down_proj",
    }
    if name == "mixtral":
        from transformers.models.mixtral import modeling_mixtral as hf

        config = hf.MixtralConfig(**sizes)
        return hf.MixtralSparseMoeBlock(config), MIXTURE, usual
    if name == "qwen2_moe":
        from transformers.models.qwen2_moe import modeling_qwen2_moe as hf

        config = hf.Qwen2MoeConfig(**sizes, shared_expert_intermediate_size=24)
        moe = replace(
            KINDS["gated shared"],
            has_normalised_weights=False,
        )
        return (
            hf.Qwen2MoeSparseMoeBlock(config),
            moe,
            usual
            | {
                "shared.gate.weight": "shared_expert_gate.weight",
                "shared.ffn.up.weight": GATE_UP.format("shared_expert"),
                "shared.ffn.down.weight": "shared_expert.down_proj.weight",
            },
        )
    if name == "olmoe":
        from transformers.models.olmoe import modeling_olmoe as hf

        config = hf.OlmoeConfig(**sizes)
        return hf.OlmoeSparseMoeBlock(config), KINDS["plain weights"], usual
    if name == "granitemoe":
        from transformers.models.granitemoe import modeling_granitemoe as hf

        config = hf.GraniteMoeConfig(**sizes)
        return hf.GraniteMoeMoE(config), MIXTURE, usual | {"router.linear.weight": "router.weight"}
    if name == "deepseek_v3":
        from transformers.models.deepseek_v3 import modeling_deepseek_v3 as hf

        config = hf.DeepseekV3Config(
            **{**sizes, "num_experts": None},
            n_routed_experts=E,
            n_group=4,
            topk_group=2,
            n_shared_experts=1,
        )
        moe = replace(KINDS["groups"], shared=EXPERT)
        return (
            hf.DeepseekV3MoE(config),
            moe,
            usual
            | {
                "router.selection_bias": "gate.e_score_correction_bias",
                "shared.ffn.up.weight": GATE_UP.format("shared_experts"),
                "shared.ffn.down.weight": "shared_experts.down_proj.weight",
            },
        )
    if name == "gpt_oss":
        from transformers.models.gpt_oss import modeling_gpt_oss as hf

        config = hf.GptOssConfig(**sizes, swiglu_limit=0.7)
        # Stored the other way round, gate and value alternating.
        return (
            hf.GptOssMLP(config),
            KINDS["router bias"],
            {
                "router.linear.weight": "router.weight",
                "router.linear.bias": "router.bias",
                "experts.up": "experts.gate_up_proj.halves.T",
                "experts.up_bias": "experts.gate_up_proj_bias.halves",
                "experts.down": "experts.down_proj.T",
                "experts.down_bias": "experts.down_proj_bias",
            },
        )
    from transformers.models.llama4 import modeling_llama4 as hf

    config = hf.Llama4TextConfig(**sizes)
    moe = replace(KINDS["scaled input"], shared=EXPERT, n_shared_experts=1)
    return (
        hf.Llama4TextMoe(config),
        moe,
        {
            "router.linear.weight": "router.weight",
            "experts.up": "experts.gate_up_proj.T",
            "experts.down": "experts.down_proj.T",
            "shared.ffn.up.weight": GATE_UP.format("shared_expert"),
            "shared.ffn.down.weight": "shared_expert.down_proj.weight",
        },
    )


def read(theirs: dict[str, Tensor], name: str) -> Tensor:
    if "+" in name:
        return torch.cat([theirs[part] for part in name.split("+")])
    transposed, name = name.endswith(".T"), name.removesuffix(".T")
    halves, name = name.endswith(".halves"), name.removesuffix(".halves")
    value = theirs[name]
    if halves:
        value = torch.cat([value[..., ::2], value[..., 1::2]], dim=-1)
    return value.transpose(-1, -2) if transposed else value


@pytest.mark.parametrize("n", [1, 63, 100])
@pytest.mark.parametrize(
    "name",
    ["mixtral", "qwen2_moe", "olmoe", "granitemoe", "deepseek_v3", "gpt_oss", "llama4"],
)
def test_equals_transformers(name: str, n: int) -> None:
    torch.manual_seed(0)
    theirs, moe, names = transformers_block(name)
    theirs.eval()
    for tensor in theirs.state_dict().values():
        nn.init.normal_(tensor, std=0.3)
    state = theirs.state_dict()
    m = built(moe)
    m.load_state_dict({ours: read(state, there).clone() for ours, there in names.items()})

    x = torch.randn(2, n, D)
    xs = [x.clone().requires_grad_(), x.clone().requires_grad_()]
    got, want = m(xs[0]), theirs(xs[1])
    want = want[0] if isinstance(want, tuple) else want
    want = want.view_as(x)
    assert_near(got, want)
    signal = torch.randn_like(x)
    (got * signal).sum().backward()
    (want * signal).sum().backward()
    assert xs[0].grad is not None
    assert_near(xs[0].grad, xs[1].grad)
    grads = {k: p.grad for k, p in theirs.named_parameters()}
    for ours, there in names.items():
        if ours != "router.selection_bias":
            assert_near(m.get_parameter(ours).grad, read(grads, there))


def test_bf16_stays_near_fp32() -> None:
    m = built(MIXTURE)
    for p in m.parameters():
        p.data = p.data.bfloat16().float()
    x = torch.randn(2, 40, D).bfloat16()
    want = m(x.float())
    assert_near(m.bfloat16()(x), want.bfloat16())


@pytest.mark.parametrize("path", ["grouped", "segment_by_segment"])
def test_both_paths_add_each_expert_to_its_tokens(path: str) -> None:
    torch.manual_seed(0)
    experts = Experts(KINDS["router bias"].expert, 5, D)
    assert experts.up_bias is not None
    assert experts.down_bias is not None
    x, tokens = torch.randn(4, D, requires_grad=True), [0, 3, 1, 0, 1, 2, 3, 3]
    owners, weights = [0, 0, 0, 2, 2, 2, 2, 3], torch.rand(8, 1)
    want = torch.zeros(4, D)
    for t, i, w in zip(tokens, owners, weights, strict=True):
        h = x[t] @ experts.up[i].T + experts.up_bias[i]
        h = clamped_swish(*h.chunk(2, dim=-1), 0.7) @ experts.down[i].T + experts.down_bias[i]
        want = want + functional.pad((h * w)[None], (0, 0, t, 3 - t))
    pairs = Sorted(torch.tensor(tokens), weights, torch.bincount(torch.tensor(owners), minlength=5))
    got = getattr(experts, path)(x, pairs)
    assert_near(got, want)
    signal, leaves = torch.randn(4, D), [x, *experts.parameters()]
    for a, b in zip(
        torch.autograd.grad((got * signal).sum(), leaves),
        torch.autograd.grad((want * signal).sum(), leaves),
        strict=True,
    ):
        assert_near(a, b)


def test_the_order_of_experts_does_not_matter() -> None:
    m, x = built(KINDS["router bias"]), torch.randn(1, 50, D)
    want = m(x)
    order = torch.randperm(E)
    for p in (*m.experts.parameters(), *m.router.parameters()):
        p.data = p.data[order]
    assert_near(m(x), want)


def test_all_experts_are_a_dense_mixture() -> None:
    m, x = built(replace(MIXTURE, n_experts_per_token=E)), torch.randn(1, 50, D)
    every = torch.stack([m.experts.expert(i, x) for i in range(E)], dim=-2)
    gates = (x @ m.router.linear.weight.T).softmax(dim=-1)
    assert_near(m(x), (every * gates[..., None]).sum(dim=-2))


def test_equal_experts_are_one_expert() -> None:
    m, x = built(MIXTURE), torch.randn(1, 50, D)
    for p in m.experts.parameters():
        p.data = p.data[:1].expand_as(p).clone()
    assert_near(m(x), m.experts.expert(0, x))


def test_the_selection_bias_chooses_and_does_not_weigh() -> None:
    m = built(replace(KINDS["groups"], n_groups=1, n_groups_per_token=1))
    assert "router.selection_bias" not in dict(m.named_parameters())
    assert m.router.selection_bias is not None
    x = torch.randn(20, D)
    m.router.selection_bias.zero_()
    m.router.selection_bias[3] = 100.0
    routing = m.router(x)
    assert (routing.chosen == 3).any(dim=-1).all()
    scores = (x @ m.router.linear.weight.T).sigmoid().gather(-1, routing.chosen)
    assert_near(routing.weights, 2.5 * scores / scores.sum(dim=-1, keepdim=True))
