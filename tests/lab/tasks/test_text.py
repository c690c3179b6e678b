"""Text: the split of files, the windows, the BPE and what is kept of them."""

from __future__ import annotations

import json
import math
import sysconfig
from pathlib import Path

import numpy as np
import pytest
import torch

from worthit.errors import InputError, MissingCapability, UnknownName
from worthit.lab.tasks import _stdlib, task, text
from worthit.train.batch import IGNORE


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "worthit" / "texts"


@pytest.fixture
def small_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = tmp_path / "library"
    for i in range(30):
        path = root / f"package{i % 3}" / f"module_{i}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"# This is module {i}.\n" + f"def f{i}(x):\n    return x + {i}\n" * 40)
    for folder in ("test", "package0/tests", "site-packages/other", "encodings"):
        (root / folder).mkdir(parents=True)
        (root / folder / "skipped.py").write_text("SKIPPED = True\n" * 50)
    (root / "latin.py").write_bytes("# SKIPPED: ñ\n".encode("latin-1"))
    (root / "nul.py").write_bytes(b"# SKIPPED \0\n")
    (root / "notes.txt").write_text("SKIPPED")
    monkeypatch.setattr(_stdlib, "library_folder", lambda: root)
    return root


def test_files_are_split_whole(small_library: Path) -> None:
    parts = _stdlib.split_files(seed=0, max_bytes=10**9)
    names = [name for part in parts.values() for name, _ in part]
    assert len(names) == len(set(names)) == 30
    assert all(parts.values())
    texts = {split: "".join(text for _, text in part) for split, part in parts.items()}
    assert "SKIPPED" not in "".join(texts.values())
    for split, part in parts.items():
        for name, body in part:
            assert (small_library / name).read_text() == body
            head = body.splitlines()[0]
            assert [s for s in texts if head in texts[s]] == [split]
    n_bytes = {split: len(body.encode()) for split, body in texts.items()}
    # A file more or less than a tenth.
    for split in ("validation", "test"):
        assert abs(n_bytes[split] / sum(n_bytes.values()) - 0.1) < 1 / 30 + 0.01
    assert _stdlib.split_files(seed=1, max_bytes=10**9) != parts
    assert sum(map(len, _stdlib.split_files(0, max_bytes=9_000).values())) < 15


def test_windows_are_the_bytes_of_files(small_library: Path) -> None:
    data = text.build(seq_len=50, n_held_out=6)
    parts = _stdlib.split_files(seed=0, max_bytes=8_000_000)
    for split in ("train", "validation", "test"):
        stream = "".join(body + "\0" for _, body in parts[split]).encode()
        assert bytes(data.tokens(split).tolist()) == stream
        starts = []
        for batch in data.held_out(split):
            for inputs, targets in zip(
                batch.input_ids.tolist(), batch.targets.tolist(), strict=True
            ):
                assert targets[:-1] == inputs[1:]
                starts.append(stream.index(bytes([*inputs, targets[-1]])))
        assert len(starts) >= 6
    batch = data.batch(torch.Generator().manual_seed(0), 64)
    stream = bytes(data.tokens("train").tolist())
    for inputs, targets in zip(batch.input_ids.tolist(), batch.targets.tolist(), strict=True):
        assert bytes([*inputs, targets[-1]]) in stream
        assert targets[:-1] == inputs[1:]


def test_longer_windows_score_the_same_tokens(small_library: Path) -> None:
    data = task("length-extrapolation", of="text", seq_len=20, factors=(1, 2, 4), n_held_out=10)
    scored = {}
    for factor in (1, 2, 4):
        found = list(data.held_out(f"test-{factor}x"))
        assert {batch.input_ids.shape[1] for batch in found} == {20 * factor}
        scored[factor] = [
            [target for target in row if target != IGNORE]
            for batch in found
            for row in batch.targets.tolist()
        ]
        assert {len(row) for row in scored[factor]} == {10}
    assert scored[1] == scored[2] == scored[4]


