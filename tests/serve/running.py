"""A server on a free port of this machine, over a tiny model, and clients for it."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
import uvicorn
from decode.tiny import checkpoint

import worthit
from worthit.decode.engine import Engine, EngineConfig
from worthit.decode.speculative.drafter import Drafter
from worthit.decode.tokenizer import Tokenizer, load_tokenizer
from worthit.nn.decoder import Decoder
from worthit.serve.app import create_app
from worthit.serve.driver import Driver
from worthit.serve.http import Gate
from worthit.serve.service import Service

NAME = "tiny"


def tiny(folder: Path) -> tuple[Decoder, Tokenizer]:
    """A random Llama with a context of 64."""
    checkpoint(folder)
    return worthit.load_model(folder), load_tokenizer(folder)


@dataclass
class Running:
    """A server that runs, seen from outside and, for its blocks, from inside."""

    port: int
    service: Service

    @property
    def engine(self) -> Engine:
        return self.service.engine

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def client(self, **options: Any) -> openai.OpenAI:
        settings = {"api_key": "none", "max_retries": 0, "timeout": 20.0, **options}
        return openai.OpenAI(base_url=f"{self.url}/v1", **settings)

    def send(self, text: str | bytes) -> socket.socket:
        """A raw connection on which `text` was sent."""
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=20)
        connection.sendall(text.encode() if isinstance(text, str) else text)
        return connection

    def post(
        self, path: str, body: bytes | dict[str, Any], **headers: str
    ) -> tuple[int, dict[str, str], Any]:
        """Status, headers and JSON of a POST whose body may be anything."""
        raw = json.dumps(body).encode() if isinstance(body, dict) else body
        return self.ask("POST", path, raw, headers)

    def get(self, path: str) -> tuple[int, dict[str, str], Any]:
        return self.ask("GET", path, b"", {})

    def ask(
        self, method: str, path: str, raw: bytes, headers: dict[str, str]
    ) -> tuple[int, dict[str, str], Any]:
        lines = [
            f"{method} {path} HTTP/1.1",
            "host: 127.0.0.1",
            "connection: close",
            f"content-length: {len(raw)}",
            *(f"{k.replace('_', '-')}: {v}" for k, v in headers.items()),
        ]
        with self.send("\r\n".join(lines).encode() + b"\r\n\r\n" + raw) as connection:
            return parsed(read_all(connection))

    def until_idle(self, seconds: float = 20.0) -> None:
        """Wait until nobody is served any more; then nothing may be held."""
        end = time.monotonic() + seconds
        driver = self.service.driver
        while self.engine.has_work or self.service.gate.n_open or driver._subscribers:
            assert time.monotonic() < end, "requests are left behind"
            time.sleep(0.01)
        assert self.engine.memory.n_held == 0


def read_all(connection: socket.socket) -> bytes:
    data = b""
    while part := connection.recv(65_536):
        data += part
    return data


def parsed(answer: bytes) -> tuple[int, dict[str, str], Any]:
    head, _, body = answer.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in lines)}
    if headers.get("content-type", "").startswith("application/json"):
        return int(first.split()[1]), headers, json.loads(body)
    return int(first.split()[1]), headers, body.decode("utf-8")


@contextmanager
def running(
    engine: Engine,
    *,
    gate: Gate | None = None,
    request_timeout_s: float = 30.0,
    send_buffer: int | None = None,
) -> Iterator[Running]:
    service = Service(
        driver=Driver(engine),
        names=(NAME,),
        gate=gate or Gate(),
        request_timeout_s=request_timeout_s,
        started_at=1,
    )
    listening = socket.create_server(("127.0.0.1", 0))
    if send_buffer is not None:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
    settings = uvicorn.Config(
        create_app(service), log_level="error", access_log=False, timeout_graceful_shutdown=5
    )
    server = uvicorn.Server(settings)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.005)
    try:
        yield Running(port=listening.getsockname()[1], service=service)
    finally:
        server.should_exit = True
        thread.join(20)
        listening.close()


def engine_of(folder: Path, drafter: Drafter | None = None, **limits: Any) -> Engine:
    model, tokenizer = tiny(folder)
    config = EngineConfig(**{"block_tokens": 4, "has_draft_control": False, **limits})
    return Engine(model, tokenizer, config, drafter=drafter)
