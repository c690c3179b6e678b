"""Training: what the model says by itself, heads that foresee more of it, runs that go on."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from decode.tiny import checkpoint

import worthit
from worthit.decode.generate import tokens_of
from worthit.decode.speculative.drafter import Drafter
from worthit.decode.speculative.eagle import Eagle
from worthit.decode.speculative.feature_drafter import FeatureDrafter, TreeShape
from worthit.decode.speculative.heads import Heads, load_heads
from worthit.decode.speculative.loop import Tally, speculate
from worthit.decode.speculative.medusa import Medusa, MedusaDrafter
from worthit.decode.speculative.own_outputs import block, frame_of
from worthit.decode.speculative.taps import Taps
from worthit.decode.speculative.train_heads import (
    Job,
    Prepared,
    Texts,
    config_of,
    foreseen,
    fresh_heads,
    prepare,
    run,
    written,
)
from worthit.decode.tokenizer import Tokenizer, load_tokenizer
from worthit.errors import InputError
from worthit.nn.decoder import Decoder

LENGTH = 48


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose next token follows from the last ones by a rule that can be learned."""
    folder = tmp_path_factory.mktemp("model")
    theirs = checkpoint(folder, max_position_embeddings=256, num_hidden_layers=4)
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if "norm" in name:
                parameter.fill_(1.0)
            else:
                parameter.mul_(1.0 if "embed" in name or "head" in name else 0.4)
    theirs.save_pretrained(folder)
    # Short, so that short texts hold answers.
    (folder / "prompts.txt").write_text("the cat\nthe dog sat\nx + 1\na mat\n")
    return folder


@pytest.fixture(scope="module")
def model(source: Path) -> Decoder:
    return worthit.load_model(source)


@pytest.fixture(scope="module")
def tokenizer(source: Path) -> Tokenizer:
    return load_tokenizer(source)


def job(source: Path, out: Path, **changed: Any) -> Job:
    made = Job(
        source=str(source),
        out=out,
        data=source / "prompts.txt",
        n_tokens=5 * 24 * LENGTH,
        rows=24,
        length=LENGTH,
        draft_vocab=160,
        batch_rows=8,
        n_passes=6.0,
        lr=1e-2,
    )
    return replace(made, **changed)


# What is written.


def test_the_frame_is_what_the_template_puts_around_turns(tokenizer: Tokenizer) -> None:
    frame = frame_of(tokenizer)
    turn = "<|im_end|>\n<|im_start|>"
    assert tokenizer.decode(frame.openings[0], has_special=True) == "<|im_start|>user\n"
    assert frame.end == tokenizer.backend.token_to_id("<|im_end|>")
    ends = tokenizer.decode([frame.end, *frame.to_answer], has_special=True)
    assert ends == f"{turn}assistant\n"
    ends = tokenizer.decode([frame.end, *frame.to_question], has_special=True)
    assert ends == f"{turn}user\n"


def test_a_block_is_what_the_model_said_with_its_own_streams(
    model: Decoder, tokenizer: Tokenizer
) -> None:
    made, again, other = (
        block(model, tokenizer, (1, 3), rows=4, length=50, seed=seed, prompts=["a mat"])
        for seed in (3, 3, 4)
    )
    assert torch.equal(made.ids, again.ids)
    assert not torch.equal(made.ids, other.ids)
    taps = Taps(model, (1, 3))
    with torch.no_grad():
        logits = model(made.ids)
    features = taps.features()
    taps.close()
    torch.testing.assert_close(made.features, features, rtol=1e-4, atol=1e-4)
    # Every other row is greedy where the model answers.
    stop = frame_of(tokenizer).end
    chosen = logits.argmax(dim=-1)
    assert bool(made.is_said.any())
    for row in (0, 2):
        for at in made.is_said[row].nonzero()[:, 0].tolist():
            assert made.ids[row, at] in (chosen[row, at - 1], stop)


def test_given_prompts_take_the_place_of_questions(model: Decoder, tokenizer: Tokenizer) -> None:
    made = block(model, tokenizer, (3,), rows=2, length=40, seed=0, prompts=["the cat", "a dog"])
    texts = [tokenizer.decode(row.tolist(), has_special=True) for row in made.ids]
    assert all("user\nthe cat<|im_end|>" in t or "user\na dog<|im_end|>" in t for t in texts)


def test_a_model_without_turns_goes_on_from_documents(model: Decoder, tokenizer: Tokenizer) -> None:
    plain = Tokenizer(tokenizer.backend, stop_ids=tokenizer.stop_ids)
    made = block(model, plain, (3,), rows=4, length=40, seed=0)
    assert not bool(made.is_said[:, :24].any())
    assert bool(made.is_said[:, 24:].all())


# What is learned.


