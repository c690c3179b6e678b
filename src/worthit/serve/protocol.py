"""What clients send: the bodies of OpenAI's interface, checked field by field, as engine requests.

Every problem of a body is found at once, with its path. Fields that nobody here knows are ignored
and named in the log; fields that would change the answer and are not supported are refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, StrictStr, ValidationError

from worthit.decode.engine import Grammar, Request
from worthit.decode.sampling import Sampling
from worthit.serve.errors import ApiError

MAX_DEPTH = 64
MAX_MESSAGES = 4096
# OpenAI's own, for bodies that do not say.
COMPLETION_TOKENS = 16
# Sent by clients for their own bookkeeping; they change no answer here.
HARMLESS = frozenset({"user", "metadata", "store", "service_tier", "safety_identifier"})
# They would change the answer: silence would be a lie.
UNSUPPORTED = ("suffix", "best_of", "functions", "function_call", "modalities", "audio")
# An escape such as \ud83d is half of a character, and may stand without the other half.
HALF_ESCAPE = re.compile(rb"\\u[dD][89a-fA-F]")

Number = Annotated[float, Field(allow_inf_nan=False)]
Tokens = Annotated[list[StrictInt], Field(min_length=1)]
# A key of JSON is a string.
TokenId = Annotated[StrictStr, Field(pattern=r"^\d{1,9}$")]


class Body(BaseModel):
    """What both kinds of completion have in common."""

    model_config = ConfigDict(extra="allow")

    model: StrictStr
    stream: StrictBool = False
    stream_options: StreamOptions | None = None
    n: Annotated[StrictInt, Field(ge=1, le=128)] | None = None
    seed: StrictInt | None = None
    stop: StrictStr | list[StrictStr] | None = None
    temperature: Annotated[Number, Field(ge=0, le=2)] | None = None
    top_p: Annotated[Number, Field(gt=0, le=1)] | None = None
    presence_penalty: Annotated[Number, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[Number, Field(ge=-2, le=2)] | None = None
    logit_bias: dict[TokenId, Annotated[Number, Field(ge=-100, le=100)]] | None = None
    # Beyond OpenAI's interface, under the names that vLLM gave them.
    top_k: Annotated[StrictInt, Field(ge=-1)] | None = None
    min_p: Annotated[Number, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[Number, Field(ge=0.01, le=10)] | None = None
    min_tokens: Annotated[StrictInt, Field(ge=0)] = 0
    ignore_eos: StrictBool = False
    stop_token_ids: list[StrictInt] | None = None
    priority: Annotated[StrictInt, Field(ge=-100, le=100)] = 0
    response_format: ResponseFormat | None = None
    guided_regex: StrictStr | None = None
    guided_json: dict[str, Any] | None = None

    @property
    def unknown(self) -> list[str]:
        """Fields of the body that nobody reads."""
        return sorted(set(self.model_extra or {}) - HARMLESS)

    @property
    def has_usage_chunk(self) -> bool:
        """Whether a stream ends with a chunk of usage."""
        return self.stream_options is not None and self.stream_options.include_usage

    def sampling(self) -> Sampling:
        """How tokens are chosen; OpenAI's temperature is 1 where none is stated."""
        bias = tuple((int(token), value) for token, value in (self.logit_bias or {}).items())
        return Sampling(
            temperature=1.0 if self.temperature is None else self.temperature,
            top_k=max(self.top_k or 0, 0),
            top_p=1.0 if self.top_p is None else self.top_p,
            min_p=self.min_p or 0.0,
            repetition_penalty=self.repetition_penalty or 1.0,
            presence_penalty=self.presence_penalty or 0.0,
            frequency_penalty=self.frequency_penalty or 0.0,
            logit_bias=bias,
        )

    def grammar(self) -> Grammar | None:
        """What the text must obey."""
        if self.guided_regex is not None:
            return Grammar(kind="regex", text=self.guided_regex)
        if self.guided_json is not None:
            return Grammar.json_schema(self.guided_json)
        wanted = self.response_format
        if wanted is None or wanted.type == "text":
            return None
        if wanted.type == "json_object":
            return Grammar(kind="json")
        if wanted.json_schema is None:
            raise ApiError(
                400,
                "response_format.json_schema: missing, and type 'json_schema' needs it",
                code="invalid_value",
                param="response_format",
            )
        return Grammar.json_schema(wanted.json_schema.schema_)

    def request(
        self,
        prompt: Sequence[int],
        request_id: str,
        *,
        max_tokens: int | None,
        logprobs: int | None,
        prompt_logprobs: int | None = None,
    ) -> Request:
        """The engine's request for one prompt."""
        stop = [self.stop] if isinstance(self.stop, str) else list(self.stop or ())
        stop_ids: Sequence[int] | None = self.stop_token_ids
        if self.ignore_eos:
            stop_ids = stop_ids or ()
        return Request(
            id=request_id,
            prompt=prompt,
            max_tokens=max_tokens,
            sampling=self.sampling(),
            seed=None if self.seed is None else self.seed % 2**63,
            n=self.n or 1,
            stop=stop,
            stop_ids=stop_ids,
            min_tokens=self.min_tokens,
            logprobs=logprobs,
            prompt_logprobs=prompt_logprobs,
            grammar=self.grammar(),
            priority=self.priority,
        )


class StreamOptions(BaseModel):
    """`stream_options`."""

    model_config = ConfigDict(extra="ignore")
    include_usage: StrictBool = False


