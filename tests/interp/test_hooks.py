"""Points of a model: equal to other people's, complete, changeable, and gone afterwards."""

from __future__ import annotations

import itertools

import pytest
import torch
from interp.tiny import LAYERS, VOCAB, D, ids_of, model_of
from torch.testing import assert_close

from worthit.errors import InputError
from worthit.interp.hooks import activations, capture, intervene
from worthit.interp.points import points, width
from worthit.nn.tokens import tokens_of


def test_stream_is_that_of_transformers(llama) -> None:
    _, hf, model = llama
    ids = ids_of()
    want = hf(ids, output_hidden_states=True).hidden_states
    with capture(model, ["embed", "layers.*.resid_*", "final_norm", "logits"]) as seen:
        logits = model(ids)
    assert_close(seen["embed"], want[0])
    for i in range(3):
        assert_close(seen[f"layers.{i}.resid_pre"], want[i], atol=1e-5, rtol=1e-5)
    assert_close(seen["final_norm"], want[3], atol=1e-5, rtol=1e-5)
    assert_close(seen["layers.1.resid_post"], want[2], atol=1e-5, rtol=1e-5)
    assert seen["logits"] is logits


@pytest.mark.parametrize("kind", LAYERS)
def test_looking_changes_nothing(kind: str) -> None:
    model, ids = model_of(kind, "attention"), ids_of()
    want = model(ids)
    state = {name: dict(m.__dict__) for name, m in model.named_modules()}
    with capture(model, "*") as seen:
        got = model(ids)
    # The pattern is written down in place of a fused call.
    assert_close(got, want, atol=1e-5, rtol=1e-5)
    for name in points(model):
        assert seen.every(name), name
    assert torch.equal(model(ids), want)
    assert state == {name: dict(m.__dict__) for name, m in model.named_modules()}


@pytest.mark.parametrize("kind", ["attention", "sandwich", "moe", "mamba2", "both", "parallel"])
def test_the_stream_is_the_sum_of_what_is_added(kind: str) -> None:
    model = model_of("attention", kind)
    with capture(model, ["layers.1.resid_*", "layers.1.*_out"]) as seen:
        model(ids_of())
    mixed = seen["layers.1.resid_pre"] + seen["layers.1.mixer_out"]
    if kind != "parallel":
        assert_close(seen["layers.1.resid_mid"], mixed)
    assert_close(seen["layers.1.resid_post"], mixed + seen["layers.1.ffn_out"])


@pytest.mark.parametrize("kind", LAYERS)
def test_every_point_can_be_changed(kind: str) -> None:
    """A change reaches the logits, and one that is put back does not."""
    model, ids = model_of(kind, "attention"), ids_of()
    want = model(ids)
    for name in points(model):
        with intervene(model, {name: lambda x: x + torch.randn_like(x)}):
            assert not torch.allclose(model(ids), want), name
        with intervene(model, {name: lambda x: x.clone()}):
            assert_close(model(ids), want, atol=1e-5, rtol=1e-5)


def test_what_an_intervention_writes_is_what_follows() -> None:
    """A block that is given another stream computes what it computes of that stream."""
    model, ids = model_of("attention", "mamba2", "moe"), ids_of()
    other = activations(model, ids_of(seed=2), "layers.1.resid_pre")["layers.1.resid_pre"]
    with intervene(model, {"layers.1.resid_pre": lambda x: other}):
        got = model(ids)
    assert_close(got, model(ids_of(seed=2)))


def test_order_is_that_of_entering() -> None:
    model, ids, at = model_of("attention"), ids_of(), "layers.0.resid_post"
    double = intervene(model, {at: lambda x: 2 * x})
    with capture(model, at) as before, double, capture(model, at) as after:
        model(ids)
    assert_close(after[at], 2 * before[at])
    outer, inner = intervene(model, {at: lambda x: x + 1}), intervene(model, {at: lambda x: 3 * x})
    outer.__enter__()
    inner.__enter__()
    outer.__exit__(None, None, None)  # whoever came first may leave first
    with capture(model, at) as now:
        model(ids)
    assert_close(now[at], 3 * before[at])
    inner.__exit__(None, None, None)
    assert_close(activations(model, ids, at)[at], before[at])


