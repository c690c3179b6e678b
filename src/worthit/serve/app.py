"""The application: every route of the server, over one engine."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

import worthit
from worthit.errors import WorthitError
from worthit.serve import embeddings
from worthit.serve.completions import chat, complete
from worthit.serve.errors import ApiError
from worthit.serve.http import Surround, error_response
from worthit.serve.protocol import EmbeddingBody, TokenizeBody, parse
from worthit.serve.service import Service, refusal

CLOSED_BY_CLIENT = 499


def create_app(service: Service) -> ASGIApp:
    """The ASGI application of a service; starting it starts the engine's thread."""

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        service.driver.start()
        yield
        await run_in_threadpool(service.driver.stop)

    def route(path: str, handler: Callable[..., Awaitable[Response]], *methods: str) -> Route:
        async def endpoint(http: HttpRequest) -> Response:
            return await handler(service, http)

        return Route(path, endpoint, methods=list(methods or ("GET",)))

    app = Starlette(
        lifespan=lifespan,
        routes=[
            route("/v1/models", list_models),
            route("/v1/models/{name:path}", show_model),
            route("/v1/completions", complete, "POST"),
            route("/v1/chat/completions", chat, "POST"),
            route("/v1/embeddings", embed, "POST"),
            route("/tokenize", tokenize, "POST"),
            route("/health", health),
            route("/ready", ready),
            route("/metrics", show_metrics),
            route("/version", version),
        ],
        exception_handlers={
            ApiError: _on_api_error,
            WorthitError: _on_worthit_error,
            HTTPException: _on_http_error,
            ClientDisconnect: _on_disconnect,
            Exception: _on_bug,
        },
    )
    return Surround(app, service.gate)


async def embed(service: Service, http: HttpRequest) -> Response:
    """`POST /v1/embeddings`: the mean of the last hidden states, of length 1."""
    body: EmbeddingBody = parse(await http.body(), EmbeddingBody)
    service.check_model(body.model)
    model = getattr(service.engine.runner, "model", None)
    if model is None:
        raise ApiError(501, "this server's model gives no embeddings", code="not_supported")
    given: Any = body.input
    one = isinstance(given, str) or isinstance(given[0], int)
    inputs = [given] if one else given
    ids = [await service.ids(each) for each in inputs]
    embeddings.check(ids, model.spec)
    # One at a time: others' tokens come between.
    vectors = []
    for row in ids:
        vectors.append(await service.driver.call(lambda row=row: embeddings.embed(model, row)))  # type: ignore[misc]
    n_tokens = sum(len(row) for row in ids)
    http.scope["note"]["prompt_tokens"] = n_tokens
    return JSONResponse(
        {
            "object": "list",
            "model": service.names[0],
            "data": [
                {
                    "object": "embedding",
                    "index": i,
                    "embedding": embeddings.encoded(v, body.encoding_format),
                }
                for i, v in enumerate(vectors)
            ],
            "usage": {"prompt_tokens": n_tokens, "total_tokens": n_tokens},
        }
    )


async def tokenize(service: Service, http: HttpRequest) -> Response:
    """`POST /tokenize`: the ids of a text."""
    body: TokenizeBody = parse(await http.body(), TokenizeBody)
    ids = await service.ids(body.prompt)
    longest = service.engine.runner.context_len
    return JSONResponse({"count": len(ids), "max_model_len": longest, "tokens": ids})


async def list_models(service: Service, http: HttpRequest) -> Response:
    """`GET /v1/models`."""
    data = [_model_json(service, name) for name in service.names]
    return JSONResponse({"object": "list", "data": data})


async def show_model(service: Service, http: HttpRequest) -> Response:
    """`GET /v1/models/{id}`."""
    name = http.path_params["name"]
    service.check_model(name)
    return JSONResponse(_model_json(service, name))


def _model_json(service: Service, name: str) -> dict[str, Any]:
    return {
        "id": name,
        "object": "model",
        "created": service.started_at,
        "owned_by": "worthit",
        "max_model_len": service.engine.runner.context_len,
    }


async def health(service: Service, http: HttpRequest) -> Response:
    """`GET /health`: 200 while the engine lives, 503 when it does not."""
    problem = service.driver.problem
    if problem is not None:
        return JSONResponse({"status": "failed", "reason": problem}, status_code=503)
    return JSONResponse({"status": "ok"})


async def ready(service: Service, http: HttpRequest) -> Response:
    """`GET /ready`: 200 while new work is taken."""
    if service.gate.is_draining:
        return JSONResponse({"status": "draining"}, status_code=503)
    return await health(service, http)


async def show_metrics(service: Service, http: HttpRequest) -> Response:
    """`GET /metrics`."""
    return Response(service.metrics.page(), media_type=service.metrics.content_type)


async def version(service: Service, http: HttpRequest) -> Response:
    """`GET /version`."""
    return JSONResponse({"version": worthit.__version__})


# --- errors --------------------------------------------------------------------------------------


async def _on_api_error(http: HttpRequest, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return error_response(error)


async def _on_worthit_error(http: HttpRequest, error: Exception) -> Response:
    assert isinstance(error, WorthitError)
    return error_response(refusal(error))


async def _on_http_error(http: HttpRequest, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    message = {
        404: f"there is no {http.url.path} here",
        405: f"{http.url.path} is not for {http.method}",
    }.get(error.status_code, str(error.detail))
    headers = dict(error.headers or {})
    return error_response(ApiError(error.status_code, message, headers=headers))


async def _on_disconnect(http: HttpRequest, error: Exception) -> Response:
    # Nobody reads it; the log does.
    return Response(status_code=CLOSED_BY_CLIENT)


async def _on_bug(http: HttpRequest, error: Exception) -> Response:
    http.scope["note"]["error"] = f"{type(error).__name__}: {error}"[:200]
    return error_response(
        ApiError(500, f"a bug of the server: {type(error).__name__}", code="internal_error")
    )
