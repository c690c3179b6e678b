"""What the official client gets: the same text as the model says alone, in OpenAI's objects."""

from __future__ import annotations

import base64
import json
import math
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
import torch
from serve.running import NAME, Running, engine_of, running

from worthit.decode.generate import generate

CHAT = [{"role": "user", "content": "the cat"}]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder: Path = tmp_path_factory.mktemp("tiny")
    with running(engine_of(folder)) as found:
        yield found


@pytest.fixture(autouse=True)
def nothing_is_left(server: Running) -> Iterator[None]:
    yield
    server.until_idle()


def alone(server: Running, ids: list[int], n: int, **options: Any) -> Any:
    """What the model says by itself; stop tokens end it as they do in the server."""
    model, tokenizer = server.engine.runner.model, server.engine.tokenizer  # type: ignore[attr-defined]
    return generate(model, ids, max_tokens=n, tokenizer=tokenizer, **options)[0]


def test_a_completion_is_what_the_model_says_alone(server: Running) -> None:
    got = server.client().completions.create(
        model=NAME, prompt="the cat", max_tokens=12, temperature=0
    )
    tokenizer = server.engine.tokenizer
    assert tokenizer is not None
    expected = alone(server, tokenizer.encode("the cat"), 12)
    assert got.choices[0].text == expected.text
    assert got.choices[0].finish_reason == expected.finish_reason
    assert got.object == "text_completion"
    assert got.usage is not None
    assert got.usage.prompt_tokens == len(tokenizer.encode("the cat"))


def test_a_chat_is_what_the_model_says_to_its_template(server: Running) -> None:
    got = server.client().chat.completions.create(
        model=NAME,
        messages=CHAT,
        max_completion_tokens=9,
        temperature=0,  # type: ignore[arg-type]
    )
    tokenizer = server.engine.tokenizer
    assert tokenizer is not None
    assert got.choices[0].message.content == alone(server, tokenizer.encode_chat(CHAT), 9).text
    assert got.choices[0].message.role == "assistant"
    assert got.id.startswith("chatcmpl-")


def test_a_stream_says_the_same_in_pieces(server: Running) -> None:
    client = server.client()
    settings: dict[str, Any] = {"model": NAME, "messages": CHAT, "max_tokens": 20, "seed": 3}
    whole = client.chat.completions.create(**settings, temperature=1.0)
    chunks = list(
        client.chat.completions.create(
            **settings, temperature=1.0, stream=True, stream_options={"include_usage": True}
        )
    )
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole.choices[0].message.content
    assert len({c.id for c in chunks}) == len({c.created for c in chunks}) == 1
    assert {c.object for c in chunks} == {"chat.completion.chunk"}
    reasons = [c.choices[0].finish_reason for c in chunks if c.choices]
    assert reasons[-1] == whole.choices[0].finish_reason
    assert set(reasons[:-1]) == {None}
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert whole.usage is not None
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert all(c.usage is None for c in chunks[:-1])


def test_the_wire_form_of_a_stream(server: Running) -> None:
    body = {"model": NAME, "prompt": "the cat", "max_tokens": 3, "stream": True, "temperature": 0}
    status, headers, text = server.post("/v1/completions", body, x_request_id="mine-1")
    assert status == 200
    assert headers["content-type"].startswith("text/event-stream")
    assert headers["x-request-id"] == "mine-1"
    assert "data: [DONE]\n\n" in text
    events = [line for line in text.splitlines() if line.startswith("data: {")]
    assert all(json.loads(e.removeprefix("data: "))["id"] == "cmpl-mine-1" for e in events)


def test_samples_prompts_and_seeds(server: Running) -> None:
    client = server.client()
    settings: dict[str, Any] = {"model": NAME, "max_tokens": 6, "n": 3, "seed": 5}
    both = client.completions.create(prompt=["the cat", "a dog"], **settings)
    assert [c.index for c in both.choices] == list(range(6))
    one = client.completions.create(prompt="a dog", **settings)
    assert [c.text for c in one.choices] == [c.text for c in both.choices[3:]]
    assert len({c.text for c in one.choices}) > 1
    ids = client.completions.create(prompt=[[7, 8, 9], [10]], **{**settings, "n": 1})
    assert len(ids.choices) == 2


def test_echo_with_logprobs_is_the_models_own_distribution(server: Running) -> None:
    prompt = [7, 8, 9, 10]
    got = server.client().completions.create(
        model=NAME, prompt=prompt, max_tokens=2, temperature=0, logprobs=2, echo=True
    )
    told = got.choices[0].logprobs
    assert told is not None
    assert told.token_logprobs is not None
    model = server.engine.runner.model  # type: ignore[attr-defined]
    with torch.no_grad():
        expected = model(torch.tensor([prompt]))[0].log_softmax(-1)
    for i, token in enumerate(prompt[1:]):
        assert told.token_logprobs[i] == pytest.approx(float(expected[i, token]), abs=1e-4)
    chosen = float(expected[-1].max())
    assert told.token_logprobs[len(prompt) - 1] == pytest.approx(chosen, abs=1e-4)


