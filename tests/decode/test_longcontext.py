"""Needles and losses by position: what is asked, what is found, how far a context reaches."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from decode.tiny import checkpoint
from torch import Tensor

import worthit
from worthit.decode import longcontext as lc
from worthit.decode.perplexity import losses
from worthit.decode.tokenizer import Tokenizer, load_tokenizer
from worthit.errors import InputError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    checkpoint(folder, max_position_embeddings=1024)
    return folder


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Tokenizer:
    return load_tokenizer(folder)


@pytest.mark.parametrize("depth", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("n_keys", [1, 4])
def test_a_needle_stands_where_it_should(tokenizer: Tokenizer, depth: float, n_keys: int) -> None:
    hay = lc.Haystack(tokenizer)
    needle = hay.needle(1500, depth, n_keys=n_keys, seed=0)
    assert len(needle.prompt) + len(needle.answer) == 1500
    text, key = tokenizer.decode(needle.prompt, has_special=True), tokenizer.decode(needle.answer)
    assert len(key.strip()) == lc.N_DIGITS
    # The name that is asked for at the end is that of the key.
    name = text.rpartition("The pass key of ")[2].removesuffix(" is")
    sentence = lc.NEEDLE.format(name=name, key=key.strip())
    assert text.count(sentence) == 1
    assert text.count("Remember it: ") == n_keys
    before = len(tokenizer.encode(text.partition(sentence)[0]))
    room = 1500 - sum(len(tokenizer.encode(lc.NEEDLE.format(name=n, key="12345"))) for n in [name])
    assert before == pytest.approx(depth * room, abs=160 + 90 * n_keys)
    # Chat models get their own format around it.
    assert text.startswith("<|im_start|>user")
    assert "<|im_start|>assistant\nThe pass key of" in text
    assert hay.needle(1500, depth, n_keys=n_keys, seed=0) == needle
    assert hay.needle(1500, depth, n_keys=n_keys, seed=1).answer != needle.answer


def test_too_short_a_prompt_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(InputError, match="512 tokens do not hold 8 needles"):
        lc.Haystack(tokenizer).needle(512, 0.5, n_keys=8, seed=0)


@pytest.mark.parametrize("chunk", [7, 100, 512])
@pytest.mark.parametrize("rope", [None, "dynamic:2", "yarn:2"])
def test_found_is_what_greedy_decoding_says(folder: Path, chunk: int, rope: str | None) -> None:
    model = worthit.load_model(folder, rope=rope)
    prompt = torch.randint(3, 300, (200,), generator=torch.Generator().manual_seed(0)).tolist()
    said = model.generate(prompt, max_tokens=5, stop_ids=()).ids
    is_found, logp = lc.retrieved(model, lc.Needle(prompt=prompt, answer=said), chunk=chunk)
    assert is_found
    known = 0.0
    with torch.inference_mode():
        cache = model.new_cache()
        logits = model(torch.tensor([prompt]), cache=cache)[0, -1]
        for token in said:
            known += float(logits.log_softmax(-1)[token])
            logits = model(torch.tensor([[token]]), cache=cache)[0, -1]
    if rope != "dynamic:2":  # whose cached keys keep the rotation of their pass
        assert logp == pytest.approx(known, abs=1e-3)
    for place in range(5):
        other = [*said[:place], said[place] ^ 1, *said[place + 1 :]]
        assert not lc.retrieved(model, lc.Needle(prompt=prompt, answer=other), chunk=chunk)[0]


def test_losses_go_into_buckets_that_double() -> None:
    found = torch.arange(2 * 1100.0).view(2, 1100)
    made = lc.buckets(found)
    assert [(b.start, b.end) for b in made] == [(0, 256), (256, 512), (512, 1100)]
    assert made[0].loss == pytest.approx((127.5 + 1227.5) / 2)
    assert made[0].stderr == pytest.approx(550.0)
    assert lc.buckets(found / 1000)[0].perplexity == pytest.approx(math.exp(0.6775))
    one = lc.buckets(found[:1, :200])
    assert [(b.start, b.end, b.stderr) for b in one] == [(0, 200, None)]


def test_buckets_are_compared_within_files() -> None:
    # Two files of very different loss, both 0.4 nats worse beyond 512: no matter of chance.
    rows = torch.tensor([[1.0], [3.0]]).repeat(1, 1024)
    rows[:, 512:] += 0.4
    made = lc.buckets(rows)
    assert made[2].stderr == pytest.approx(1.0)
    assert made[2].rows == pytest.approx((1.4, 3.4))
    assert made[2].rise(made[0]) == pytest.approx((0.4, 0.0), abs=1e-6)
    assert lc.effective_by_loss(made) == 512
    # One file better and one worse: nothing is known.
    rows[1, 512:] -= 0.6
    assert lc.effective_by_loss(lc.buckets(rows)) == 1024


def bucket(end: int, loss: float, stderr: float | None = None) -> lc.Bucket:
    return lc.Bucket(start=end // 2, end=end, loss=loss, stderr=stderr)


def test_effective_lengths() -> None:
    falling = [bucket(512, 3.0), bucket(1024, 2.5), bucket(2048, 2.4)]
    assert lc.effective_by_loss(falling) == 2048
    assert lc.effective_by_loss([*falling, bucket(4096, 2.45)]) == 4096  # within the margin
    assert lc.effective_by_loss([*falling, bucket(4096, 2.6), bucket(8192, 2.0)]) == 2048
    assert lc.effective_by_loss([*falling, bucket(4096, 2.6, 0.2)]) == 4096  # within its error
    assert lc.effective_by_loss([]) == 0
    assert lc.effective_by_needle({512: [True], 1024: [True, True], 2048: [True, False]}) == 1024
    # 6 of 7 is 85.7 %, just enough; what follows a failure does not count.
    assert lc.effective_by_needle({512: [True] * 6 + [False], 1024: [False], 2048: [True]}) == 512
    assert lc.effective_by_needle({512: [False]}) == 0


def test_rows_are_files_that_are_long_enough(tokenizer: Tokenizer) -> None:
    rows = lc.long_rows(tokenizer, 3, 2000)
    assert rows.shape == (3, 2000)
    assert len({tuple(row[:50].tolist()) for row in rows}) == 3
    assert torch.equal(lc.long_rows(tokenizer, 3, 2000), rows)


def test_what_was_measured_is_not_measured_again(
    folder: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = worthit.load_model(folder)
    setup = lc.Setup(lengths=(512, 600), depths=(0.2, 0.8), n_rows=1)
    seen: list[int] = []
    whole = lc.measure(model, tokenizer, setup, on_cell=lambda m: seen.append(len(m.cells)))
    assert seen == [1, 2, 3, 4, 4]
    assert setup.n_cells == 4
    assert setup.n_tokens == 2 * (512 + 600) + 600
    known = losses(model, lc.long_rows(tokenizer, 1, 600))
    assert [lc.Bucket(**b) for b in whole.positions] == lc.buckets(known)
    calls: list[Tensor] = []
    original = lc.retrieved

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append(args[1])
        return original(*args, **kwargs)

    monkeypatch.setattr(lc, "retrieved", counted)
    half = lc.Measured(cells=whole.cells[:2])
    again = lc.measure(model, tokenizer, setup, known=half)
    assert len(calls) == 2
    assert again == whole
    record = again.record(1024)
    assert [a["length"] for a in record["accuracy"]] == [512, 600]
    assert record["effective"]["needle"] == lc.effective_by_needle(
        {n: [c["is_found"] for c in whole.cells if c["length"] == n] for n in (512, 600)}
    )


def test_rows_are_measured_one_by_one(
    folder: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = worthit.load_model(folder)
    setup = lc.Setup(lengths=(512,), repeats=0, n_rows=3, row_length=600)
    assert setup.passes == [600, 600, 600]
    kept: list[dict[str, Any]] = []
    whole = lc.measure(
        model, tokenizer, setup, on_cell=lambda m: kept.append(json.loads(json.dumps(vars(m))))
    )
    assert [len(done["positions"][0]["rows"]) for done in kept] == [1, 2, 3]
    # All at once they are the same.
    at_once = lc.buckets(losses(model, lc.long_rows(tokenizer, 3, 600)))
    for got, want in zip(whole.positions, at_once, strict=True):
        assert (got["start"], got["end"]) == (want.start, want.end)
        assert got["rows"] == pytest.approx(want.rows)
        assert (got["loss"], got["stderr"]) == pytest.approx((want.loss, want.stderr))
    calls: list[Tensor] = []
    monkeypatch.setattr(lc, "losses", lambda *a: calls.append(a[1]) or losses(*a))
    again = lc.measure(model, tokenizer, setup, known=lc.Measured(**kept[0]))
    assert len(calls) == 2
    assert again.record(1024) == whole.record(1024)


def test_the_time_of_long_passes_follows_from_short_ones(folder: Path) -> None:
    model = worthit.load_model(folder)
    law = lc.Pace(2e-3, 3e-6)
    now, ticks = 0.0, []
    for n in (256, 256, 1024):
        ticks += [now, now + law.of(n)]
        now += 100.0
    found = lc.pace(model, 4096, clock=iter(ticks).__next__)
    assert (found.a, found.b) == pytest.approx((law.a, law.b))
    assert found.of(10_000) == pytest.approx(2e-3 * 1e4 + 3e-6 * 1e8)
    # Nothing to tell the two terms apart by: all is the first.
    assert lc.pace(model, 256, clock=iter([0, 1, 1, 3, 3, 5.0]).__next__) == lc.Pace(2 / 256, 0.0)


BAD = {
    "short": ({"lengths": (100,)}, "lengths: each must be at least 512"),
    "none": ({"lengths": ()}, "lengths: each must be"),
    "depth": ({"depths": (1.5,)}, "depths: each must be from 0 to 1"),
    "keys": ({"n_keys": 9}, "keys: must be from 1 to 8, got 9"),
    "repeats": ({"repeats": -1}, "repeats: must be 0 or more"),
    "rows": ({"n_rows": -1}, "rows: must be 0 or more"),
    "row length": ({"row_length": 100}, "row length: must be at least 512, got 100"),
}


@pytest.mark.parametrize(("change", "says"), BAD.values(), ids=BAD)
def test_a_setup_out_of_range_is_refused(change: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        lc.Setup(**{"lengths": (512,), **change})
