"""The one thread that owns the engine, and the bridge from it to the server's event loop.

Handlers live in the event loop; the engine's `add`, `abort` and `step` belong to one thread. What
handlers want done goes through an inbox; what the engine says comes back a step at a time through
`call_soon_threadsafe`. PyTorch's kernels let other threads run, so that the loop stays responsive.
"""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

from worthit.decode.engine import Engine, Output, Request
from worthit.errors import WorthitError

T = TypeVar("T")
# Outputs that may wait for a client that does not read; then its request is ended.
MAX_UNREAD = 1024
# A step that takes longer than this is not slow but stuck.
STUCK_S = 120.0
IDLE_S = 0.5


class Ended(WorthitError):
    """The engine is gone, or going: nothing more is served."""


class Subscription:
    """What the engine says about one request, in the event loop's own time."""

    def __init__(self, driver: Driver, request_id: str, n_samples: int) -> None:
        self.id = request_id
        self.is_finished = False
        self._driver, self._n_open = driver, n_samples
        self._loop = asyncio.get_running_loop()
        self._outputs: asyncio.Queue[Output | WorthitError] = asyncio.Queue()

    async def next(self) -> Output:
        """The next output; `is_finished` tells afterwards whether it was the last.

        Raises:
            Ended: the engine stopped before the request was done.
        """
        said = await self._outputs.get()
        if isinstance(said, WorthitError):
            self.is_finished = True
            raise said
        if said.finish_reason is not None:
            self._n_open -= 1
            self.is_finished = self._n_open == 0
        return said

    def close(self) -> None:
        """Nobody reads on: what is left of the request is ended and its blocks are free."""
        if not self.is_finished:
            self.is_finished = True
            self._driver.abort(self.id)

    def put(self, said: Output | WorthitError) -> None:
        """Hand something over; from any thread."""
        try:
            self._loop.call_soon_threadsafe(self._put, said)
        except RuntimeError:
            # The event loop is closed: nobody is there to read it.
            self.is_finished = True

    def _put(self, said: Output | WorthitError) -> None:
        if self._outputs.qsize() >= MAX_UNREAD:
            self.close()
            return
        self._outputs.put_nowait(said)


class Driver:
    """Runs an engine in a thread of its own."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.failure: BaseException | None = None
        self._inbox: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        # Of the engine's thread: who listens to a request, and how many of its samples go on.
        self._subscribers: dict[str, Subscription] = {}
        self._n_open: dict[str, int] = {}
        self._busy_since: float | None = None
        self._is_closing = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        """Begin; once."""
        self._thread.start()

    def stop(self, timeout_s: float = 10.0) -> None:
        """End every request and the thread."""
        self._is_closing = True
        self._inbox.put(None)
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    @property
    def problem(self) -> str | None:
        """Why nothing can be served, if so."""
        if self.failure is not None:
            return f"the engine stopped: {type(self.failure).__name__}"
        if not self._thread.is_alive():
            return "the engine is not running"
        since = self._busy_since
        if since is not None and time.monotonic() - since > STUCK_S:
            return f"the engine has been in one step for more than {STUCK_S:.0f} s"
        return None

    async def submit(self, request: Request) -> Subscription:
        """Queue a request whose `id` is set.

        Raises:
            WorthitError: the engine refuses it, or is gone.
        """
        assert request.id is not None
        subscription = Subscription(self, request.id, request.n)

        def add() -> None:
            self.engine.add(request)
            self._subscribers[subscription.id] = subscription
            self._n_open[subscription.id] = request.n

        try:
            await self.call(add)
        except asyncio.CancelledError:
            # The client left while the request was on its way in.
            subscription.close()
            raise
        return subscription

    def abort(self, request_id: str) -> None:
        """End a request; from any thread, and harmless where there is none."""

        def end() -> None:
            self._subscribers.pop(request_id, None)
            self._n_open.pop(request_id, None)
            self.engine.abort(request_id)

        self._inbox.put(end)

    async def call(self, function: Callable[[], T]) -> T:
        """Run `function` in the engine's thread, between two steps."""
        if self._is_closing or self.problem is not None:
            raise Ended(self.problem or "the server is shutting down")
        future: Future[T] = Future()

        def run() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(function())
            except BaseException as error:
                future.set_exception(error)

        self._inbox.put(run)
        return await asyncio.wrap_future(future)

    # In the engine's thread.

    def _run(self) -> None:
        try:
            while self._take_orders():
                if not self.engine.has_work:
                    continue
                self._busy_since = time.monotonic()
                outputs = self.engine.step()
                self._busy_since = None
                self._deliver(outputs)
        except BaseException as error:
            self.failure = error
        finally:
            self._busy_since = None
            for subscription in self._subscribers.values():
                subscription.put(Ended(self.problem or "the server is shutting down"))
            self._subscribers.clear()

    def _take_orders(self) -> bool:
        """Do what the inbox holds; wait for something where there is nothing else to do."""
        must_wait = not self.engine.has_work
        while True:
            try:
                order = self._inbox.get(timeout=IDLE_S) if must_wait else self._inbox.get_nowait()
            except queue.Empty:
                return True
            if order is None:
                return False
            order()
            must_wait = False

    def _deliver(self, outputs: list[Output]) -> None:
        for output in outputs:
            subscription = self._subscribers.get(output.id)
            if subscription is None:
                continue
            subscription.put(output)
            if output.finish_reason is not None:
                self._n_open[output.id] -= 1
                if self._n_open[output.id] == 0:
                    del self._subscribers[output.id], self._n_open[output.id]