def test_chat_logprobs_come_with_the_likeliest(server: Running) -> None:
    got = server.client().chat.completions.create(
        model=NAME,
        messages=CHAT,
        max_tokens=4,
        temperature=0,
        logprobs=True,
        top_logprobs=3,  # type: ignore[arg-type]
    )
    told = got.choices[0].logprobs
    assert told is not None
    assert told.content is not None
    for one in told.content:
        assert len(one.top_logprobs) == 3
        assert one.logprob == max(t.logprob for t in one.top_logprobs)
        assert math.isfinite(one.logprob)


def test_a_stop_string_is_not_part_of_the_text(server: Running) -> None:
    client = server.client()
    settings: dict[str, Any] = {"model": NAME, "prompt": "the cat", "max_tokens": 25, "seed": 1}
    whole = client.completions.create(**settings).choices[0].text
    stop = whole[len(whole) // 2 :][:3]
    cut = client.completions.create(**settings, stop=[stop, "never said"]).choices[0]
    assert cut.text == whole[: whole.index(stop)]
    assert cut.finish_reason == "stop"


def test_json_and_expressions_are_obeyed(server: Running) -> None:
    client = server.client()
    schema = {
        "type": "object",
        "properties": {"a": {"type": "boolean"}},
        "required": ["a"],
        "additionalProperties": False,
    }
    got = client.chat.completions.create(
        model=NAME,
        messages=CHAT,
        seed=0,
        max_tokens=40,  # type: ignore[arg-type]
        response_format={
            "type": "json_schema",
            "json_schema": {"name": "s", "schema": schema},
        },
    )
    text = got.choices[0].message.content
    assert text is not None
    if got.choices[0].finish_reason == "stop":
        assert set(json.loads(text)) == {"a"}
    exact = client.completions.create(
        model=NAME, prompt="x", max_tokens=30, seed=0, extra_body={"guided_regex": "(ab){3}"}
    )
    assert exact.choices[0].text == "ababab"


def test_embeddings_are_the_mean_of_hidden_states(server: Running) -> None:
    got = server.client().embeddings.create(model=NAME, input=["the cat", "a dog"])
    vectors = np.array([d.embedding for d in got.data])
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    tokenizer, model = server.engine.tokenizer, server.engine.runner.model  # type: ignore[attr-defined]
    assert tokenizer is not None
    seen: list[torch.Tensor] = []
    hook = model.final_norm.register_forward_hook(lambda m, i, o: seen.append(o))
    with torch.no_grad():
        model(torch.tensor([tokenizer.encode("a dog")]))
    hook.remove()
    mean = seen[0][0].mean(dim=0)
    np.testing.assert_allclose(vectors[1], (mean / mean.norm()).numpy(), atol=1e-5)
    raw = server.post(
        "/v1/embeddings", {"model": NAME, "input": "a dog", "encoding_format": "base64"}
    )[2]
    packed = np.frombuffer(base64.b64decode(raw["data"][0]["embedding"]), dtype="<f4")
    np.testing.assert_allclose(packed, vectors[1], atol=1e-6)


def test_models_health_metrics_version_tokens(server: Running) -> None:
    client = server.client()
    assert [m.id for m in client.models.list()] == [NAME]
    assert client.models.retrieve(NAME).owned_by == "worthit"
    assert server.get("/health")[:1] == (200,)
    assert server.get("/ready")[0] == 200
    assert server.get("/version")[2]["version"]
    tokens = server.post("/tokenize", {"prompt": "the cat"})[2]
    assert tokens["tokens"] == server.engine.tokenizer.encode("the cat")  # type: ignore[union-attr]
    before = metric(server, "vllm:generation_tokens_total")
    client.completions.create(model=NAME, prompt=[7], max_tokens=5, extra_body={"ignore_eos": True})
    assert metric(server, "vllm:generation_tokens_total") == before + 5
    page = server.get("/metrics")[2]
    assert "vllm:time_to_first_token_seconds_bucket" in page
    assert metric(server, "vllm:kv_cache_usage_perc") == 0


def metric(server: Running, name: str) -> float:
    page = server.get("/metrics")[2]
    (line,) = [x for x in page.splitlines() if x.startswith(name + "{")]
    return float(line.split()[-1])


def test_sixteen_clients_at_once_get_what_one_gets(server: Running) -> None:
    prompts = [[3 + i, 40 - i, 7] for i in range(16)]
    got: dict[int, str] = {}

    def ask(i: int) -> None:
        text = server.client().completions.create(
            model=NAME, prompt=prompts[i], max_tokens=10, temperature=0
        )
        got[i] = text.choices[0].text

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert [got.get(i) for i in range(16)] == [alone(server, p, 10).text for p in prompts]


def test_an_unknown_model_is_a_404_with_its_code(server: Running) -> None:
    with pytest.raises(openai.NotFoundError, match="there is no 'other' here") as caught:
        server.client().chat.completions.create(model="other", messages=CHAT)  # type: ignore[arg-type]
    assert caught.value.code == "model_not_found"