def test_a_function_may_ask_where_its_tokens_stand() -> None:
    """Continuing a cache, the positions are those of the sequence."""
    model, ids, at = model_of("attention"), ids_of(n=6), "layers.0.ffn_out"
    places = []

    def seen(x, tokens):
        places.append(tokens.positions[0].tolist())
        return x

    cache = model.new_cache()
    with intervene(model, {at: seen}), torch.no_grad():
        model(ids[:, :4], cache=cache)
        model(ids[:, 4:], cache=cache)
    assert places == [[0, 1, 2, 3], [4, 5]]


def test_gradients_towards_a_point() -> None:
    """Those of the rest of the model, called by hand; on weights that ask for none."""
    model, ids, at = model_of("attention", "attention"), ids_of(), "layers.0.mixer_out"
    model.requires_grad_(requires_grad=False)
    with capture(model, [at, "layers.0.resid_pre"], has_grad=True) as seen:
        model(ids)[:, -1, 3].sum().backward()
    tokens = tokens_of(ids, past=0, attention_mask=None)
    added = seen[at].detach().requires_grad_()
    x = model.layers[0].second_half(seen["layers.0.resid_pre"].detach() + added, tokens)
    model.logits(model.layers[1](x, tokens))[:, -1, 3].sum().backward()
    assert_close(seen[at].grad, added.grad)
    assert added.grad.abs().max() > 1e-3


def test_a_pass_ends_where_it_is_not_needed_any_more() -> None:
    model, ids = model_of("attention", "attention", "attention"), ids_of()
    ran = []
    for i, block in enumerate(model.layers):
        block.register_forward_pre_hook(lambda _, __, i=i: ran.append(i))
    seen = activations(model, ids, ["layers.0.resid_post", "layers.1.mixer_out"])
    assert ran == [0, 1]
    with capture(model, "layers.1.mixer_out") as whole:
        model(ids)
    assert_close(seen["layers.1.mixer_out"], whole["layers.1.mixer_out"])


def test_the_short_cut_to_some_logits_leaves_no_point_out() -> None:
    model, ids = model_of("attention", "attention"), ids_of()
    rows = torch.tensor([0, 5])
    with intervene(model, {"layers.1.resid_post": lambda x: 0 * x}):
        assert_close(model.logits_at(ids, rows), model(ids).flatten(0, 1)[rows])


def test_generation_is_steered() -> None:
    """The last point decides the next token, prompt and single tokens alike."""
    model = model_of("attention", "mamba2")
    row = model.head.weight[5].detach()
    with torch.no_grad():
        model.final_norm.weight.fill_(1.0)
    with intervene(model, {"final_norm": lambda x: 50 * row.expand_as(x)}):
        found = model.generate(ids_of(1, 4)[0], max_tokens=3)
    assert found.ids == [int((model.head.weight @ row).argmax())] * 3


def test_a_block_applied_several_times() -> None:
    model = model_of("looped")
    with capture(model, ["layers.0.mixer_out", "layers.0.resid_post"]) as seen:
        model(ids_of())
    assert len(seen.every("layers.0.mixer_out")) == 3
    assert seen["layers.0.resid_post"].shape == (2, 7, D)
    with pytest.raises(InputError, match="one value was expected, got 3; take every"):
        seen["layers.0.mixer_out"]


def test_weights_of_latent_attention_by_hand() -> None:
    """Of both forms: keys rebuilt head by head, scores, softmax; and they are what is summed."""
    model, ids = model_of("latent"), ids_of(n=6)
    mixer = model.layers[0].mixers[0]
    with torch.no_grad(), capture(model, "layers.0.*") as seen:
        model(ids)
    with torch.no_grad():
        x, a = seen["layers.0.mixer_in"], mixer.spec
        q = mixer.queries(x).unflatten(-1, (4, 6)).transpose(1, 2)
        c, turned = mixer.kv_down(x).split((6, 2), -1)
        c = mixer.kv_norm(c)
        tokens = tokens_of(ids, past=0, attention_mask=None)
        q_rope, turned = mixer._turned(q[..., 4:], turned, tokens)
        up = mixer.kv_up.weight.unflatten(0, (4, 9))
        want = torch.zeros(2, 4, 6, 6)
        for b, h, i in itertools.product(range(2), range(4), range(6)):
            scores = torch.stack(
                [
                    q[b, h, i, :4] @ (up[h, :4] @ c[b, j]) + q_rope[b, h, i] @ turned[b, j]
                    for j in range(i + 1)
                ]
            )
            want[b, h, i, : i + 1] = (scores * mixer.scale).softmax(-1)
        values = torch.einsum("hdr,bjr->bhjd", up[:, 4:], c)
    assert_close(seen["layers.0.pattern"], want, atol=1e-5, rtol=1e-5)
    read = (want @ values).transpose(1, 2)
    assert_close(seen["layers.0.heads"], read, atol=1e-5, rtol=1e-5)
    assert a.n_heads == 4
    forms = []
    for form in ("attend_expanded", "attend_absorbed"):
        mixer.is_absorbed = lambda n, m, form=form: form == "attend_absorbed"
        cache = model.new_cache()
        with torch.no_grad(), capture(model, "layers.0.pattern") as pieces:
            model(ids[:, :4], cache=cache)
            model(ids[:, 4:], cache=cache)
        forms.append(pieces.every("layers.0.pattern"))
    for first, second in forms:
        assert_close(first, want[:, :, :4, :4], atol=1e-5, rtol=1e-5)
        assert_close(second, want[:, :, 4:], atol=1e-5, rtol=1e-5)


