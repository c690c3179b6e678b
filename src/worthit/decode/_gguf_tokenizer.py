"""A tokenizer from the metadata of a `.gguf`: byte-level BPE and SentencePiece's BPE.

The metadata hold the vocabulary and the merges; how text is cut before merging they only name
(`tokenizer.ggml.pre`), and the name's meaning stands here. A kind that is not here is refused: cut
differently, a text gives other ids, and nothing would say so.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from worthit.decode.tokenizer import Tokenizer, import_tokenizers, with_turn_ends
from worthit.errors import MissingCapability, SpecError
from worthit.spec._gguf_header import MAX_ITEMS, read_header

# ggml's kinds of tokens.
UNKNOWN, CONTROL, USER_DEFINED = 2, 3, 4
_GPT2 = ("gpt-2", "gpt2", "phi-2", "olmo", "jina-en", "mpt")
_DIGIT_BY_DIGIT = ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone")
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}" + _REST
_QWEN2 = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}" + _REST
SPLITS = {
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3", "falcon3", "smaug-bpe", "dbrx"), _LLAMA3),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "stablelm2"), _QWEN2),
}
# Whole words of the vocabulary are taken before any merge.
_WORDS_FIRST = ("llama-bpe", "llama3", "llama-v3", "falcon3")
_SPACE = "\u2581"


def tokenizer_of_gguf(path: Path) -> Tokenizer:
    """The tokenizer that the file describes.

    Raises:
        SpecError: none, or one of a kind that is not understood.
    """
    metadata = read_header(path, max_kept=MAX_ITEMS).metadata
    facts = {
        key.removeprefix("tokenizer.ggml."): value
        for key, value in metadata.items()
        if key.startswith("tokenizer.ggml.")
    }
    tokens = facts.get("tokens")
    if not isinstance(tokens, list) or not tokens:
        raise SpecError(f"{path}: holds no tokenizer, so that text cannot be read")
    model = facts.get("model")
    build = {"gpt2": _byte_level, "llama": _sentencepiece}.get(str(model))
    if build is None:
        raise SpecError(f"{path}: tokenizer.ggml.model: must be gpt2 or llama, got {model!r:.40}")
    try:
        backend = build(facts)
        _add_special(backend, facts)
        special = _special(facts)
        _add_ends(backend, facts, special)
    except SpecError as error:
        raise error.within(str(path)) from None
    except MissingCapability:
        raise
    except Exception as error:  # the library's own are of no other type
        raise SpecError(f"{path}: its tokenizer does not fit together: {error}") from None
    stops = [facts.get(f"{name}_token_id") for name in ("eos", "eot", "eom")]
    template = metadata.get("tokenizer.chat_template")
    return Tokenizer(
        backend,
        stop_ids=with_turn_ends(backend, stops),
        special=special,
        chat_template=template if isinstance(template, str) else None,
    )


def _byte_level(facts: dict[str, Any]) -> Any:
    tokenizers = import_tokenizers()
    kind = facts.get("pre", "gpt-2")
    merges = [tuple(merge.split(" ", 1)) for merge in facts["merges"]]
    vocabulary = {token: i for i, token in enumerate(facts["tokens"])}
    words_first = kind in _WORDS_FIRST
    model = tokenizers.models.BPE(vocabulary, merges, ignore_merges=words_first)
    backend = tokenizers.Tokenizer(model)
    pre = tokenizers.pre_tokenizers
    if kind in _GPT2:
        cut = pre.ByteLevel(add_prefix_space=False)
    elif kind in _DIGIT_BY_DIGIT:
        by_digit = pre.Digits(individual_digits=True)
        cut = pre.Sequence([by_digit, pre.ByteLevel(add_prefix_space=False)])
    elif kind in SPLITS:
        split = pre.Split(tokenizers.Regex(SPLITS[kind]), behavior="isolated")
        to_bytes = pre.ByteLevel(add_prefix_space=False, use_regex=False)
        cut = pre.Sequence([split, to_bytes])
    else:
        known = ", ".join(sorted({*_GPT2, *_DIGIT_BY_DIGIT, *SPLITS}))
        raise SpecError(f"tokenizer.ggml.pre: must be one of {known}, got {kind!r:.40}")
    backend.pre_tokenizer = cut
    if SPLITS.get(kind) == _QWEN2:
        backend.normalizer = tokenizers.normalizers.NFC()
    backend.decoder = tokenizers.decoders.ByteLevel()
    return backend


def _sentencepiece(facts: dict[str, Any]) -> Any:
    """SentencePiece's BPE joins the two neighbours whose union has the highest score."""
    tokenizers = import_tokenizers()
    tokens: list[str] = facts["tokens"]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    if "merges" in facts:
        merges = [tuple(merge.split(" ", 1)) for merge in facts["merges"]]
    else:
        merges = merges_of(tokens, facts["scores"], facts.get("token_type"))
    unknown = facts.get("unknown_token_id", 0)
    model = tokenizers.models.BPE(
        vocabulary, merges, unk_token=tokens[unknown], fuse_unk=True, byte_fallback=True
    )
    backend = tokenizers.Tokenizer(model)
    has_prefix = bool(facts.get("add_space_prefix", True))
    spaces = tokenizers.normalizers.Replace(" ", _SPACE)
    first = [tokenizers.normalizers.Prepend(_SPACE)] if has_prefix else []
    backend.normalizer = tokenizers.normalizers.Sequence([*first, spaces])
    d = tokenizers.decoders
    steps = [d.Replace(_SPACE, " "), d.ByteFallback(), d.Fuse()]
    backend.decoder = d.Sequence([*steps, d.Strip(" ", 1, 0)] if has_prefix else steps)
    return backend


