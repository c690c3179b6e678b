"""What servers meet: each fault gets one clear answer, harms nobody, and leaves nothing held."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from decode.tiny import checkpoint
from serve.running import NAME, Running, engine_of, parsed, read_all, running

from worthit.decode.engine import Engine, EngineConfig, Request
from worthit.errors import InputError, WorthitError
from worthit.serve.driver import MAX_UNREAD, Driver, Subscription
from worthit.serve.http import Gate
from worthit.serve.server import ServerConfig, listen

CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"
HI = [{"role": "user", "content": "hi"}]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(engine_of(tmp_path_factory.mktemp("tiny"))) as found:
        yield found


@pytest.fixture(autouse=True)
def nothing_is_left(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "server" in request.fixturenames:
        request.getfixturevalue("server").until_idle()


# Path, body, status, what the message says, the field at fault.
WRONG: dict[str, tuple[str, bytes | dict[str, Any], int, str, str | None]] = {
    "no JSON": (CHAT, b"{bad", 400, "no JSON", None),
    "no object": (CHAT, b"[1]", 400, "must be an object", None),
    "no body": (TEXT, b"", 400, "no JSON", None),
    "NaN": (TEXT, b'{"model": "tiny", "prompt": "a", "temperature": NaN}', 400, "NaN", None),
    "no UTF-8": (TEXT, b'{"model": "\xff"}', 400, "0xff", None),
    "deep": (TEXT, b'{"a":' * 5000 + b"1" + b"}" * 5000, 400, "nested too deeply", None),
    "deep within limits of the parser": (
        TEXT,
        b'{"x":' + b"[" * 100 + b"]" * 100 + b"}",
        400,
        "nested too deeply",
        None,
    ),
    "no model": (TEXT, {"prompt": "a"}, 400, "model: field required", "model"),
    "model of a wrong type": (TEXT, {"model": 3, "prompt": "a"}, 400, "got 3", "model"),
    "unknown model": (TEXT, {"model": "gpt-9", "prompt": "a"}, 404, "gpt-9", "model"),
    "no messages": (CHAT, {"model": NAME, "messages": []}, 400, "at least 1", "messages"),
    "unknown role": (
        CHAT,
        {"model": NAME, "messages": [{"role": "bob", "content": "x"}]},
        400,
        "'bob'",
        "messages",
    ),
    "an image": (
        CHAT,
        {
            "model": NAME,
            "messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}],
        },
        400,
        "image_url",
        "messages",
    ),
    "empty prompt": (TEXT, {"model": NAME, "prompt": ""}, 400, "at least one token", "prompt"),
    "no max_tokens": (
        TEXT,
        {"model": NAME, "prompt": "a", "max_tokens": 0},
        400,
        "0",
        "max_tokens",
    ),
    "negative max_tokens": (
        CHAT,
        {"model": NAME, "messages": HI, "max_tokens": -1},
        400,
        "got -1",
        "max_tokens",
    ),
    "max_tokens beyond the context": (
        TEXT,
        {"model": NAME, "prompt": "a", "max_tokens": 10**9},
        400,
        "maximum context length is 64 tokens",
        "max_tokens",
    ),
    "a prompt beyond the context": (
        CHAT,
        {"model": NAME, "messages": [{"role": "user", "content": "ab " * 99}]},
        400,
        "This model's maximum context length is 64 tokens",
        "messages",
    ),
    "negative temperature": (
        TEXT,
        {"model": NAME, "prompt": "a", "temperature": -1},
        400,
        "got -1",
        "temperature",
    ),
    "temperature as text": (
        TEXT,
        {"model": NAME, "prompt": "a", "temperature": "hot"},
        400,
        "'hot'",
        "temperature",
    ),
    "top_p of nothing": (TEXT, {"model": NAME, "prompt": "a", "top_p": 0}, 400, "got 0", "top_p"),
    "n of nothing": (TEXT, {"model": NAME, "prompt": "a", "n": 0}, 400, "got 0", "n"),
    "too many choices": (
        TEXT,
        {"model": NAME, "prompt": ["a"] * 100, "n": 2},
        400,
        "at most 128 choices",
        "prompt",
    ),
    "ids that are none": (TEXT, {"model": NAME, "prompt": [1, -2]}, 400, "from 0 to", "prompt"),
    "ids beyond the vocabulary": (
        TEXT,
        {"model": NAME, "prompt": [10**6]},
        400,
        "from 0",
        "prompt",
    ),
    "stop strings without end": (
        TEXT,
        {"model": NAME, "prompt": "a", "stop": ["x"] * 1000},
        400,
        "stop",
        "stop",
    ),
    "a schema that is none": (
        CHAT,
        {
            "model": NAME,
            "messages": HI,
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "x", "schema": {"type": "nothing"}},
            },
        },
        400,
        "grammar",
        "grammar",
    ),
    "an expression that is none": (
        TEXT,
        {"model": NAME, "prompt": "a", "guided_regex": "(("},
        400,
        "grammar",
        "grammar",
    ),
    "a field that would change the answer": (
        TEXT,
        {"model": NAME, "prompt": "a", "suffix": "z"},
        400,
        "suffix: not supported",
        "suffix",
    ),
    "top_logprobs alone": (
        CHAT,
        {"model": NAME, "messages": HI, "top_logprobs": 2},
        400,
        "needs logprobs",
        "top_logprobs",
    ),
    "half a character": (
        CHAT,
        b'{"model": "tiny", "messages": [{"role": "user", "content": "\\ud83d"}]}',
        400,
        "half of a surrogate pair",
        None,
    ),
    "half a character where nobody reads": (
        TEXT,
        b'{"model": "tiny", "prompt": "a", "mine": {"\\uDEAD": 1}}',
        400,
        "half of a surrogate pair",
        None,
    ),
    "a bias of no token": (
        TEXT,
        {"model": NAME, "prompt": "a", "logit_bias": {"abc": 1}},
        400,
        "logit_bias",
        "logit_bias",
    ),
    "a bias of a token that there is not": (
        TEXT,
        {"model": NAME, "prompt": "a", "logit_bias": {"99999": 1}},
        400,
        "got 99999",
        "logit_bias",
    ),
    "stop tokens that there are not": (
        TEXT,
        {"model": NAME, "prompt": "a", "stop_token_ids": [10**6], "min_tokens": 3},
        400,
        "got 1000000",
        "stop_token_ids",
    ),
    "a number beyond all": (
        TEXT,
        b'{"model": "tiny", "prompt": "a", "top_p": 1e999}',
        400,
        "top_p",
        "top_p",
    ),
    "a schema with a number beyond all": (
        TEXT,
        b'{"model": "tiny", "prompt": "a", "guided_json": {"maximum": 1e999}}',
        400,
        "grammar",
        "grammar",
    ),
    "no text to embed": (
        "/v1/embeddings",
        {"model": NAME, "input": [""]},
        400,
        "at least",
        "input",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_input_gets_one_clear_error(server: Running, name: str) -> None:
    path, body, status, says, param = WRONG[name]
    got, headers, record = server.post(path, body)
    assert got == status, record
    error = record["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert says in error["message"]
    assert error["param"] == param
    assert headers["x-request-id"]


# What nobody should ask for, and what is said all the same.
ABSURD: dict[str, tuple[dict[str, Any], bool]] = {
    "next to no temperature": ({"temperature": 1e-300}, True),
    "next to no mass": ({"temperature": 2, "top_p": 1e-300}, True),
    "as likely as the likeliest": ({"temperature": 2, "min_p": 1}, True),
    "one of them": ({"temperature": 2, "top_k": 1}, True),
    "more than there are": ({"temperature": 0, "top_k": 10**30}, True),
    "the largest penalties": (
        {"repetition_penalty": 10, "presence_penalty": 2, "frequency_penalty": 2},
        False,
    ),
    "the least penalties": (
        {"repetition_penalty": 0.01, "presence_penalty": -2, "frequency_penalty": -2},
        False,
    ),
    "a seed below all": ({"seed": -(10**30)}, False),
    "every bias": ({"logit_bias": {str(i): -100 for i in range(300)}}, False),
    "a priority": ({"priority": 100}, False),
}


@pytest.mark.parametrize("name", ABSURD)
def test_absurd_settings_are_obeyed(server: Running, name: str) -> None:
    """Some of them leave one token to draw: then it is the greedy one."""
    settings, is_greedy = ABSURD[name]
    body = {"model": NAME, "prompt": "the cat", "max_tokens": 8, "ignore_eos": True}
    status, _, record = server.post(TEXT, {**body, **settings})
    assert status == 200, record
    assert record["usage"]["completion_tokens"] == 8
    if is_greedy:
        plain = server.post(TEXT, {**body, "temperature": 0})[2]
        assert record["choices"][0]["text"] == plain["choices"][0]["text"]


def test_a_strange_request_harms_nobody_beside_it(tmp_path: Path) -> None:
    """Whatever is refused, or absurd, those who run beside it get what they would alone."""
    engine = engine_of(tmp_path)
    with running(engine) as server:
        alone = server.post(TEXT, long_body(False))[2]["choices"][0]["text"]
        slow_down(engine, 0.02)
        texts: list[str] = []
        other = threading.Thread(
            target=lambda: texts.append(
                server.post(TEXT, long_body(False))[2]["choices"][0]["text"]
            )
        )
        other.start()
        wait(lambda: engine.stats.n_running == 1)
        for path, body, status, _, _ in WRONG.values():
            assert server.post(path, body)[0] == status
        other.join(30)
        assert texts == [alone]
        assert engine.stats.n_errors == 0


def test_the_code_that_agents_look_for(server: Running) -> None:
    body = {"model": NAME, "prompt": [7] * 80}
    assert server.post(TEXT, body)[2]["error"]["code"] == "context_length_exceeded"


def test_paths_and_methods_that_are_none(server: Running) -> None:
    assert server.get("/nothing")[0] == 404
    assert server.get(TEXT)[0] == 405
    assert server.get("/nothing")[2]["error"]["message"] == "there is no /nothing here"


def test_unknown_fields_are_ignored_and_logged(tmp_path: Path) -> None:
    seen: list[dict[str, Any]] = []
    with running(engine_of(tmp_path), gate=Gate(log=seen.append)) as server:
        body = {"model": NAME, "prompt": "the cat", "max_tokens": 2, "frobnicate": 1, "user": "me"}
        assert server.post(TEXT, body)[0] == 200
        server.until_idle()
    assert seen[-1]["ignored"] == ["frobnicate"]
    assert seen[-1]["completion_tokens"] == 2
    # What people say stays out of logs.
    assert "the cat" not in json.dumps(seen)


def test_a_body_that_is_too_large(tmp_path: Path) -> None:
    with running(engine_of(tmp_path), gate=Gate(max_body_bytes=1000)) as server:
        large = json.dumps({"model": NAME, "prompt": "a" * 2000}).encode()
        status, _, record = server.post(TEXT, large)
        assert (status, record["error"]["code"]) == (413, "body_too_large")
        # The same without saying beforehand how long it is.
        head = f"POST {TEXT} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n"
        chunk = f"{len(large):x}\r\n".encode() + large + b"\r\n0\r\n\r\n"
        with server.send(head.encode() + b"transfer-encoding: chunked\r\n\r\n" + chunk) as c:
            assert parsed(read_all(c))[0] == 413


def test_the_key(tmp_path: Path) -> None:
    with running(engine_of(tmp_path), gate=Gate(api_key="secret")) as server:
        body = {"model": NAME, "prompt": [7], "max_tokens": 1}
        assert server.post(TEXT, body)[0] == 401
        assert server.post(TEXT, body, authorization="Bearer wrong")[0] == 401
        assert server.post(TEXT, body, authorization="Bearer secret")[0] == 200
        assert server.get("/health")[0] == 200


# --- clients that go away ------------------------------------------------------------------------


def slow_down(engine: Engine, seconds: float) -> None:
    """Make every step take at least so long."""
    step = engine.step

    def slow() -> Any:
        time.sleep(seconds)
        return step()

    engine.step = slow  # type: ignore[method-assign]


def long_body(stream: bool, n: int = 60) -> bytes:
    body = {"model": NAME, "prompt": [7], "max_tokens": n, "stream": stream, "ignore_eos": True}
    return json.dumps({**body, "seed": 1}).encode()


def begin(server: Running, stream: bool) -> socket.socket:
    raw = long_body(stream)
    head = f"POST {TEXT} HTTP/1.1\r\nhost: x\r\ncontent-length: {len(raw)}\r\n\r\n"
    return server.send(head.encode() + raw)


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_its_blocks(tmp_path: Path, stream: bool) -> None:
    engine = engine_of(tmp_path)
    slow_down(engine, 0.05)  # three seconds for the whole answer
    with running(engine) as server:
        connection = begin(server, stream)
        wait(lambda: engine.stats.n_generation_tokens >= 3)
        connection.close()
        server.until_idle(2.0)
        assert engine.stats.finished == {"abort": 1}


def test_a_client_that_leaves_the_queue(tmp_path: Path) -> None:
    engine = engine_of(tmp_path, max_sequences=1)
    slow_down(engine, 0.02)
    with running(engine) as server:
        first, second = begin(server, True), begin(server, False)
        wait(lambda: engine.stats.n_waiting == 1)
        second.close()
        wait(lambda: engine.stats.n_waiting == 0)
        assert engine.stats.n_running == 1
        first.close()
        server.until_idle()


def test_a_client_that_does_not_read_is_let_go(tmp_path: Path) -> None:
    """What waits for it is bounded: then its request is ended, and it gets no end of the text."""
    engine = engine_of(tmp_path)

    async def scenario() -> tuple[int, Subscription]:
        driver = Driver(engine)
        driver.start()
        subscription = await driver.submit(
            Request(id="slow", prompt=[7], max_tokens=MAX_UNREAD + 50, stop_ids=())
        )
        while not subscription.is_finished:
            await asyncio.sleep(0.01)
        n_waiting = subscription._outputs.qsize()
        await asyncio.to_thread(driver.stop)
        return n_waiting, subscription

    engine.runner.context_len = 4 * MAX_UNREAD
    n_waiting, _ = asyncio.run(scenario())
    assert n_waiting == MAX_UNREAD
    assert engine.stats.finished == {"abort": 1}
    assert engine.memory.n_held == 0


def test_a_client_that_reads_slowly_gets_everything_and_holds_nobody_up(tmp_path: Path) -> None:
    """Its answer is larger than what stands between the two ends, so that writing must wait."""
    engine = engine_of(tmp_path, max_sequences=32)
    body = {"model": NAME, "prompt": [7], "max_tokens": 60, "n": 20, "stream": True}
    raw = json.dumps({**body, "ignore_eos": True}).encode()
    head = f"POST {TEXT} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {len(raw)}"
    with running(engine, send_buffer=4096) as server, socket.socket() as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.connect(("127.0.0.1", server.port))
        slow.sendall(head.encode() + b"\r\n\r\n" + raw)
        wait(lambda: engine.stats.n_generation_tokens == 60 * 20)
        # It has been told nearly nothing yet, and others are served.
        assert server.service.gate.n_open == 1
        assert server.post(TEXT, long_body(False))[0] == 200
        answer = read_all(slow)
        assert answer.count(b'"finish_reason": "length"') == 20
        assert b"data: [DONE]" in answer
        server.until_idle()


def wait(condition: Any, seconds: float = 15.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


# --- too much ------------------------------------------------------------------------------------


def test_a_full_queue_is_a_429_that_says_when(tmp_path: Path) -> None:
    engine = engine_of(tmp_path, max_sequences=1, max_waiting=1)
    slow_down(engine, 0.02)
    with running(engine) as server:
        held = [begin(server, True)]
        wait(lambda: engine.stats.n_running == 1)
        held.append(begin(server, True))
        wait(lambda: engine.stats.n_waiting == 1)
        status, headers, record = server.post(TEXT, long_body(False))
        assert status == 429
        assert int(headers["retry-after"]) >= 1
        assert record["error"]["type"] == "rate_limit_error"
        for connection in held:
            connection.close()
        server.until_idle()


def test_two_hundred_at_once_are_all_answered(tmp_path: Path) -> None:
    engine = engine_of(tmp_path, max_waiting=300)
    with running(engine) as server:
        statuses: list[int] = []

        def ask() -> None:
            body = {"model": NAME, "prompt": [7, 8], "max_tokens": 3, "ignore_eos": True}
            statuses.append(server.post(TEXT, body)[0])

        threads = [threading.Thread(target=ask) for _ in range(200)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert statuses == [200] * 200
        server.until_idle()


def test_a_small_cache_puts_requests_back_and_answers_them_all(tmp_path: Path) -> None:
    engine = engine_of(tmp_path, n_blocks=8, has_prefix_caching=False)
    with running(engine) as server:
        texts: dict[int, str] = {}

        def ask(i: int) -> None:
            body = {"model": NAME, "prompt": [7 + i], "max_tokens": 20, "temperature": 0}
            texts[i] = server.post(TEXT, {**body, "ignore_eos": True})[2]["choices"][0]["text"]

        threads = [threading.Thread(target=ask, args=(i,)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        crowded = dict(texts)
        assert engine.stats.n_preemptions > 0
        for i in range(4):
            ask(i)
        assert texts == crowded
        server.until_idle()


def test_an_answer_that_takes_too_long(tmp_path: Path) -> None:
    engine = engine_of(tmp_path)
    slow_down(engine, 0.05)
    with running(engine, request_timeout_s=0.3) as server:
        status, _, record = server.post(TEXT, long_body(False))
        assert (status, record["error"]["code"]) == (504, "timeout")
        status, _, text = server.post(TEXT, long_body(True))
        assert status == 200
        assert '"code": "timeout"' in text
        assert text.rstrip().endswith("data: [DONE]\r\n\r\n0") or "data: [DONE]" in text
        server.until_idle()


# --- the engine fails ----------------------------------------------------------------------------


def test_a_step_that_fails_fails_its_own_requests(tmp_path: Path) -> None:
    engine = engine_of(tmp_path)
    run, is_broken = engine.runner.run, threading.Event()

    def fragile(parts: Any) -> Any:
        if is_broken.is_set():
            raise RuntimeError("a kernel failed")
        return run(parts)

    engine.runner.run = fragile  # type: ignore[method-assign]
    with running(engine) as server:
        is_broken.set()
        status, _, record = server.post(TEXT, long_body(False))
        assert status == 500
        assert "a kernel failed" in record["error"]["message"]
        assert "a kernel failed" in server.post(TEXT, long_body(True))[2]
        is_broken.clear()
        assert server.post(TEXT, long_body(False))[0] == 200
        assert server.get("/health")[0] == 200
        server.until_idle()


def test_an_engine_that_dies_is_told_to_everybody(tmp_path: Path) -> None:
    engine = engine_of(tmp_path)
    step, must_die = engine.step, threading.Event()

    def dying() -> Any:
        time.sleep(0.01)
        if must_die.is_set():
            raise SystemError("gone")
        return step()

    engine.step = dying  # type: ignore[method-assign]
    with running(engine) as server, begin(server, True) as connection:
        wait(lambda: engine.stats.n_generation_tokens >= 1)
        must_die.set()
        wait(lambda: server.service.driver.failure is not None)
        answer = connection.recv(65_536)
        while b"[DONE]" not in answer:
            more = connection.recv(65_536)
            assert more
            answer += more
        assert b"the engine stopped: SystemError" in answer
        status, _, record = server.get("/health")
        assert (status, record["status"]) == (503, "failed")
        assert server.post(TEXT, long_body(False))[0] == 503


# --- starting and ending -------------------------------------------------------------------------


@contextmanager
def started(folder: Path, *more: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server of its own process, and its address."""
    code = "from worthit.cli.main import main; main()"
    with subprocess.Popen(
        [sys.executable, "-c", code, "serve", str(folder), "--port", "0", "--json", *more],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    ) as process:
        assert process.stdout is not None
        lines = []
        while (line := process.stdout.readline()) and line.rstrip() != "}":
            lines.append(line)
        try:
            yield process, json.loads("".join([*lines, "}"]))["url"]
        finally:
            process.kill()