def test_weights_of_additive_linear_attention_by_hand() -> None:
    """phi(q) . phi(k) over its sum (equation 9 of the paper); later passes lack the state's."""
    model, ids = model_of("additive"), ids_of(n=6)
    with torch.no_grad(), capture(model, "layers.0.*") as seen:
        whole = model(ids)
    mixer = model.layers[0].mixers[0]
    features = {}

    def noted(q, k, v, weight, state):
        features.update(q=q, k=k)
        return type(mixer).attend(mixer, q, k, v, weight, state)

    mixer.attend = noted
    with torch.no_grad():
        model(ids)
    del mixer.attend
    want = torch.zeros(2, 4, 6, 6)
    for b, h, i in itertools.product(range(2), range(4), range(6)):
        scores = features["k"][b, h, : i + 1] @ features["q"][b, h, i]
        want[b, h, i, : i + 1] = scores / scores.sum()
    assert_close(seen["layers.0.pattern"], want, atol=1e-5, rtol=1e-5)
    cache = model.new_cache()
    with torch.no_grad(), capture(model, "layers.0.pattern") as pieces:
        model(ids[:, :4], cache=cache)
        end = model(ids[:, 4:], cache=cache)
    assert_close(pieces.every("layers.0.pattern")[1], want[:, :, 4:, 4:], atol=1e-5, rtol=1e-5)
    assert_close(end, whole[:, 4:], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("kind", "name", "message"),
    [
        ("linear", "pattern", "Retention reads a state in which tokens cannot be told apart; it"),
        ("linear", "k", "those of Retention pass a feature map first; take mixer_in"),
        ("latent", "q", "latent attention has queries and keys in two parts"),
        ("mamba2", "heads", "Mamba2Mixer has no heads of one output matrix"),
        ("parallel", "resid_mid", "its halves stand beside each other"),
        ("moe", "ffn_hidden", "has no one matrix that reads its neurons"),
    ],
)
def test_what_is_said_of_a_point_that_is_none(kind: str, name: str, message: str) -> None:
    with pytest.raises(InputError, match=message), capture(model_of(kind), f"layers.0.{name}"):
        pass


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("layers.0.pattern", "this layer has no such point: Mamba2.*; it has resid_pre, mixer_in"),
        ("layers.2.resid_post", "there is no layer 2, got a model of 2; pick one of 0 to 1"),
        ("layers.0.resid_pst", "did you mean layers.0.resid_post"),
        ("blocks.0.hook_resid_post", "unknown point"),
    ],
)
def test_names_that_are_none(name: str, message: str) -> None:
    model = model_of("mamba2", "attention")
    with pytest.raises(InputError, match=message), capture(model, name):
        pass


def test_another_shape_is_refused() -> None:
    model = model_of("attention")
    message = r"embed: an intervention must return .* \[2, 7, 16\], got \[2, 1, 16\]"
    with (
        intervene(model, {"embed": lambda x: x[:, :1]}),
        pytest.raises(InputError, match=message),
    ):
        model(ids_of())
    model(ids_of())


def test_widths() -> None:
    model = model_of("attention")
    assert width(model, "layers.0.resid_mid") == D
    assert width(model, "layers.0.ffn_hidden") == 24
    assert width(model, "logits") == VOCAB
    with pytest.raises(InputError, match="several vectors a token"):
        width(model, "layers.0.heads")
