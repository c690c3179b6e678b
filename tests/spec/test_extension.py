"""`yarn:4` and its like: what is read, what is refused and why."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import given

from worthit.errors import InputError, SpecError
from worthit.spec.extension import KINDS, Extension, extended, parse_extension
from worthit.spec.load import load_preset


@given(
    kind=st.sampled_from(KINDS),
    factor=st.integers(1, 1024),
    known=st.none() | st.integers(2, 10**6),
)
def test_what_is_written_is_read(kind: str, factor: int, known: int | None) -> None:
    extension = Extension(kind, factor, known)  # type: ignore[arg-type]
    assert parse_extension(str(extension)) == extension
    assert parse_extension(f"  {str(extension).upper()} ") == extension


BAD = {
    "yarn": "must be METHOD:FACTOR, such as yarn:4, got 'yarn'",
    "yarn:": "must be METHOD:FACTOR",
    "yran:4": "unknown method 'yran'; did you mean yarn?",
    "4": "unknown method '4'; pick one of yarn, linear, ntk, dynamic",
    "": "unknown method ''",
    "yarn:four": "a number from 1 to 1024, got 'four'",
    "yarn:0.5": "a number from 1 to 1024, got '0.5'",
    "yarn:nan": "a number from 1 to 1024",
    "yarn:inf": "a number from 1 to 1024",
    "yarn:-4": "a number from 1 to 1024",
    "yarn:1e9": "a number from 1 to 1024",
    "yarn:4@": "must be METHOD:FACTOR",
    "yarn:4@long": "how many tokens training knew, got 'long'",
    "yarn:4@0": "how many tokens training knew, got '0'",
    "longrope:4": "longrope needs a factor for every pair, found by a search",
    "llama3:8": "bounds that its training was done with",
}


@pytest.mark.parametrize(("text", "says"), BAD.items())
def test_what_is_none_is_refused(text: str, says: str) -> None:
    with pytest.raises(InputError, match="rope: ") as caught:
        parse_extension(text)
    assert says in str(caught.value)


def test_the_context_grows_by_the_factor() -> None:
    model = load_preset("smollm2-135m")
    found = extended(model, "yarn:4")
    assert (model.context_len, found.context_len) == (8192, 32768)
    assert found.position.scaling is not None
    assert found.position.scaling.original_context_len == 8192
    assert extended(model, "linear:2.5@2000").context_len == 5000
    assert model.position.scaling is None


REFUSED = {
    "gpt2": "has none to stretch (its positions: learned)",
    "bloom-7b1": "has none to stretch (its positions: alibi)",
    "mamba-2.8b": "has none to stretch",
    "deepseek-v2-lite": "latent attention takes a scale of its own",
    "llama-3.1-8b": "stretched already, by llama3 from 8192 to 131072 tokens",
}


@pytest.mark.parametrize(("name", "says"), REFUSED.items())
def test_models_that_it_does_not_go_with(name: str, says: str) -> None:
    with pytest.raises(SpecError) as caught:
        extended(load_preset(name), "yarn:2")
    assert says in str(caught.value)
