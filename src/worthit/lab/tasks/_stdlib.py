"""The source of the Python standard library on this machine, split by file into tokens.

Nothing is downloaded: the files come with the interpreter. Tokens are kept in the user's cache
folder as `.npy` files, one a split, and the BPE beside them as `tokenizer.json`; the folder's name
holds the Python version and a digest of the settings. Whatever is missing or damaged there is made
again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import random
import sys
import sysconfig
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from worthit.errors import MissingCapability

Tokens = NDArray[np.uint16]
SPLITS = ("train", "validation", "test")
# Of all bytes, what validation and test each hold.
HELD_OUT_SHARE = 0.1
# Tests are many and repetitive; encodings and topics are tables, nearly the same from file to file;
# lib2to3 and turtledemo are collections of small variants.
SKIPPED_FOLDERS = frozenset(
    {
        *("test", "tests", "idle_test", "encodings", "pydoc_data", "lib2to3", "turtledemo"),
        *("__pycache__", "site-packages", "dist-packages", "lib-dynload"),
    }
)
# Build settings, the machine's own.
SKIPPED_PREFIXES = ("_sysconfigdata",)
# What stands between two files. NUL does not occur in source; in a BPE it is a token of its own.
BETWEEN_FILES = "\0"
# Raise it when what a cached folder should hold changes.
FORMAT = 1


@dataclass(frozen=True)
class Corpus:
    """Tokens by split.

    Attributes:
        tokens: `(n,)` of each split: its files one after the other, each ended by a separator.
        n_bytes: of text in each split, so that losses of different tokenizers compare.
        vocab_size: tokens are below it.
        tokenizer: the BPE as JSON; empty for bytes.
    """

    tokens: Mapping[str, Tokens]
    n_bytes: Mapping[str, int]
    vocab_size: int
    tokenizer: str = ""


def load(*, kind: str, vocab_size: int, max_bytes: int, seed: int) -> Corpus:
    """The corpus of these settings, from the cache where it is there.

    Raises:
        MissingCapability: this Python came without its library's source, or, for a BPE, the
            package `tokenizers` is missing.
    """
    settings = {
        "format": FORMAT,
        "python": platform.python_version(),
        "implementation": sys.implementation.name,
        "kind": kind,
        "vocab_size": vocab_size,
        "max_bytes": max_bytes,
        "seed": seed,
    }
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]
    folder = cache_folder() / f"stdlib-{platform.python_version()}-{kind}-{digest}"
    with contextlib.suppress(OSError, EOFError, ValueError, KeyError):
        return _read(folder)
    corpus = _make(kind, vocab_size, max_bytes, seed)
    # A cache that cannot be written costs time, not the task.
    with contextlib.suppress(OSError):
        _write(folder, corpus, settings)
    return corpus


def cache_folder() -> Path:
    """Where the tokens of texts are kept."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "worthit" / "texts"


def source_files() -> list[Path]:
    """The library's own source files, tests and tables left out, sorted by their path below it."""
    root = library_folder()
    found = []
    for here, folders, names in os.walk(root):
        folders[:] = [name for name in folders if name not in SKIPPED_FOLDERS]
        for name in names:
            if name.endswith(".py") and not name.startswith(SKIPPED_PREFIXES):
                found.append(Path(here) / name)
    if not found:
        raise MissingCapability(
            f"this Python has no source of its standard library in {root}",
            "a Python from python.org, or your system's package of the whole standard library",
        )
    return sorted(found, key=lambda path: path.relative_to(root).as_posix())


def library_folder() -> Path:
    """Where this Python's standard library lies."""
    return Path(sysconfig.get_paths()["stdlib"])


