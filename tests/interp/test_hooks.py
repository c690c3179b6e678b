"""Points of a model: equal to other people's, complete, changeable, and gone afterwards."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from interp.tiny import LAYERS, VOCAB, D, ids_of, model_of
from torch.testing import assert_close

from worthit.errors import InputError
from worthit.interp.hooks import activations, capture, intervene
from worthit.interp.points import points, width
from worthit.nn.load import load_model
from worthit.nn.tokens import tokens_of


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """A folder, transformers' model of it, and ours."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("llama")
    torch.manual_seed(0)
    hf = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCAB,
            hidden_size=D,
            intermediate_size=24,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
            initializer_range=0.3,
        )
    ).eval()
    hf.save_pretrained(folder)
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(VOCAB)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="w0", bos_token="w1", eos_token="w2", unk_token="w0"
    ).save_pretrained(folder)
    return folder, hf, load_model(folder).eval()


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


# Ours on the left; q and k after rotation, and heads before tokens.
NAMES = {
    "resid_pre": "hook_resid_pre",
    "resid_mid": "hook_resid_mid",
    "resid_post": "hook_resid_post",
    "mixer_in": "ln1.hook_out",
    "mixer_out": "hook_attn_out",
    "ffn_in": "ln2.hook_out",
    "ffn_hidden": "mlp.out.hook_in",
    "ffn_out": "hook_mlp_out",
    "heads": "attn.hook_z",
    "pattern": "attn.hook_pattern",
    "q": "attn.hook_rot_q",
    "k": "attn.hook_rot_k",
    "v": "attn.hook_v",
}


@pytest.mark.slow
def test_points_are_those_of_transformer_lens(llama: tuple[Path, object, object]) -> None:
    folder, hf, model = llama
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from transformer_lens.model_bridge import TransformerBridge
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(folder)
        bridge = TransformerBridge.boot_transformers(
            str(folder), hf_model=hf, tokenizer=tokenizer, device="cpu"
        )
        ids = ids_of()
        _, cache = bridge.run_with_cache(ids)
    with capture(model, "layers.*") as seen:
        model(ids)
    assert len(seen) == 3 * len(NAMES)
    for i in range(3):
        for ours, theirs in NAMES.items():
            want = cache[f"blocks.{i}.{theirs}"]
            got = seen[f"layers.{i}.{ours}"]
            got = got.transpose(1, 2) if ours in "qkv" else got
            assert_close(got, want, atol=1e-5, rtol=1e-5, msg=lambda m, n=ours: f"{n}: {m}")


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


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("layers.0.pattern", "this layer has no such point; it has resid_pre, mixer_in, mixer_out"),
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
