"""Text that obeys a grammar: at every step only tokens from which it can still be completed.

Willard & Louf 2023, "Efficient Guided Generation for Large Language Models", arXiv:2307.09702. The
work is done by `llguidance`, which walks an Earley parser over bytes and a trie of the vocabulary;
what stands here is its place in the engine. A masked choice is the model's own distribution,
renormalised over what the grammar allows next: not the distribution over texts that obey it.
"""

from __future__ import annotations

import json
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from worthit.errors import InputError, MissingCapability

if TYPE_CHECKING:
    from worthit.decode.tokenizer import Tokenizer

Kind = Literal["json-schema", "json", "regex", "lark"]
# What a grammar may cost to compile grows with its text.
MAX_CHARACTERS = 100_000
MAX_COMPILED = 64
# A small model that may write blanks for ever does; a line break and an indent are enough.
JSON_STYLE = {"whitespace_pattern": r"\n? {0,20}"}


@dataclass(frozen=True, kw_only=True)
class Grammar:
    """A description of the texts that are allowed.

    Attributes:
        kind: `json-schema`, `json` (any object), `regex` or `lark`.
        text: the schema as JSON, the expression or the grammar; empty for `json`.
    """

    kind: Kind
    text: str = ""

    @classmethod
    def json_schema(cls, schema: Any) -> Grammar:
        """Texts that are JSON of this schema, given as a dictionary."""
        return cls(kind="json-schema", text=json.dumps(schema))


class Matcher:
    """Where one sequence stands in its grammar."""

    def __init__(self, matcher: Any, vocab_size: int) -> None:
        self._matcher, self.vocab_size = matcher, vocab_size

    def allowed(self) -> Tensor:
        """`(vocab_size,)` booleans: the tokens that may come next, stop tokens among them.

        Raises:
            InputError: the grammar turned out too complex.
        """
        packed = torch.frombuffer(bytearray(self._matcher.compute_bitmask()), dtype=torch.int32)
        self._check()
        bits = (packed[:, None] >> torch.arange(32, dtype=torch.int32)) & 1
        known = bits.bool().flatten()[: self.vocab_size]
        # Rows of the embedding beyond the tokenizer's vocabulary are no tokens.
        return torch.nn.functional.pad(known, (0, self.vocab_size - known.shape[0]))

    def accept(self, token: int) -> None:
        """Go on by `token`, one of the allowed."""
        self._matcher.consume_token(token)
        self._check()

    def take_back(self, n: int) -> None:
        """Undo the last `n` tokens."""
        self._matcher.rollback(n)

    def fork(self) -> Matcher:
        """A matcher that goes on from here by itself."""
        return Matcher(self._matcher.deep_copy(), self.vocab_size)

    @property
    def is_done(self) -> bool:
        """Whether the text is complete and nothing can follow."""
        return bool(self._matcher.is_stopped())

    def _check(self) -> None:
        if self._matcher.is_error():
            raise InputError(f"grammar: {self._matcher.get_error()}")


class Grammars:
    """Compiles grammars for one tokenizer; what was compiled lately is kept."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int) -> None:
        self.tokenizer, self.vocab_size = tokenizer, vocab_size
        self._library: Any = None
        self._vocabulary: Any = None
        self._compiled: dict[Grammar, Matcher] = {}
        # Requests are checked in several threads.
        self._lock = threading.Lock()

    def start(self, grammar: Grammar) -> Matcher:
        """A matcher at the beginning of `grammar`.

        Raises:
            InputError: it is none, is too large, or needs what is not supported.
            MissingCapability: `llguidance` is not installed.
        """
        with self._lock:
            known = self._compiled.get(grammar)
        if known is None:
            # Without the lock: it may take long, and others' grammars are ready.
            known = self._compile(grammar)
            with self._lock:
                while len(self._compiled) >= MAX_COMPILED:
                    del self._compiled[next(iter(self._compiled))]
                self._compiled[grammar] = known
        return known.fork()

    def _compile(self, grammar: Grammar) -> Matcher:
        if len(grammar.text) > MAX_CHARACTERS:
            raise InputError(
                f"grammar: must have at most {MAX_CHARACTERS} characters, got {len(grammar.text)}"
            )
        library, vocabulary = self._load()
        source = library.LLMatcher
        try:
            if grammar.kind == "regex":
                text = source.grammar_from_regex(grammar.text)
            elif grammar.kind == "lark":
                text = source.grammar_from_lark(grammar.text)
            else:
                schema = '{"type": "object"}' if grammar.kind == "json" else grammar.text
                text = source.grammar_from_json_schema(json.loads(schema), defaults=JSON_STYLE)
        except ValueError as error:
            raise InputError(f"grammar: no JSON schema: {error}") from None
        matcher = source(vocabulary, text, log_level=0)
        if matcher.is_error():
            raise InputError(f"grammar: {_first_line(matcher.get_error())}")
        return Matcher(matcher, self.vocab_size)

    def _load(self) -> tuple[Any, Any]:
        """The library, and the vocabulary as it wants it: made once."""
        if self._library is None:
            try:
                import llguidance
            except ImportError:
                raise MissingCapability(
                    "structured output needs the extra 'serve'", "pip install 'worthit[serve]'"
                ) from None
            n_known = self.tokenizer.backend.get_vocab_size()
            self._vocabulary = llguidance.LLTokenizer(
                self.tokenizer.backend.to_str(),
                n_vocab=max(n_known, 1),
                eos_token=list(self.tokenizer.stop_ids) or None,
            )
            self._library = llguidance
        return self._library, self._vocabulary


def _first_line(text: str) -> str:
    """An error without the drawing below it."""
    return text.strip().split("\n")[0]
