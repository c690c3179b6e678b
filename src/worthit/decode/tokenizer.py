"""Text to ids and back: the tokenizer that came with a checkpoint.

A folder has it as `tokenizer.json`, with special tokens and the chat template in files beside it; a
`.gguf` in its metadata, from which `_gguf_tokenizer` builds the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from worthit.errors import InputError, MissingCapability, SpecError
from worthit.spec.resolve import read_json

Message = Mapping[str, Any]
# What ends a turn in chat formats, where metadata name only the end of a text.
TURN_ENDS = ("<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<end_of_turn>", "<|end|>", "<|endoftext|>")


def import_tokenizers() -> Any:
    """The `tokenizers` package.

    Raises:
        MissingCapability: it is not installed.
    """
    try:
        import tokenizers
    except ImportError:
        raise MissingCapability(
            "reading text needs the extra 'torch'", "pip install 'worthit[torch]'"
        ) from None
    return tokenizers


class Tokenizer:
    """Text to ids and back.

    Attributes:
        backend: the `tokenizers.Tokenizer`.
        stop_ids: tokens after which nothing more is to be said.
        special: the text of `bos_token`, `eos_token` and others that chat templates ask for.
        chat_template: Jinja source, or None for a model that is not for chat.
    """

    def __init__(
        self,
        backend: Any,
        *,
        stop_ids: Sequence[int] = (),
        special: Mapping[str, str] | None = None,
        chat_template: str | None = None,
    ) -> None:
        self.backend = backend
        self.stop_ids = tuple(dict.fromkeys(stop_ids))
        self.special = dict(special or {})
        self.chat_template = chat_template

    def encode(self, text: str, *, has_special: bool = True) -> list[int]:
        """The ids of `text`; with what the model expects around it, such as a first token."""
        ids: list[int] = self.backend.encode(text, add_special_tokens=has_special).ids
        return ids

    def decode(self, ids: Sequence[int], *, has_special: bool = False) -> str:
        """The text of `ids`; special tokens in it only where wanted."""
        text: str = self.backend.decode(list(ids), skip_special_tokens=not has_special)
        return text

    def encode_chat(
        self, messages: Sequence[Message], *, tools: Sequence[Mapping[str, Any]] | None = None
    ) -> list[int]:
        """The ids of a conversation, up to where the model answers."""
        return self.encode(self.render_chat(messages, tools=tools), has_special=False)

    def render_chat(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        is_answered: bool = False,
    ) -> str:
        """A conversation in the model's own format, up to where the model answers.

        Args:
            messages: each with `role` (`system`, `user`, `assistant`) and `content`.
            tools: descriptions of functions, for templates that know what to do with them.
            is_answered: whether the last message is the model's answer, and nothing follows.

        Raises:
            InputError: no template, or one that refuses these messages.
        """
        if self.chat_template is None:
            raise InputError("this model has no chat template; give it text as it is (--raw)")
        template = self._template
        try:
            text: str = template.render(
                messages=list(messages),
                tools=None if tools is None else list(tools),
                add_generation_prompt=not is_answered,
                **self.special,
            )
        except Exception as error:  # whatever a template does with what it did not expect
            raise InputError(f"the model's chat template: {error}") from None
        return text

    @cached_property
    def _template(self) -> Any:
        """The template, compiled once: a server renders it for every request."""
        import jinja2

        try:
            return _environment().from_string(self.chat_template)
        except jinja2.TemplateError as error:
            raise InputError(f"the model's chat template: {error}") from None


def _environment() -> Any:
    """Where templates run: files come from strangers, so in a sandbox."""
    import jinja2
    import jinja2.ext
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def refuse(message: str) -> str:
        raise jinja2.TemplateError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment


def _to_json(value: Any, indent: int | None = None) -> str:
    """Jinja's own filter escapes for HTML."""
    import json

    return json.dumps(value, ensure_ascii=False, indent=indent)


def load_tokenizer(source: str | Path) -> Tokenizer:
    """The tokenizer of a checkpoint folder, a `.gguf`, or anything else that `load_model` takes.

    Raises:
        SpecError: there is none, or it cannot be read.
    """
    from worthit.nn.load import checkpoint_path

    path = checkpoint_path(source)
    if path.suffix.lower() == ".gguf":
        from worthit.decode._gguf_tokenizer import tokenizer_of_gguf

        return tokenizer_of_gguf(path)
    return tokenizer_of_folder(path)


def tokenizer_of_folder(folder: Path) -> Tokenizer:
    """The tokenizer of a folder's `tokenizer.json`."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise SpecError(f"{folder}: holds no tokenizer.json, so that text cannot be read")
    tokenizers = import_tokenizers()
    try:
        backend = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # whatever its parser raises
        raise SpecError(f"{path}: no tokenizer: {error}") from None
    config = _optional(folder / "tokenizer_config.json")
    special = {
        key: value["content"] if isinstance(value, dict) else value
        for key, value in config.items()
        if key.endswith("_token") and isinstance(value, str | dict) and value
    }
    return Tokenizer(
        backend,
        stop_ids=_stop_ids(backend, folder, special.get("eos_token")),
        special=special,
        chat_template=_template(folder, config),
    )


def _stop_ids(backend: Any, folder: Path, eos: str | None) -> list[int]:
    stated = _optional(folder / "generation_config.json").get("eos_token_id")
    if stated is None:
        stated = _optional(folder / "config.json").get("eos_token_id")
    ids = stated if isinstance(stated, list) else [stated]
    return with_turn_ends(backend, [*ids, backend.token_to_id(eos) if eos else None])


def with_turn_ends(backend: Any, ids: Sequence[object]) -> list[int]:
    """The ids that are numbers, and those of special tokens that end a turn."""
    special = {
        token.content for token in backend.get_added_tokens_decoder().values() if token.special
    }
    ends = [backend.token_to_id(token) for token in TURN_ENDS if token in special]
    return [i for i in (*ids, *ends) if isinstance(i, int) and not isinstance(i, bool)]


def _template(folder: Path, config: Mapping[str, Any]) -> str | None:
    path = folder / "chat_template.jinja"
    if path.is_file():
        return path.read_text(encoding="utf-8")
    template = config.get("chat_template")
    if isinstance(template, list):  # several, by name
        named = {t.get("name"): t.get("template") for t in template if isinstance(t, dict)}
        template = named.get("default")
    return template if isinstance(template, str) else None


def _optional(path: Path) -> dict[str, Any]:
    data = read_json(path) if path.is_file() else {}
    return data if isinstance(data, dict) else {}
