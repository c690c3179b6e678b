"""`/v1/completions` and `/v1/chat/completions`: one path, from a body to an answer or a stream.

A body becomes engine requests (`protocol`), the driver runs them, a `Writer` puts what they say
into OpenAI's objects. Whoever leaves, at any point of it, ends the requests behind it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response, StreamingResponse

from worthit.decode.engine import Request, Sample, TokenLogprob
from worthit.errors import WorthitError
from worthit.serve.driver import Ended, Subscription
from worthit.serve.errors import ApiError, as_api_error
from worthit.serve.protocol import Body, ChatBody, CompletionBody, parse
from worthit.serve.replies import DONE, Writer, add_usage, event, usage_json
from worthit.serve.service import Service, refusal

MAX_CHOICES = 128


@dataclass(kw_only=True)
class Job:
    """One prompt of a body on its way: its choices begin at `first`."""

    request: Request
    first: int
    prompt: str | list[int]
    samples: list[Sample] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprob] = field(default_factory=list)
    subscription: Subscription | None = None

    @property
    def usage(self) -> dict[str, Any]:
        """Token counts of its samples."""
        return usage_json(sample.usage for sample in self.samples)


async def complete(service: Service, http: HttpRequest) -> Response:
    """`POST /v1/completions`."""
    body: CompletionBody = parse(await http.body(), CompletionBody)
    service.check_model(body.model)
    prompts = body.prompts
    n = body.n or 1
    if len(prompts) * n > MAX_CHOICES:
        raise ApiError(
            400,
            f"prompt: at most {MAX_CHOICES} choices a body, got {len(prompts)} x n={n}",
            param="prompt",
        )
    if body.echo and body.stream:
        raise ApiError(400, "echo: not supported in a stream; leave out one", param="echo")
    jobs = []
    for i, prompt in enumerate(prompts):
        ids = await service.ids(prompt)
        request = body.request(
            ids,
            f"{http.scope['request_id']}-{i}",
            max_tokens=body.max_tokens,
            logprobs=body.logprobs,
            prompt_logprobs=body.logprobs if body.echo else None,
        )
        jobs.append(Job(request=request, first=i * n, prompt=prompt))
    return await _answer(service, http, body, jobs, wants_logprobs=body.logprobs is not None)


async def chat(service: Service, http: HttpRequest) -> Response:
    """`POST /v1/chat/completions`."""
    body: ChatBody = parse(await http.body(), ChatBody)
    service.check_model(body.model)
    if body.top_logprobs is not None and not body.logprobs:
        raise ApiError(400, "top_logprobs: needs logprobs to be true; set it", param="top_logprobs")
    messages = [message.for_template() for message in body.messages]
    tools = None if body.tool_choice == "none" else body.tools
    try:
        ids = await run_in_threadpool(service.tokenizer.encode_chat, messages, tools=tools)
    except WorthitError as error:
        raise as_api_error(error, prompt_param="messages") from None
    request = body.request(
        ids,
        http.scope["request_id"],
        max_tokens=body.limit,
        logprobs=(body.top_logprobs or 0) if body.logprobs else None,
    )
    jobs = [Job(request=request, first=0, prompt=ids)]
    return await _answer(service, http, body, jobs, wants_logprobs=body.logprobs)


async def _answer(
    service: Service, http: HttpRequest, body: Body, jobs: list[Job], *, wants_logprobs: bool
) -> Response:
    """Run the jobs and answer, whole or as a stream."""
    note, is_chat = http.scope["note"], isinstance(body, ChatBody)
    if body.unknown:
        note["ignored"] = body.unknown
    writer = Writer.of(
        http.scope["request_id"],
        service.names[0],
        service.tokenizer,
        is_chat=is_chat,
        has_usage_chunk=body.stream and body.has_usage_chunk,
    )
    prompt_param = "messages" if is_chat else "prompt"
    try:
        # All are checked before any begins.
        for job in jobs:
            await run_in_threadpool(service.engine.check, job.request)
            job.samples = [Sample() for _ in range(job.request.n)]
        for job in jobs:
            job.subscription = await service.driver.submit(job.request)
    except WorthitError as error:
        _close(jobs)
        raise refusal(error, prompt_param) from None
    except BaseException:
        _close(jobs)
        raise
    if body.stream:
        stream = _events(service, jobs, writer, note, wants_logprobs=wants_logprobs)
        headers = {"cache-control": "no-cache", "x-accel-buffering": "no"}
        return StreamingResponse(stream, media_type="text/event-stream", headers=headers)
    await _unless_gone(http, _collect(service, jobs), jobs)
    _note_jobs(note, jobs)
    echo = isinstance(body, CompletionBody) and body.echo
    choices = [
        writer.choice(
            job.first + i,
            sample,
            logprobs=wants_logprobs,
            echoed=_text_of(service, job.prompt) if echo else "",
            prompt_part=job.prompt_logprobs,
        )
        for job in jobs
        for i, sample in enumerate(job.samples)
    ]
    return JSONResponse(writer.whole(choices, add_usage([job.usage for job in jobs])))


async def _collect(service: Service, jobs: list[Job]) -> None:
    """Wait for all that the jobs say.

    Raises:
        ApiError: it takes too long, or the model failed.
    """
    try:
        async with asyncio.timeout(service.request_timeout_s):
            for job in jobs:
                assert job.subscription is not None
                while not job.subscription.is_finished:
                    output = await job.subscription.next()
                    job.samples[output.index].add(output)
                    job.prompt_logprobs += output.prompt_logprobs
    except TimeoutError:
        raise _timed_out(service) from None
    failed = [s.error for job in jobs for s in job.samples if s.error is not None]
    if failed:
        raise ApiError(500, f"the model failed: {failed[0]}", code="model_error")


async def _events(
    service: Service, jobs: list[Job], writer: Writer, note: dict[str, Any], *, wants_logprobs: bool
) -> AsyncIterator[bytes]:
    """The events of a stream; whoever stops reading ends the requests behind it."""
    try:
        async with asyncio.timeout(service.request_timeout_s):
            if writer.is_chat:
                for job in jobs:
                    for i in range(job.request.n):
                        yield event(writer.chunk([writer.opening(job.first + i)]))
            async for job, output in _merged(jobs):
                index = job.first + output.index
                job.samples[output.index].add(output)
                if output.error is not None:
                    raise ApiError(500, f"the model failed: {output.error}", code="model_error")
                if output.text or (output.logprobs and wants_logprobs):
                    yield event(
                        writer.chunk([writer.delta(index, output, logprobs=wants_logprobs)])
                    )
                if output.finish_reason is not None:
                    yield event(writer.chunk([writer.closing(index, output)]))
            if writer.has_usage_chunk:
                yield event(writer.usage_chunk(add_usage([job.usage for job in jobs])))
    except TimeoutError:
        yield event(_timed_out(service).to_json())
    except ApiError as error:
        yield event(error.to_json())
    except Ended as error:
        yield event(ApiError(503, str(error), code="shutting_down").to_json())
    finally:
        _close(jobs)
        _note_jobs(note, jobs)
    yield DONE


async def _merged(jobs: list[Job]) -> AsyncIterator[tuple[Job, Any]]:
    """Outputs of all jobs as they come."""
    if len(jobs) == 1:
        (job,) = jobs
        assert job.subscription is not None
        while not job.subscription.is_finished:
            yield job, await job.subscription.next()
        return
    waiting: dict[asyncio.Task[Any], Job] = {}

    def wait_for(job: Job) -> None:
        assert job.subscription is not None
        if not job.subscription.is_finished:
            waiting[asyncio.create_task(job.subscription.next())] = job

    try:
        for job in jobs:
            wait_for(job)
        while waiting:
            done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                job = waiting.pop(task)
                yield job, task.result()
                wait_for(job)
    finally:
        for task in waiting:
            task.cancel()


async def _unless_gone(http: HttpRequest, work: Any, jobs: list[Job]) -> None:
    """Do `work` for as long as the client is there: nobody else notices that it left."""

    async def watch() -> None:
        while (await http.receive())["type"] != "http.disconnect":
            pass

    doing, watching = asyncio.ensure_future(work), asyncio.create_task(watch())
    try:
        await asyncio.wait({doing, watching}, return_when=asyncio.FIRST_COMPLETED)
        if not doing.done():
            raise ClientDisconnect
        doing.result()
    finally:
        for task in (doing, watching):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await task
        _close(jobs)


def _close(jobs: list[Job]) -> None:
    for job in jobs:
        if job.subscription is not None:
            job.subscription.close()


def _timed_out(service: Service) -> ApiError:
    return ApiError(
        504,
        f"the answer took longer than {service.request_timeout_s:g} s and was ended; ask for fewer "
        "tokens, or raise --request-timeout",
        code="timeout",
    )


def _note_jobs(note: dict[str, Any], jobs: Sequence[Job]) -> None:
    """What the log says of an answer: counts, never text."""
    samples = [sample for job in jobs for sample in job.samples]
    usage = add_usage([job.usage for job in jobs])
    note["prompt_tokens"], note["completion_tokens"] = (
        usage["prompt_tokens"],
        usage["completion_tokens"],
    )
    note["finish"] = sorted({s.finish_reason or "gone" for s in samples})
    first = [s.usage.ttft_s for s in samples if s.usage is not None and s.usage.ttft_s is not None]
    if first:
        note["ttft_ms"] = round(1000 * min(first), 1)


def _text_of(service: Service, prompt: str | list[int]) -> str:
    if isinstance(prompt, str):
        return prompt
    text: str = service.tokenizer.decode(prompt, has_special=True)
    return text
