"""What the routes share: the engine behind its driver, the names of its model, common refusals."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from starlette.concurrency import run_in_threadpool

from worthit.decode.engine import Engine
from worthit.errors import WorthitError
from worthit.serve.driver import Driver, Ended
from worthit.serve.errors import ApiError, as_api_error
from worthit.serve.http import Gate
from worthit.serve.metrics import Metrics


@dataclass(kw_only=True)
class Service:
    """What the handlers share.

    Attributes:
        names: what clients may call the model; the first is its own.
        request_timeout_s: the longest that an answer may take, waiting included.
        started_at: Unix time, shown as the model's date.
    """

    driver: Driver
    names: tuple[str, ...]
    gate: Gate
    request_timeout_s: float = 600.0
    started_at: int = 0
    metrics: Metrics = field(init=False)

    def __post_init__(self) -> None:
        self.metrics = Metrics(self.engine, self.names[0])

    @property
    def engine(self) -> Engine:
        """The engine behind the driver."""
        return self.driver.engine

    @property
    def tokenizer(self) -> Any:
        """The engine's tokenizer; a server always has one."""
        assert self.engine.tokenizer is not None
        return self.engine.tokenizer

    def check_model(self, name: str) -> None:
        """Refuse a body for another model."""
        if name not in self.names:
            raise ApiError(
                404,
                f"model: there is no {name!r} here; this server has {self.names[0]!r}",
                code="model_not_found",
                param="model",
            )

    async def ids(self, prompt: str | list[int]) -> list[int]:
        """A prompt as ids."""
        if isinstance(prompt, str):
            ids: list[int] = await run_in_threadpool(self.tokenizer.encode, prompt)
            return ids
        return prompt


def refusal(error: WorthitError, prompt_param: str = "prompt") -> ApiError:
    """What a client is told of an error that came before any answer."""
    if isinstance(error, Ended):
        return ApiError(503, str(error), code="unavailable", headers={"Retry-After": "10"})
    return as_api_error(error, prompt_param=prompt_param)
