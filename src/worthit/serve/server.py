"""Run the application: listen, serve, and leave in an orderly way."""

from __future__ import annotations

import contextlib
import ipaddress
import signal
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import FrameType
from typing import Any, Literal

import uvicorn

from worthit.decode.engine import Engine
from worthit.errors import InputError, WorthitError
from worthit.serve.app import create_app
from worthit.serve.driver import Driver
from worthit.serve.http import Gate, json_log, text_log
from worthit.serve.service import Service

LOGS: dict[str, Callable[[dict[str, Any]], None] | None] = {
    "json": json_log,
    "text": text_log,
    "none": None,
}
BACKLOG = 1024


@dataclass(frozen=True, kw_only=True)
class ServerConfig:
    """Where to listen, whom to let in, how long to wait.

    Attributes:
        host, port: port 0 takes a free one.
        api_key: what clients must send; a host that others can reach needs one.
        names: what clients may call the model.
        max_body_bytes: of one request.
        request_timeout_s: the longest that an answer may take, waiting included.
        drain_s: how long answers under way may go on after SIGTERM.
        log: one line a request on stderr, `json` or `text`, or `none`.
    """

    names: tuple[str, ...]
    host: str = "127.0.0.1"
    port: int = 8000
    api_key: str | None = None
    max_body_bytes: int = 8 * 2**20
    request_timeout_s: float = 600.0
    drain_s: float = 30.0
    log: Literal["json", "text", "none"] = "text"

    def __post_init__(self) -> None:
        problems = [
            f"{name}: must be above 0, got {getattr(self, name)}"
            for name in ("max_body_bytes", "request_timeout_s")
            if not getattr(self, name) > 0
        ]
        if self.drain_s < 0:
            problems.append(f"drain_s: must be 0 or more, got {self.drain_s}")
        if not 0 <= self.port < 65_536:
            problems.append(f"port: must be between 0 and 65535, got {self.port}")
        if self.api_key is not None and not self.api_key.strip():
            problems.append("api_key: must not be empty; leave it out to let everybody in")
        if self.api_key is None and not is_loopback(self.host):
            problems.append(
                f"host: {self.host} can be reached by others, and there is no API key; give one "
                "(--api-key, WORTHIT_API_KEY), or listen on 127.0.0.1"
            )
        if problems:
            raise InputError(*problems)


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches `host`."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class GracefulServer(uvicorn.Server):
    """Stops taking work at the first SIGTERM or SIGINT, and all work at the second."""

    def __init__(self, config: uvicorn.Config, gate: Gate) -> None:
        super().__init__(config)
        self.gate = gate

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """What a signal does."""
        if self.should_exit:
            self.force_exit = True
        self.gate.is_draining = True
        self.should_exit = True

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """As uvicorn does, but a drained server ends well: the signal is not raised again."""
        wanted = (signal.SIGINT, signal.SIGTERM)
        before = {sig: signal.signal(sig, self.handle_exit) for sig in wanted}
        try:
            yield
        finally:
            for sig, handler in before.items():
                signal.signal(sig, handler)


def serve(
    engine: Engine, config: ServerConfig, *, on_ready: Callable[[str], None] | None = None
) -> None:
    """Serve until a signal ends it.

    Args:
        engine: with a tokenizer.
        config: see `ServerConfig`.
        on_ready: called with the server's address once clients may come.

    Raises:
        WorthitError: the address cannot be listened on.
    """
    if engine.tokenizer is None:
        raise InputError("this model has no tokenizer, and a server needs one")
    gate = Gate(api_key=config.api_key, max_body_bytes=config.max_body_bytes, log=LOGS[config.log])
    service = Service(
        driver=Driver(engine),
        names=config.names,
        gate=gate,
        request_timeout_s=config.request_timeout_s,
        started_at=int(time.time()),
    )
    listening = listen(config.host, config.port)
    port = listening.getsockname()[1]
    settings = uvicorn.Config(
        create_app(service),
        log_level="warning",
        access_log=False,
        # The body's limit comes first; a client that sends nothing for so long is gone.
        timeout_keep_alive=30,
        timeout_graceful_shutdown=max(1, round(config.drain_s)),
        server_header=False,
    )
    server = GracefulServer(settings, gate)
    if on_ready is not None:
        host = f"[{config.host}]" if ":" in config.host else config.host
        on_ready(f"http://{host}:{port}")
    with contextlib.closing(listening):
        server.run(sockets=[listening])
    if service.driver.failure is not None:
        raise WorthitError(f"the engine stopped: {service.driver.failure}")


def listen(host: str, port: int) -> socket.socket:
    """A socket on which clients may come."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
        listening.listen(BACKLOG)
    except OSError as error:
        listening.close()
        reason = (error.strerror or str(error)).lower()
        raise WorthitError(
            f"cannot listen on {host}:{port}: {reason}; choose another --port"
        ) from None
    return listening