def reach(url: str) -> Running:
    """A server that is not ours, as far as clients see it."""
    return Running(port=int(url.rpartition(":")[2].partition("/")[0]), service=None)  # type: ignore[arg-type]


@pytest.mark.slow
def test_sigterm_finishes_what_is_under_way_and_ends_well(tmp_path: Path) -> None:
    checkpoint(tmp_path)
    with started(tmp_path, "--name", NAME) as (process, url):
        server = reach(url)
        with begin(server, True) as connection:
            first = connection.recv(200)
            assert b"200 OK" in first
            process.send_signal(signal.SIGTERM)
            rest = first + read_all(connection)
        assert b"[DONE]" in rest
        assert process.wait(20) == 0
        with pytest.raises(OSError, match="refused"):
            server.send("x")


@pytest.mark.slow
def test_sigterm_under_load_finishes_those_who_wait_too(tmp_path: Path) -> None:
    checkpoint(tmp_path)
    with started(tmp_path, "--name", NAME, "--max-sequences", "2") as (process, url):
        server = reach(url)
        connections = [begin(server, True) for _ in range(12)]
        assert b"200 OK" in connections[0].recv(200)
        process.send_signal(signal.SIGTERM)
        # Whoever was let in is answered to the end; the others are told to go elsewhere.
        answers = [read_all(connection) for connection in connections]
        done = [b"data: [DONE]" in answer for answer in answers]
        refused = [b" 503 " in answer or not answer for answer in answers[1:]]
        assert done[0]
        assert all(one or other for one, other in zip(done[1:], refused, strict=True))
        assert process.wait(20) == 0


