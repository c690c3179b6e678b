"""Losses of text against one pass in transformers, and text that every installation has."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import transformers
from decode.tiny import TEXT, checkpoint

import worthit
from worthit.decode.corpus import documents, sequences
from worthit.decode.perplexity import losses, perplexity
from worthit.decode.tokenizer import load_tokenizer
from worthit.errors import InputError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    checkpoint(folder)
    return folder


@pytest.mark.parametrize("chunk", [1, 7, 31, 512])
def test_losses_are_those_of_one_pass(folder: Path, chunk: int) -> None:
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder)
    ids = torch.randint(3, 300, (2, 32), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        known = [float(theirs(row[None], labels=row[None]).loss) for row in ids]
    model = worthit.load_model(folder)
    found = losses(model, ids, chunk=chunk)
    assert found.shape == (2, 31)
    torch.testing.assert_close(found.mean(1), torch.tensor(known), rtol=1e-4, atol=1e-4)
    whole = perplexity(model, ids)
    assert whole.n_tokens == 62
    assert whole.nll == pytest.approx(sum(known) / 2, rel=1e-4)
    assert whole.value == pytest.approx(math.exp(sum(known) / 2), rel=1e-3)
    assert whole.stderr == pytest.approx(abs(known[0] - known[1]) / 2, rel=1e-3)


def test_longrope_starts_again_where_its_rotation_changes(tmp_path: Path) -> None:
    half = 4
    scaling = {
        "rope_type": "longrope",
        "short_factor": [1.0] * half,
        "long_factor": [4.0] * half,
        "factor": 4.0,
        "original_max_position_embeddings": 16,
    }
    config = transformers.Phi3Config(
        vocab_size=96,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        original_max_position_embeddings=16,
        rope_scaling=scaling,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    theirs = transformers.Phi3ForCausalLM(config).eval()
    theirs.save_pretrained(tmp_path)
    ids = torch.randint(1, 96, (1, 30))
    with torch.inference_mode():
        logits = theirs(ids, use_cache=False).logits[0, :-1]
    known = torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="none")
    found = losses(worthit.load_model(tmp_path), ids, chunk=8)
    # The whole row under the long factors, as one pass over it has them.
    torch.testing.assert_close(found[0], known, rtol=1e-4, atol=1e-4)


def test_what_is_evaluated_was_not_calibrated_on() -> None:
    parts = {part: set(documents(part)) for part in ("calibration", "held-out")}  # type: ignore[arg-type]
    assert not parts["calibration"] & parts["held-out"]
    for texts in parts.values():
        assert len(texts) > 20
        # Code and prose, both.
        assert sum("def " in text and "import " in text for text in texts) > 10
        assert sum("*****" in text for text in texts) > 5


def test_sequences_are_running_text(folder: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(folder)
    ids = sequences(tokenizer, 3, 50)
    assert ids.shape == (3, 50)
    start = next(documents("calibration"))
    assert tokenizer.encode(start, has_special=False)[:150] == ids.flatten().tolist()
    assert torch.equal(sequences(tokenizer, 3, 50), ids)
    assert not torch.equal(sequences(tokenizer, 3, 50, part="held-out"), ids)
    file = tmp_path / "own.txt"
    file.write_text("\n".join(TEXT * 3), encoding="utf-8")
    n = len(tokenizer.encode(file.read_text(encoding="utf-8"), has_special=False))
    assert sequences(tokenizer, 1000, 20, file=file).shape == (n // 20, 20)
    with pytest.raises(InputError, match=f"gives {n} tokens, and one sequence takes 4000"):
        sequences(tokenizer, 1, 4000, file=file)
    file.write_bytes(b"caf\xe9")
    with pytest.raises(InputError, match="must be UTF-8 text, byte 3 is not"):
        sequences(tokenizer, 1, 2, file=file)
    with pytest.raises(InputError, match="No such file"):
        sequences(tokenizer, 1, 2, file=tmp_path / "none")
