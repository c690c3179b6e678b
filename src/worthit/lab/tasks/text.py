"""Text: the source code of the Python standard library on this machine, by bytes or by BPE.

Real language with real structure, megabytes of it, that is there wherever worthit is; nothing is
downloaded. Tests are left out, and so are tables (`encodings`) whose files are nearly the same.
Files are split, so that no window of a held-out file is ever trained on; idioms and notices of
licences that many files share remain on both sides, as in any corpus.

Losses depend on the Python version: compare models on one machine. Those of different tokenizers
compare by `bits_per_byte`.

What it tells apart: language modelling at the scale of minutes; whatever claims to lower a loss.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from worthit.errors import InputError, unknown_name
from worthit.lab.tasks._generated import at_least
from worthit.lab.tasks._stdlib import SPLITS, Corpus, load
from worthit.train.batch import IGNORE, Batch

KINDS = ("bytes", "bpe")
HELD_OUT_ROWS = 32
LEAST_BPE, MOST_BPE = 512, 4096


class Text:
    """`Data` over the windows of a corpus.

    Args:
        corpus: its tokens.
        seq_len: of a window.
        n_held_out: windows of each held-out split, at most.
        reach: held-out windows end where windows of this length would, so that tasks of several
            `seq_len` are tested on the same last tokens.
        n_scored: the last tokens of a held-out window that have a target; 0 for all.
    """

    def __init__(
        self, corpus: Corpus, seq_len: int, *, n_held_out: int, reach: int, n_scored: int
    ) -> None:
        self.name = "text"
        self.vocab_size = corpus.vocab_size
        self.seq_len = seq_len
        self.tokenizer = corpus.tokenizer
        self._corpus = corpus
        self._n_scored = n_scored or seq_len
        self._ends = {}
        for split in SPLITS:
            n_tokens = len(corpus.tokens[split])
            # Windows do not overlap: each has `reach` tokens and the one that follows.
            n = min(n_held_out, (n_tokens - 1) // reach)
            if n < 1:
                raise InputError(
                    f"seq_len: the {split} text has {n_tokens} tokens, too few for a window of "
                    f"{reach}; give a shorter seq_len or a larger max_megabytes"
                )
            self._ends[split] = reach * (1 + np.arange(n) * ((n_tokens - 1) // reach) // n)

    def batch(self, generator: torch.Generator, size: int) -> Batch:
        """`size` windows of the training files, each starting anywhere."""
        n_starts = len(self._corpus.tokens["train"]) - self.seq_len
        starts = torch.randint(n_starts, (size,), generator=generator).numpy()
        return self._windows("train", starts)

    def held_out(self, split: str = "test") -> Iterator[Batch]:
        """Fixed windows, evenly spread over the files of a split."""
        if split not in self._ends:
            raise unknown_name("split", split, SPLITS)
        starts = self._ends[split] - self.seq_len
        for first in range(0, len(starts), HELD_OUT_ROWS):
            batch = self._windows(split, starts[first : first + HELD_OUT_ROWS])
            batch.targets[:, : self.seq_len - self._n_scored] = IGNORE
            yield batch

    def tokens(self, split: str = "train") -> Tensor:
        """Every token of a split, in order, int64."""
        return torch.from_numpy(self._corpus.tokens[split].astype(np.int64))

    def bits_per_byte(self, loss: float, split: str = "test") -> float:
        """A loss in nats a token, as bits a byte of that split's text."""
        n_tokens, n_bytes = len(self._corpus.tokens[split]), self._corpus.n_bytes[split]
        return loss / math.log(2) * n_tokens / n_bytes

    def decode(self, tokens: list[int]) -> str:
        """The text of tokens; bytes that are no UTF-8 become marks."""
        if not self.tokenizer:
            return bytes(tokens).decode("utf-8", errors="replace")
        from worthit.lab.tasks._stdlib import import_tokenizers

        backend = import_tokenizers().Tokenizer.from_str(self.tokenizer)
        text: str = backend.decode(tokens, skip_special_tokens=False)
        return text

    def _windows(self, split: str, starts: np.ndarray) -> Batch:
        tokens = self._corpus.tokens[split]
        taken = tokens[starts[:, None] + np.arange(self.seq_len + 1)]
        windows = torch.from_numpy(taken.astype(np.int64))
        return Batch(windows[:, :-1].contiguous(), windows[:, 1:].contiguous())


def build(
    *,
    kind: str = "bytes",
    vocab_size: int = 1024,
    seq_len: int = 256,
    max_megabytes: float = 8,
    n_held_out: int = 128,
    reach: int = 0,
    n_scored: int = 0,
    seed: int = 0,
) -> Text:
    """The standard library's source.

    Args:
        kind: `bytes`, 256 of them; or `bpe`, learned from the training files once and kept.
        vocab_size: of the BPE, 512 to 4096; bytes do not read it.
        seq_len: of a window.
        max_megabytes: of source read, 10^6 bytes each.
        n_held_out: windows of each held-out split, at most.
        reach: the longest context that held-out windows are to be compared at; `seq_len` if 0.
        n_scored: the last tokens of a held-out window that are scored; all of them if 0.
        seed: draws the split of files.

    Raises:
        MissingCapability: the library's source, or `tokenizers` for a BPE, is not here.
    """
    if kind not in KINDS:
        raise unknown_name("kind of text", kind, KINDS)
    if kind == "bpe" and not LEAST_BPE <= vocab_size <= MOST_BPE:
        raise InputError(
            f"vocab_size: must lie between {LEAST_BPE} and {MOST_BPE} for a BPE, "
            f"got {vocab_size}; give 1024, say"
        )
    at_least("seq_len", seq_len, 2)
    at_least("n_held_out", n_held_out, 1)
    reach = reach or seq_len
    at_least("reach", reach, seq_len)
    if not 0 <= n_scored <= seq_len:
        raise InputError(f"n_scored: must be at most seq_len={seq_len}, got {n_scored}; give less")
    if max_megabytes <= 0:
        raise InputError(f"max_megabytes: must be positive, got {max_megabytes}; give 8, say")
    corpus = load(
        kind=kind,
        vocab_size=vocab_size if kind == "bpe" else 256,
        max_bytes=int(max_megabytes * 1e6),
        seed=seed,
    )
    return Text(corpus, seq_len, n_held_out=n_held_out, reach=reach, n_scored=n_scored)