def split_files(seed: int, max_bytes: int) -> dict[str, list[tuple[str, str]]]:
    """Path below the library and text of every file, each in one split, up to `max_bytes` in all.

    Files that are not UTF-8, or that hold the separator, are left out. Their order is drawn by
    `seed`: the first tenth of the bytes is test, the next validation.
    """
    root = library_folder()
    files = source_files()
    random.Random(seed).shuffle(files)
    texts: list[tuple[str, str]] = []
    total = 0
    for path in files:
        try:
            text = path.read_bytes().decode("utf-8").replace("\r\n", "\n")
        except (UnicodeDecodeError, OSError):
            continue
        if not text or BETWEEN_FILES in text:
            continue
        total += len(text.encode())
        if total > max_bytes and texts:
            break
        texts.append((path.relative_to(root).as_posix(), text))
    whole = sum(len(text.encode()) for _, text in texts)
    parts: dict[str, list[tuple[str, str]]] = {split: [] for split in SPLITS}
    seen = 0
    for name, text in texts:
        share = seen / whole
        where = "test" if share < HELD_OUT_SHARE else "validation"
        parts[where if share < 2 * HELD_OUT_SHARE else "train"].append((name, text))
        seen += len(text.encode())
    return parts


# --- tokens --------------------------------------------------------------------------------------


def _make(kind: str, vocab_size: int, max_bytes: int, seed: int) -> Corpus:
    parts = {
        name: [text for _, text in part] for name, part in split_files(seed, max_bytes).items()
    }
    n_bytes = {split: sum(len(t.encode()) + 1 for t in texts) for split, texts in parts.items()}
    if kind == "bytes":
        tokens = {split: _bytes(texts) for split, texts in parts.items()}
        return Corpus(tokens, n_bytes, vocab_size=256)
    backend = train_bpe(parts["train"], vocab_size)
    separator = backend.token_to_id(BETWEEN_FILES)
    tokens = {}
    for split, texts in parts.items():
        ids = [[*encoding.ids, separator] for encoding in backend.encode_batch(texts)]
        tokens[split] = np.array([i for one in ids for i in one], dtype=np.uint16)
    return Corpus(tokens, n_bytes, backend.get_vocab_size(), backend.to_str())


def train_bpe(texts: Sequence[str], vocab_size: int) -> Any:
    """A byte-level BPE of `vocab_size` tokens, learned from training texts alone."""
    tokenizers = import_tokenizers()
    backend = tokenizers.Tokenizer(tokenizers.models.BPE())
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[BETWEEN_FILES],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    return backend


def import_tokenizers() -> Any:
    """The `tokenizers` package.

    Raises:
        MissingCapability: it is not installed.
    """
    try:
        import tokenizers
    except ImportError:
        raise MissingCapability(
            "a BPE needs the package 'tokenizers'", "pip install 'worthit[torch]'"
        ) from None
    return tokenizers


def _bytes(texts: Sequence[str]) -> Tokens:
    joined = "".join(text + BETWEEN_FILES for text in texts).encode()
    return np.frombuffer(joined, dtype=np.uint8).astype(np.uint16)


# --- the cache -----------------------------------------------------------------------------------


def _read(folder: Path) -> Corpus:
    about = json.loads((folder / "about.json").read_text(encoding="utf-8"))
    tokens = {}
    for split in SPLITS:
        tokens[split] = np.load(folder / f"{split}.npy", mmap_mode="r", allow_pickle=False)
        if tokens[split].dtype != np.uint16 or len(tokens[split]) != about["n_tokens"][split]:
            raise ValueError(f"{folder / split}.npy is not what was written")
    path = folder / "tokenizer.json"
    tokenizer = path.read_text(encoding="utf-8") if about["has_tokenizer"] else ""
    return Corpus(tokens, about["n_bytes"], about["vocab_size"], tokenizer)


def _write(folder: Path, corpus: Corpus, settings: Mapping[str, Any]) -> None:
    """All files in a folder beside, then moved: a reader finds the whole or nothing."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as temporary:
        made = Path(temporary) / "made"
        made.mkdir()
        for split, tokens in corpus.tokens.items():
            np.save(made / f"{split}.npy", tokens, allow_pickle=False)
        if corpus.tokenizer:
            (made / "tokenizer.json").write_text(corpus.tokenizer, encoding="utf-8")
        about = {
            "settings": dict(settings),
            "vocab_size": corpus.vocab_size,
            "n_tokens": {split: len(tokens) for split, tokens in corpus.tokens.items()},
            "n_bytes": dict(corpus.n_bytes),
            "has_tokenizer": bool(corpus.tokenizer),
        }
        (made / "about.json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
        if folder.exists():
            # Damaged, or written by another process meanwhile: either way it is replaced.
            folder.replace(Path(temporary) / "old")
        made.replace(folder)