class JsonSchema(BaseModel):
    """`response_format.json_schema`."""

    model_config = ConfigDict(extra="ignore")
    name: StrictStr = ""
    schema_: dict[str, Any] = Field(alias="schema")


class ResponseFormat(BaseModel):
    """`response_format`."""

    model_config = ConfigDict(extra="ignore")
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class CompletionBody(Body):
    """The body of `/v1/completions`."""

    prompt: StrictStr | list[StrictStr] | Tokens | list[Tokens]
    max_tokens: Annotated[StrictInt, Field(ge=1)] | None = COMPLETION_TOKENS
    logprobs: Annotated[StrictInt, Field(ge=0, le=20)] | None = None
    echo: StrictBool = False

    @property
    def prompts(self) -> list[str | list[int]]:
        """Each prompt by itself."""
        prompt: Any = self.prompt
        if isinstance(prompt, str) or (prompt and isinstance(prompt[0], int)):
            return [prompt]
        return list(prompt)


class TextPart(BaseModel):
    """A part of a message's content."""

    model_config = ConfigDict(extra="ignore")
    type: Literal["text"]
    text: StrictStr


class Message(BaseModel):
    """One message of a conversation; what else it holds goes to the template as it is."""

    model_config = ConfigDict(extra="allow")
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: StrictStr | list[TextPart] | None = None

    def for_template(self) -> dict[str, Any]:
        """As chat templates read it: content is text, and the developer is the system."""
        content = self.content
        if isinstance(content, list):
            content = "".join(part.text for part in content)
        role = "system" if self.role == "developer" else self.role
        return {**(self.model_extra or {}), "role": role, "content": content or ""}


class ChatBody(Body):
    """The body of `/v1/chat/completions`."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES)]
    max_tokens: Annotated[StrictInt, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[StrictInt, Field(ge=1)] | None = None
    logprobs: StrictBool = False
    top_logprobs: Annotated[StrictInt, Field(ge=0, le=20)] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: Literal["auto", "none"] | None = None

    @property
    def limit(self) -> int | None:
        """The most tokens that are wanted."""
        stated = self.max_completion_tokens
        return self.max_tokens if stated is None else stated


class EmbeddingBody(BaseModel):
    """The body of `/v1/embeddings`."""

    model_config = ConfigDict(extra="ignore")
    model: StrictStr
    input: StrictStr | Annotated[list[StrictStr], Field(min_length=1, max_length=256)] | Tokens
    encoding_format: Literal["float", "base64"] = "float"


class TokenizeBody(BaseModel):
    """The body of `/tokenize`."""

    model_config = ConfigDict(extra="ignore")
    prompt: StrictStr


def parse(raw: bytes, kind: type[BaseModel]) -> Any:
    """A body, checked.

    Raises:
        ApiError: 400, with everything that is wrong in it.
    """
    try:
        data = json.loads(raw.decode("utf-8"), parse_constant=_no_constant)
    except UnicodeDecodeError as error:
        raise ApiError(
            400, f"the body must be UTF-8, got the byte 0x{raw[error.start]:02x} at {error.start}"
        ) from None
    except RecursionError:
        raise ApiError(400, "the body is nested too deeply") from None
    except ValueError as error:
        raise ApiError(400, f"the body is no JSON: {error}", code="invalid_json") from None
    if not isinstance(data, dict):
        raise ApiError(400, f"the body must be an object, got {type(data).__name__}")
    if _depth(data) > MAX_DEPTH:
        raise ApiError(400, f"the body is nested too deeply: at most {MAX_DEPTH} levels")
    if HALF_ESCAPE.search(raw) and _has_halves(data):
        raise ApiError(400, "the body holds half of a surrogate pair, which is no character")
    refused = [name for name in UNSUPPORTED if data.get(name) is not None]
    if refused:
        raise ApiError(
            400, f"{', '.join(refused)}: not supported here; leave it out", param=refused[0]
        )
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        raise _invalid(error) from None


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no number of JSON")


def _has_halves(data: Any) -> bool:
    """Whether some text in it is none: an escape may name half of a character."""
    try:
        json.dumps(data, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        return True
    return False


def _depth(data: Any) -> int:
    """Levels of nesting, without recursion: bodies come from strangers."""
    deepest, waiting = 0, [(data, 1)]
    while waiting:
        value, depth = waiting.pop()
        deepest = max(deepest, depth)
        if depth > MAX_DEPTH:
            break
        if isinstance(value, dict):
            waiting += [(v, depth + 1) for v in value.values()]
        elif isinstance(value, list):
            waiting += [(v, depth + 1) for v in value]
    return deepest


def _invalid(error: ValidationError) -> ApiError:
    """All problems in one message; of a union's alternatives one line is enough."""
    lines: dict[str, str] = {}
    for found in error.errors(include_url=False, include_context=False):
        path = [str(part) for part in found["loc"]]
        field = path[0] if path else "body"
        where = ".".join(
            p for p in path if not p.startswith(("list[", "constrained", "str", "int"))
        )
        got = found["input"]
        shown = repr(got) if len(repr(got)) <= 60 else f"{type(got).__name__}"
        message = found["msg"]
        line = f"{where}: {message[:1].lower()}{message[1:]}"
        if found["type"] != "missing":
            line += f", got {shown}"
        lines.setdefault(field, line)
    return ApiError(400, "; ".join(lines.values()), code="invalid_value", param=next(iter(lines)))
