"""What surrounds every request: an id, a log line, the key, a limit on bodies, a door that closes.

One plain ASGI layer rather than a stack of them: it sees the first and the last byte, and a client
that goes away reaches the handler undisturbed.
"""

from __future__ import annotations

import contextlib
import hmac
import json
import re
import secrets
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from worthit.serve.errors import ApiError

ID = re.compile(r"[\w.:-]{1,128}")


@dataclass(kw_only=True)
class Gate:
    """Who may come in, and how much they may bring.

    Attributes:
        api_key: what `Authorization: Bearer` must say below `/v1`; None lets everybody in.
        max_body_bytes: of one request.
        is_draining: new work is refused; what is under way goes on.
        log: writes one line a request; None is silent.
    """

    api_key: str | None = None
    max_body_bytes: int = 8 * 2**20
    is_draining: bool = False
    log: Callable[[dict[str, Any]], None] | None = None
    n_open: int = field(default=0, init=False)


class Surround:
    """The layer around the application; what handlers note in `scope["note"]` is logged."""

    def __init__(self, app: ASGIApp, gate: Gate) -> None:
        self.app, self.gate = app, gate

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = time.perf_counter()
        headers = HttpRequest(scope).headers
        given = headers.get("x-request-id", "")
        name = given if ID.fullmatch(given) else secrets.token_hex(12)
        scope["request_id"], scope["note"] = name, {}
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", name.encode())]
            await send(message)

        self.gate.n_open += 1
        try:
            refusal = self._refusal(scope, headers)
            if refusal is not None:
                await error_response(refusal)(scope, receive, send_with_id)
                return
            await self.app(scope, self._limited(receive), send_with_id)
        finally:
            self.gate.n_open -= 1
            if self.gate.log is not None:
                self.gate.log(
                    {
                        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                        "id": name,
                        "method": scope["method"],
                        "path": scope["path"],
                        "status": status,
                        "ms": round(1000 * (time.perf_counter() - started), 1),
                        **scope["note"],
                    }
                )

    def _refusal(self, scope: Scope, headers: Any) -> ApiError | None:
        gate = self.gate
        is_work = scope["path"].startswith(("/v1/", "/tokenize"))
        if is_work and gate.api_key is not None:
            scheme, _, token = headers.get("authorization", "").partition(" ")
            is_right = hmac.compare_digest(token.strip().encode(), gate.api_key.encode())
            if scheme.lower() != "bearer" or not is_right:
                return ApiError(
                    401,
                    "the API key is missing or wrong; send it as 'Authorization: Bearer KEY'",
                    code="invalid_api_key",
                    headers={"WWW-Authenticate": "Bearer"},
                )
        if is_work and gate.is_draining:
            return ApiError(
                503,
                "the server is shutting down; try another one, or this one later",
                code="shutting_down",
                headers={"Retry-After": "10", "Connection": "close"},
            )
        stated = headers.get("content-length", "")
        if stated.isdigit() and int(stated) > gate.max_body_bytes:
            return too_large(gate.max_body_bytes)
        return None

    def _limited(self, receive: Receive) -> Receive:
        """`receive` that counts: a body may come without saying how long it is."""
        n_bytes = 0

        async def counted() -> Message:
            nonlocal n_bytes
            message = await receive()
            if message["type"] == "http.request":
                n_bytes += len(message.get("body", b""))
                if n_bytes > self.gate.max_body_bytes:
                    raise too_large(self.gate.max_body_bytes)
            return message

        return counted


def too_large(limit: int) -> ApiError:
    """The refusal of a body over the limit."""
    return ApiError(413, f"the body is larger than {limit} bytes; send less", code="body_too_large")


def error_response(error: ApiError) -> JSONResponse:
    """An error as a response."""
    return JSONResponse(error.to_json(), status_code=error.status, headers=error.headers)


def json_log(record: dict[str, Any]) -> None:
    """A request as a line of JSON on stderr; prompts and answers are never in it."""
    # A disk that is full or a reader that went away must not take the server along.
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.write(json.dumps(record, ensure_ascii=True) + "\n")
        sys.stderr.flush()


def text_log(record: dict[str, Any]) -> None:
    """The same for people."""
    known = ("time", "id", "method", "path", "status", "ms")
    more = "".join(f" {k}={v}" for k, v in record.items() if k not in known)
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.write(
            f"{record['time']} {record['method']} {record['path']} {record['status']} "
            f"{record['ms']} ms {record['id']}{more}\n"
        )
        sys.stderr.flush()
