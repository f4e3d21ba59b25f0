"""The asynchronous face of the engine: one thread owns the model, any number of tasks wait for their tokens."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from threading import Condition, Thread
from time import monotonic

from orthrus.decoding.constraints import Compiled
from orthrus.decoding.cycle import Step
from orthrus.decoding.engine import Engine
from orthrus.decoding.sequence import Request

IdleTask = Callable[[Callable[[], bool]], float | None]
"""Work for the thread of the model while there is no request. It is given a function that says whether there is one,
and should then return soon. Returns the seconds without a request after which it runs again; None for never."""
log = logging.getLogger(__name__)
_Events = asyncio.Queue["Step | BaseException | None"]
"""Steps, then None, or what a pass raised. A sequence may already be further than the step that is being read."""


class AsyncEngine:
    """Runs an engine in a thread of its own, which starts with the first request and sleeps while there is none.

    Use `async with`, or call `close`.

    Args:
        engine: the engine.
        when_idle: runs in that thread, which then starts at once, after `idle_seconds` without a request.
    """

    def __init__(self, engine: Engine, when_idle: IdleTask | None = None, idle_seconds: float = 5.0) -> None:
        self._engine = engine
        self._when_idle, self._idle_seconds = when_idle, idle_seconds if when_idle else None
        self._pass_began: float | None = None
        self._changed = Condition()
        self._streams: dict[int, tuple[asyncio.AbstractEventLoop, _Events]] = {}
        self._closed = False
        self._thread: Thread | None = None
        if when_idle is not None:
            self._start()

    async def stream(self, request: Request, compiled: Compiled | None = None) -> AsyncIterator[Step]:
        """Decode a request, yielding its steps as they happen. Leaving the iteration early cancels the request. Without
        `compiled`, its constraint is compiled in another thread first.

        Raises ValueError if the request cannot be decoded, and whatever a pass raised.
        """
        events: _Events = asyncio.Queue()
        constraint = request.sampling.constraint
        if constraint is not None and compiled is None:
            compiled = await asyncio.to_thread(self._engine.limits.compile, constraint)
        with self._changed:  # which is never held during a pass
            if self._closed:
                raise RuntimeError("the engine is closed")
            index = self._engine.add(request, compiled)
            self._streams[index] = asyncio.get_running_loop(), events
            if self._thread is None:
                self._start()
            self._changed.notify()
        try:
            while (event := await events.get()) is not None:
                if isinstance(event, BaseException):
                    raise event
                yield event
        finally:
            with self._changed:
                if self._streams.pop(index, None) is not None:
                    self._engine.cancel(index)
                    self._changed.notify()

    @property
    def alive(self) -> bool:
        """Whether requests are decoded: it is not closed, and its thread has not died."""
        return not self._closed and (self._thread is None or self._thread.is_alive())

    @property
    def pass_seconds(self) -> float:
        """For how long the pass that is running has run; 0 between passes."""
        began = self._pass_began
        return 0.0 if began is None else monotonic() - began

    def close(self, seconds: float | None = None) -> None:
        """Cancel all requests and end the thread. Waits so many seconds for the pass that is running (None: to its
        end)."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join(seconds)

    async def __aenter__(self) -> AsyncEngine:
        """The engine itself."""
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close it."""
        await asyncio.to_thread(self.close)

    def _start(self) -> None:
        self._thread = Thread(target=self._run, name="orthrus-engine", daemon=True)
        self._thread.start()

    def _wanted(self) -> bool:
        """Whether the thread has something to do."""
        return self._closed or self._engine.unfinished > 0

    def _run(self) -> None:
        """The thread that owns the model."""
        while True:
            with self._changed:
                wanted = self._changed.wait_for(self._wanted, self._idle_seconds)
                if self._closed:
                    self._fail(RuntimeError("the engine was closed"))
                    return
            if not wanted:
                self._work_idly()
                continue
            try:
                steps = self._timed_step()
            except Exception as error:
                with self._changed:
                    self._fail(error)
                continue
            except BaseException as error:  # the thread ends: see `alive`
                with self._changed:
                    self._fail(RuntimeError(f"the engine has died: {error!r}"))
                raise
            with self._changed:
                for step in steps:
                    last = step.finish_reason is not None
                    self._deliver(step.sequence.index, *((step, None) if last else (step,)))

    def _timed_step(self) -> list[Step]:
        self._pass_began = monotonic()
        try:
            return self._engine.step()
        finally:
            self._pass_began = None

    def _work_idly(self) -> None:
        assert self._when_idle is not None, "without a task the thread waits for requests alone"
        try:
            self._idle_seconds = self._when_idle(self._wanted)
        except Exception:
            log.exception("the task of the idle engine failed, and is given up")
            self._idle_seconds = None

    def _fail(self, error: BaseException) -> None:
        """End all requests with an error."""
        self._engine.cancel_all()
        for index in list(self._streams):
            self._deliver(index, error)

    def _deliver(self, index: int, *events: Step | BaseException | None) -> None:
        if not isinstance(events[-1], Step):
            loop, queue = self._streams.pop(index, (None, None))
        else:
            loop, queue = self._streams.get(index, (None, None))
        if loop is not None and queue is not None and not loop.is_closed():
            for event in events:
                loop.call_soon_threadsafe(queue.put_nowait, event)
