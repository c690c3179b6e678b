"""T5's relative bias: its buckets against transformers', and in a decoder against a slow loop."""

from __future__ import annotations

from dataclasses import replace

import torch
from nn.tolerances import assert_near
from transformers.models.t5.modeling_t5 import T5Attention

from worthit.cost.params import count_params
from worthit.nn.decoder import build
from worthit.nn.position.nope import is_told_no_order
from worthit.nn.position.relative_bias import N_BUCKETS, RelativeBias, bucket
from worthit.spec.case import Case, Hardware, Serving
from worthit.spec.load import load_device
from worthit.spec.model import Attention, FeedForward, Layer, ModelSpec, Position
from worthit.techniques.position import relative_bias as technique

ATTENTION = Attention(n_heads=4, n_kv_heads=2, head_dim=6)
MODEL = ModelSpec(
    name="m",
    d_model=16,
    vocab_size=11,
    layers=(Layer(mixers=(ATTENTION,), ffn=FeedForward(d_ff=24)),) * 2,
    context_len=64,
    position=Position(kind="relative-bias"),
)


def test_buckets_are_t5s() -> None:
    distance = torch.arange(-20, 1000)
    want = T5Attention._relative_position_bucket(
        -distance, bidirectional=False, num_buckets=32, max_distance=128
    )
    got = bucket(distance)
    assert torch.equal(got, want)
    # Small distances have their own; from 113 on all share the last.
    assert got[20:36].tolist() == list(range(16))
    assert got.max() == N_BUCKETS - 1
    assert (got[distance >= 128] == 31).all()


def test_the_table_is_read_by_distance() -> None:
    torch.manual_seed(0)
    bias = RelativeBias(3)
    got = bias(torch.tensor([[5, 6]]), torch.arange(7)[None])
    assert got.shape == (1, 3, 2, 7)
    for head in range(3):
        for i, place in enumerate((5, 6)):
            for j in range(7):
                assert got[0, head, i, j] == bias.weight[max(0, place - j), head]


def built() -> torch.nn.Module:
    torch.manual_seed(0)
    model = build(MODEL).eval()
    with torch.no_grad():
        model.relative_bias.weight.normal_()
    return model


def test_attention_adds_it_to_every_score() -> None:
    model = built()
    attention = model.layers[0].mixers[0]
    x = torch.randn(1, 40, 16)
    seen = {}
    model.layers[0].mixers[0].register_forward_hook(
        lambda _, inputs, out: seen.update(x=inputs[0], out=out)
    )
    model(torch.randint(11, (1, 40)))
    x, got = seen["x"][0], seen["out"][0]
    q = (x @ attention.q_proj.weight.T).view(40, 4, 6)
    k = (x @ attention.k_proj.weight.T).view(40, 2, 6).repeat_interleave(2, 1)
    v = (x @ attention.v_proj.weight.T).view(40, 2, 6).repeat_interleave(2, 1)
    rows = []
    for i in range(40):
        heads = []
        for h in range(4):
            distance = torch.arange(i, -1, -1)
            added = model.relative_bias.weight[bucket(distance), h]
            scores = k[: i + 1, h] @ q[i, h] / 6**0.5 + added
            heads.append(scores.softmax(0) @ v[: i + 1, h])
        rows.append(torch.cat(heads))
    assert_near(got, torch.stack(rows) @ attention.o_proj.weight.T)


def test_decoding_and_padding_keep_distances() -> None:
    model = built()
    ids = torch.randint(11, (2, 20))
    with torch.no_grad():
        want = model(ids)
        cache = model.new_cache()
        parts = [model(ids[:, :15], cache=cache)]
        parts += [model(ids[:, i : i + 1], cache=cache) for i in range(15, 20)]
        assert_near(torch.cat(parts, dim=1), want)
        padded = torch.cat([torch.zeros(2, 3, dtype=torch.long), ids], dim=1)
        mask = torch.ones(2, 23, dtype=torch.long)
        mask[:, :3] = 0
        assert_near(model(padded, attention_mask=mask)[:, 3:], want)


def test_parameters_are_those_that_the_technique_counts() -> None:
    case = Case(
        model=replace(MODEL, position=Position()),
        workload=Serving(prompt=8, output=8, concurrency=1),
        hardware=Hardware(device=load_device("h100-sxm")),
    )
    model = technique.apply(case).model
    with torch.device("meta"):
        assert sum(p.numel() for p in build(model).parameters()) == count_params(model).total


def test_a_position_free_layer_is_told_nothing() -> None:
    assert is_told_no_order(replace(ATTENTION, is_position_free=True), Position())
    assert is_told_no_order(ATTENTION, Position(kind="nope"))
    assert is_told_no_order(replace(ATTENTION, position=Position(kind="nope")), Position())
    assert not is_told_no_order(ATTENTION, Position(kind="alibi"))
    free = replace(ATTENTION, is_position_free=True)
    layer = Layer(mixers=(free,), ffn=None)
    for kind in ("alibi", "relative-bias"):
        torch.manual_seed(0)
        model = build(replace(MODEL, layers=(layer,), position=Position(kind=kind)))
        torch.manual_seed(0)
        none = build(replace(MODEL, layers=(layer,), position=Position(kind="nope")))
        none.load_state_dict({k: v for k, v in model.state_dict().items() if "bias" not in k})
        ids = torch.arange(9)[None]
        assert_near(model(ids), none(ids))
