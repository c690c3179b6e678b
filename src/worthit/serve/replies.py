"""What clients get: the objects of OpenAI's interface, whole or in chunks."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from worthit.decode.engine import Output, Sample, TokenLogprob, Usage

if TYPE_CHECKING:
    from worthit.decode.tokenizer import Tokenizer

DONE = b"data: [DONE]\n\n"


def event(record: Any) -> bytes:
    """One event of a stream."""
    return b"data: " + json.dumps(record, ensure_ascii=False).encode("utf-8") + b"\n\n"


def usage_json(usages: Iterable[Usage | None]) -> dict[str, Any]:
    """Token counts of a request; samples of one prompt share it."""
    known = [usage for usage in usages if usage is not None]
    n_prompt = max((u.n_prompt for u in known), default=0)
    n_completion = sum(u.n_completion for u in known)
    record: dict[str, Any] = {
        "prompt_tokens": n_prompt,
        "completion_tokens": n_completion,
        "total_tokens": n_prompt + n_completion,
        "prompt_tokens_details": {"cached_tokens": min((u.n_cached for u in known), default=0)},
    }
    if any(u.n_drafted for u in known):
        accepted = sum(u.n_accepted for u in known)
        rejected = sum(u.n_drafted for u in known) - accepted
        record["completion_tokens_details"] = {
            "accepted_prediction_tokens": accepted,
            "rejected_prediction_tokens": rejected,
        }
    return record


def add_usage(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The sum over several prompts of one body."""
    if len(records) == 1:
        return records[0]
    total: dict[str, Any] = {
        name: sum(r[name] for r in records)
        for name in ("prompt_tokens", "completion_tokens", "total_tokens")
    }
    cached = sum(r["prompt_tokens_details"]["cached_tokens"] for r in records)
    return {**total, "prompt_tokens_details": {"cached_tokens": cached}}


def finish_reason(reason: str | None) -> str | None:
    """The engine's word in OpenAI's vocabulary."""
    return {"abort": "stop", "error": "stop"}.get(reason or "", reason)


@dataclass(frozen=True, kw_only=True)
class Writer:
    """Writes the objects of one answer: all bear the same id, time and model.

    Attributes:
        kind: `chat.completion` or `text_completion`.
        has_usage_chunk: a stream ends with a chunk of usage, and the others say null.
    """

    id: str
    model: str
    kind: str
    tokenizer: Tokenizer
    has_usage_chunk: bool = False
    created: int = 0

    @classmethod
    def of(
        cls, name: str, model: str, tokenizer: Tokenizer, *, is_chat: bool, has_usage_chunk: bool
    ) -> Writer:
        """A writer for an answer that begins now."""
        return cls(
            id=f"{'chatcmpl' if is_chat else 'cmpl'}-{name}",
            model=model,
            kind="chat.completion" if is_chat else "text_completion",
            tokenizer=tokenizer,
            has_usage_chunk=has_usage_chunk,
            created=int(time.time()),
        )

    @property
    def is_chat(self) -> bool:
        """Whether it answers a conversation."""
        return self.kind == "chat.completion"

    def whole(self, choices: list[dict[str, Any]], usage: dict[str, Any]) -> dict[str, Any]:
        """An answer that is not streamed."""
        return {**self._head(self.kind), "choices": choices, "usage": usage}

    def chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        """A part of a stream."""
        kind = "chat.completion.chunk" if self.is_chat else self.kind
        record = {**self._head(kind), "choices": choices}
        return {**record, "usage": None} if self.has_usage_chunk else record

    def usage_chunk(self, usage: dict[str, Any]) -> dict[str, Any]:
        """The last chunk of a stream that was asked for usage."""
        return {**self.chunk([]), "usage": usage}

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}

    # Choices.

    def choice(
        self,
        index: int,
        sample: Sample,
        *,
        logprobs: bool,
        echoed: str = "",
        prompt_part: Sequence[TokenLogprob] = (),
    ) -> dict[str, Any]:
        """A whole choice.

        Args:
            index: among the choices of the answer.
            sample: what was said.
            logprobs: whether they were asked for.
            echoed: the prompt, where it is to stand before the text.
            prompt_part: the log-probabilities of its tokens.
        """
        reason = finish_reason(sample.finish_reason)
        record: dict[str, Any] = {"index": index, "finish_reason": reason}
        if self.is_chat:
            record["message"] = {"role": "assistant", "content": sample.text, "refusal": None}
            record["logprobs"] = self._chat_logprobs(sample.logprobs) if logprobs else None
            return record
        record["text"] = echoed + sample.text
        told = [*prompt_part, *sample.logprobs]
        record["logprobs"] = self._text_logprobs(told) if logprobs else None
        return record

    def opening(self, index: int) -> dict[str, Any]:
        """The first delta of a conversation's answer: the role alone."""
        delta = {"role": "assistant", "content": ""}
        return {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}

    def delta(self, index: int, output: Output, *, logprobs: bool) -> dict[str, Any]:
        """What is new."""
        record: dict[str, Any] = {"index": index, "finish_reason": None, "logprobs": None}
        if self.is_chat:
            record["delta"] = {"content": output.text}
            if logprobs:
                record["logprobs"] = self._chat_logprobs(output.logprobs)
            return record
        record["text"] = output.text
        if logprobs:
            record["logprobs"] = self._text_logprobs(output.logprobs)
        return record

    def closing(self, index: int, output: Output) -> dict[str, Any]:
        """The last delta of a choice: the reason alone."""
        reason = finish_reason(output.finish_reason)
        body: dict[str, Any] = {"delta": {}} if self.is_chat else {"text": ""}
        return {"index": index, **body, "logprobs": None, "finish_reason": reason}

    # Log-probabilities.

    def _chat_logprobs(self, told: Iterable[TokenLogprob]) -> dict[str, Any]:
        return {
            "content": [
                {
                    **self._named(one.token, one.logprob),
                    "top_logprobs": [self._named(token, logprob) for token, logprob in one.top],
                }
                for one in told
            ],
            "refusal": None,
        }

    def _named(self, token: int, logprob: float) -> dict[str, Any]:
        text = self._text(token)
        return {"token": text, "logprob": logprob, "bytes": list(text.encode("utf-8"))}

    def _text_logprobs(self, told: Sequence[TokenLogprob]) -> dict[str, Any]:
        tokens = [self._text(one.token) for one in told]
        offsets, at = [], 0
        for token in tokens:
            offsets.append(at)
            at += len(token)
        return {
            "tokens": tokens,
            "token_logprobs": [one.logprob for one in told],
            "top_logprobs": [{self._text(t): p for t, p in one.top} for one in told],
            "text_offset": offsets,
        }

    def _text(self, token: int) -> str:
        return self.tokenizer.decode([token], has_special=True)