@pytest.mark.slow
def test_a_killed_server_starts_again_on_its_port(tmp_path: Path) -> None:
    checkpoint(tmp_path)
    with (
        started(tmp_path, "--name", NAME) as (process, url),
        begin(reach(url), True) as connection,
    ):
        connection.recv(100)
        process.kill()
        process.wait(20)
    with started(tmp_path, "--name", NAME, "--port", str(reach(url).port)) as (again, second):
        assert second == url
        assert reach(second).post(TEXT, long_body(False))[0] == 200
        again.send_signal(signal.SIGINT)
        assert again.wait(20) == 0


def test_a_port_that_is_taken() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        pytest.raises(WorthitError, match=r"cannot listen on 127\.0\.0\.1:.*choose another --port"),
    ):
        listen("127.0.0.1", taken.getsockname()[1])


def test_others_are_let_in_only_with_a_key() -> None:
    with pytest.raises(InputError, match="can be reached by others, and there is no API key"):
        ServerConfig(names=("x",), host="0.0.0.0")
    assert ServerConfig(names=("x",), host="0.0.0.0", api_key="k").host == "0.0.0.0"
    assert ServerConfig(names=("x",), host="::1").api_key is None


def test_limits_that_make_no_sense() -> None:
    with pytest.raises(InputError, match="port: must be between 0 and 65535, got 99999"):
        ServerConfig(names=("x",), port=99_999)
    with pytest.raises(InputError, match="request_timeout_s: must be above 0"):
        ServerConfig(names=("x",), request_timeout_s=0)
    with pytest.raises(InputError, match="max_sequences"):
        EngineConfig(max_sequences=0)
