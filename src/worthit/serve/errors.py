"""What a client is told when something is wrong: a status, and OpenAI's error object."""

from __future__ import annotations

from typing import Any

from worthit.decode.engine import QueueFull
from worthit.errors import InputError, MissingCapability, WorthitError

CONTEXT_PHRASE = "maximum context length"
# Where clients call something otherwise than the engine does.
FIELDS = {"stop_ids": "stop_token_ids"}


class ApiError(Exception):
    """An answer that is an error.

    Args:
        status: of HTTP.
        message: what was wrong, what was got, what to do.
        code: a word that programs look for, such as `context_length_exceeded`.
        param: the field of the body that is at fault.
        headers: to send along, such as `Retry-After`.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param
        self.headers = headers or {}

    def to_json(self) -> dict[str, Any]:
        """The body that clients of OpenAI's interface parse."""
        kind = {
            401: "authentication_error",
            404: "not_found_error",
            429: "rate_limit_error",
        }.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        error = {"message": self.message, "type": kind, "param": self.param, "code": self.code}
        return {"error": error}


def as_api_error(error: WorthitError, *, prompt_param: str = "prompt") -> ApiError:
    """An error of the engine as a client should see it.

    Args:
        error: what was raised.
        prompt_param: the field in which this endpoint has its prompt.
    """
    if isinstance(error, QueueFull):
        wait = max(1, round(error.retry_after_s))
        return ApiError(429, str(error), code="queue_full", headers={"Retry-After": str(wait)})
    if isinstance(error, MissingCapability):
        return ApiError(501, str(error), code="not_supported")
    if not isinstance(error, InputError):
        return ApiError(500, str(error), code="internal_error")
    first = error.problems[0]
    param, _, rest = first.partition(": ")
    param = FIELDS.get(param, param)
    if CONTEXT_PHRASE in first:
        message = rest[:1].upper() + rest[1:]
        where = prompt_param if param == "prompt" else param
        return ApiError(400, message, code="context_length_exceeded", param=where)
    is_field = rest and param.replace("_", "").isalnum()
    where_ = (prompt_param if param == "prompt" else param) if is_field else None
    return ApiError(400, str(error), code="invalid_value", param=where_)