@pytest.fixture(scope="module")
def trained(source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Heads of each kind, trained for seconds."""
    folder = tmp_path_factory.mktemp("heads")
    found: dict[str, Any] = {}
    for kind in ("medusa", "eagle", "exit"):
        asked = job(source, folder / kind, kind=kind)
        found[kind] = run(prepare(asked))
    return found


def before(source: Path, out: Path, kind: str) -> float:
    """What untrained heads of the same seed foresee of the held-out block."""
    prepared = prepare(job(source, out, kind=kind))
    heads = untrained(prepared)
    work = out.parent / f"{kind}-texts"
    work.mkdir()
    blocks = list(written(prepared, work, lambda what, done, of: None))
    accepted: float = foreseen(heads, Texts(blocks[-1:], 320))["accepted"]
    return accepted


def untrained(prepared: Prepared) -> Heads:
    return fresh_heads(
        prepared.job,
        prepared.model,
        prepared.config,
        torch.arange(prepared.config.draft_vocab),
    )


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["medusa", "eagle", "exit"])
def test_training_raises_what_is_foreseen(
    kind: str, source: Path, tmp_path: Path, trained: dict[str, Any]
) -> None:
    record = trained[kind]
    # Two of three tokens more for those that look ahead; an exit has only one to win.
    least = 0.4 if kind == "exit" else 1.0
    assert record["trained"]["accepted"] > before(source, tmp_path / kind, kind) + least
    assert record["kind"] == kind
    assert Path(record["out"]).is_dir()
    assert not Path(f"{record['out']}.work").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["medusa", "eagle", "eagle tree"])
def test_trained_heads_change_no_word_and_save_passes(
    name: str, model: Decoder, tokenizer: Tokenizer, trained: dict[str, Any]
) -> None:
    heads = load_heads(trained[name.partition(" ")[0]]["out"], model)
    drafter: Drafter
    if isinstance(heads, Medusa):
        drafter = MedusaDrafter(heads)
    else:
        assert isinstance(heads, Eagle)
        drafter = FeatureDrafter(heads, shape=TreeShape() if "tree" in name else None)
    prompt = tokenizer.encode_chat([{"role": "user", "content": "the cat"}])
    tally = Tally()
    said = list(speculate(model, prompt, drafter, max_tokens=30, most=4, tally=tally))
    assert said == [row[0] for row in tokens_of(model, [prompt], max_tokens=30)]
    assert tally.n_passes == 30 - tally.n_accepted
    assert tally.n_accepted > 4


# Runs.


def test_a_run_that_was_stopped_goes_on(source: Path, tmp_path: Path) -> None:
    small = job(
        source,
        tmp_path / "heads",
        kind="medusa",
        n_tokens=3 * 4 * 24,
        rows=4,
        length=24,
        n_passes=2,
    )

    class Stopped(Exception):
        pass

    seen: list[str] = []

    def stop(what: str, done: int, of: int) -> None:
        seen.append(what)
        if done == 30:
            raise Stopped

    with pytest.raises(Stopped):
        run(prepare(small), stop)
    work = tmp_path / "heads.work"
    assert (work / "outputs-00000.safetensors").is_file()
    assert not (tmp_path / "heads").exists()
    with pytest.raises(InputError, match="holds a run of other settings"):
        prepare(replace(small, seed=5))
    steps: list[int] = []
    record = run(prepare(small), lambda what, done, of: steps.append(done))
    assert steps[0] == 25  # the second block; the first is on disk
    assert not work.exists()
    whole = run(prepare(replace(small, out=tmp_path / "whole")))
    assert record["trained"]["loss"] == whole["trained"]["loss"]
    stated = json.loads((tmp_path / "heads" / "heads.json").read_text())
    assert stated["trained"]["n_tokens"] == 3 * 4 * 24


def test_what_cannot_be_is_refused(source: Path, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    with pytest.raises(InputError, match="is there already"):
        prepare(job(source, tmp_path / "there"))
    with pytest.raises(InputError, match="give one of them"):
        prepare(job(source, tmp_path / "heads", minutes=1.0))
    with pytest.raises(InputError, match="draft-vocab: must be at least 1, got 0"):
        prepare(job(source, tmp_path / "heads", draft_vocab=0))
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(InputError, match="has no prompt"):
        prepare(job(source, tmp_path / "heads", data=tmp_path / "empty.txt"))


def test_minutes_become_tokens(source: Path, tmp_path: Path) -> None:
    plan = prepare(job(source, tmp_path / "h", n_tokens=None, minutes=0.05)).plan
    assert plan.n_tokens == plan.n_blocks * 24 * LENGTH
    assert 0.5 < plan.seconds < 20


def test_an_exit_reads_early_and_is_taught_late(source: Path, model: Decoder) -> None:
    assert config_of(job(source, Path("x"), kind="exit"), model).taps == (0, 3)
    assert config_of(job(source, Path("x"), kind="eagle"), model).taps == (1, 2, 3)