def test_a_bpe_learns_from_training_alone_and_gives_the_text_back(small_library: Path) -> None:
    data = text.build(kind="bpe", vocab_size=512, seq_len=16)
    # Thirty small files have fewer merges than were asked for.
    assert 256 < data.vocab_size <= 512
    parts = _stdlib.split_files(seed=0, max_bytes=8_000_000)
    vocabulary = json.loads(data.tokenizer)["model"]["vocab"]
    trained_on = {name for name, _ in parts["train"]}
    # Each file adds a number of its own, often enough to become one token.
    numbers = range(10, 30)
    learned = [number for number in numbers if f"Ġ{number}" in vocabulary]
    assert learned == [n for n in numbers if f"package{n % 3}/module_{n}.py" in trained_on]
    assert len(learned) < len(numbers)
    for split in ("train", "test"):
        stream = "".join(body + "\0" for _, body in parts[split])
        tokens = data.tokens(split)
        assert int(tokens.max()) < data.vocab_size
        assert data.decode(tokens.tolist()) == stream
        assert len(tokens) < len(stream) / 2
        # One nat a token, over as many bytes as the tokens stand for.
        bits = len(tokens) / math.log(2) / len(stream)
        assert data.bits_per_byte(1.0, split) == pytest.approx(bits)


def test_the_cache_is_used_mended_and_not_needed(
    small_library: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = text.build(seq_len=50)
    (folder,) = own_cache.iterdir()
    assert {path.name for path in folder.iterdir()} == {
        *("about.json", "train.npy", "validation.npy", "test.npy")
    }
    # Used: the files are not read again.
    with monkeypatch.context() as context:
        context.setattr(_stdlib, "split_files", lambda *_: pytest.fail("read again"))
        second = text.build(seq_len=50)
        assert torch.equal(first.tokens("test"), second.tokens("test"))
    # Mended: half a file, or another number of tokens.
    for damage in (b"", np.lib.format.MAGIC_PREFIX):
        (folder / "test.npy").write_bytes(damage)
        assert torch.equal(first.tokens("test"), text.build(seq_len=50).tokens("test"))
        assert len(np.load(folder / "test.npy")) == len(first.tokens("test"))
    # Not needed.
    monkeypatch.setenv("XDG_CACHE_HOME", str(small_library / "latin.py"))
    assert torch.equal(first.tokens("test"), text.build(seq_len=50).tokens("test"))
    # Other settings are another corpus.
    monkeypatch.setenv("XDG_CACHE_HOME", str(own_cache.parents[1]))
    text.build(seq_len=50, seed=1)
    assert len(list(own_cache.iterdir())) == 2


def test_this_machine_has_enough_text() -> None:
    data = text.build(seq_len=128, max_megabytes=2, n_held_out=64)
    assert (data.vocab_size, data.name) == (256, "text")
    assert len(data.tokens("train")) > 1_000_000
    assert sum(len(batch.input_ids) for batch in data.held_out("test")) == 64
    assert _stdlib.library_folder() == Path(sysconfig.get_paths()["stdlib"])
    names = {path.name for path in _stdlib.source_files()}
    assert "argparse.py" in names
    assert not {name for name in names if name.startswith("test_")} - {"test_support.py"}
    # Held-out text is not in training, but for idioms and notices that files share.
    train = bytes(data.tokens("train").tolist())
    test = bytes(data.tokens("test").tolist())
    seen = {train[i : i + 128] for i in range(len(train) - 128)}
    windows = range(0, len(test) - 128, 64)
    assert sum(test[i : i + 128] in seen for i in windows) / len(windows) < 0.03


def test_bad_input(small_library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UnknownName, match="unknown kind of text 'byte'; did you mean bytes"):
        text.build(kind="byte")
    with pytest.raises(InputError, match="vocab_size: must lie between 512 and 4096"):
        text.build(kind="bpe", vocab_size=50_000)
    with pytest.raises(InputError, match="too few for a window of 100000"):
        text.build(seq_len=100_000)
    with pytest.raises(InputError, match="n_scored: must be at most seq_len=8, got 9"):
        text.build(seq_len=8, n_scored=9)
    with pytest.raises(InputError, match="max_megabytes: must be positive"):
        text.build(max_megabytes=0)
    with pytest.raises(InputError, match="reach: must be at least 256"):
        text.build(reach=100)
    with pytest.raises(UnknownName, match="unknown split 'tset'"):
        next(text.build(seq_len=8).held_out("tset"))
    monkeypatch.setattr(_stdlib, "library_folder", lambda: small_library / "nowhere")
    with pytest.raises(MissingCapability, match="no source of its standard library"):
        text.build(seed=9)