def merges_of(
    tokens: Sequence[str], scores: Sequence[float], kinds: Sequence[int] | None = None
) -> list[tuple[str, str]]:
    """Every way to join two tokens into a third, the third's highest score first."""
    known = {
        token: score
        for i, (token, score) in enumerate(zip(tokens, scores, strict=True))
        if kinds is None or kinds[i] not in (UNKNOWN, CONTROL)
    }
    found = [
        (-score, token[:cut], token[cut:])
        for token, score in known.items()
        for cut in range(1, len(token))
        if token[:cut] in known and token[cut:] in known
    ]
    found.sort(key=lambda merge: merge[0])
    return [(left, right) for _, left, right in found]


def _add_special(backend: Any, facts: dict[str, Any]) -> None:
    tokenizers = import_tokenizers()
    kinds = facts.get("token_type")
    if not isinstance(kinds, list):
        return
    pairs = list(zip(facts["tokens"], kinds, strict=True))
    added = tokenizers.AddedToken
    backend.add_special_tokens(
        [added(token, normalized=False, special=True) for token, kind in pairs if kind == CONTROL]
    )
    backend.add_tokens(
        [added(token, normalized=False) for token, kind in pairs if kind == USER_DEFINED]
    )


def _special(facts: dict[str, Any]) -> dict[str, str]:
    """The text of the special tokens, under the names that chat templates use."""
    names = {"bos": "bos", "eos": "eos", "unknown": "unk", "padding": "pad"}
    return {
        f"{short}_token": facts["tokens"][facts[f"{name}_token_id"]]
        for name, short in names.items()
        if f"{name}_token_id" in facts
    }


def _add_ends(backend: Any, facts: dict[str, Any], special: dict[str, str]) -> None:
    """Let `encode` put the first and the last token around a text, where the file says so."""
    tokenizers = import_tokenizers()
    # Older files say nothing: llama.cpp adds a first token to these kinds.
    usual = facts["model"] == "llama" or facts.get("pre") in _WORDS_FIRST
    first = special.get("bos_token") if facts.get("add_bos_token", usual) else None
    last = special.get("eos_token") if facts.get("add_eos_token", False) else None
    pieces = [piece for piece in (first, "$A", last) if piece]
    if len(pieces) > 1:
        backend.post_processor = tokenizers.processors.TemplateProcessing(
            single=" ".join(pieces),
            special_tokens=[(t, backend.token_to_id(t)) for t in {first, last} if t],
        )
