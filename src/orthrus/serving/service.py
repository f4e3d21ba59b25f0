"""The service between HTTP and the engine: admits requests, keeps their steps, counts them, and drains.

Everything here runs on one event loop; the model belongs to the thread of `AsyncEngine`. A task per request moves its
steps from the engine into its ticket, whether or not anyone reads them, so a slow reader delays no other. What a ticket
keeps is bounded by the most tokens of its request.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from collections.abc import Sequence as Seq
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from dataclasses import replace
from functools import partial
from math import ceil
from time import perf_counter
from typing import TYPE_CHECKING, TypeVar
from uuid import uuid4

from orthrus.decoding.async_engine import AsyncEngine
from orthrus.decoding.sequence import Request, check_but_constraint
from orthrus.serving.compilations import Compilations
from orthrus.serving.metrics import Load, Metrics
from orthrus.serving.settings import ServeSettings
from orthrus.serving.tickets import OverdueError, PassFailedError, RequestContext, Ticket

if TYPE_CHECKING:
    from orthrus.api import Model

T = TypeVar("T")
log = logging.getLogger(__name__)
BYTES_BESIDE_PROMPT = 2_000_000
"""Bytes of a body besides its prompt: a schema or a grammar has 262,144 characters at most."""
ENCODERS = 2
"""Prompts that are encoded at once."""
RECENT = 32
"""Finished requests from which the time until the next free place is estimated."""
MAX_RETRY_AFTER = 60
SECONDS_OF_A_PASS = 10.0
"""How long a shutdown waits for the pass that is running when all requests have ended."""
IDLE_SECONDS = 5.0
"""Seconds without a request after which a cost table that other programs disturbed is measured again."""
STILL_DISTURBED_SECONDS = 300.0
"""The same after a measurement that was disturbed too."""


class QueueFullError(Exception):
    """All places are taken: HTTP 429. retry_after: seconds until there is probably a place."""

    def __init__(self, retry_after: int) -> None:
        super().__init__(f"the server has as many requests as it can hold: try again in {retry_after} s")
        self.retry_after = retry_after


class DrainingError(Exception):
    """The server is shutting down and takes no new requests: HTTP 503."""

    def __init__(self) -> None:
        super().__init__("the server is shutting down and takes no new requests")


class Service:
    """Serves one model. Use it on one event loop, and end it with `drain`."""

    def __init__(self, model: Model, settings: ServeSettings) -> None:
        self.model, self.settings = model, settings
        self.engine = model.engine(**settings.engine_options)
        self.metrics = Metrics(self.model_name, self._load)
        self.draining = False
        self._served = AsyncEngine(self.engine, self._measure_costs if self._badly_planned else None, IDLE_SECONDS)
        self._compilations = Compilations(self.engine.limits, settings.max_num_seqs)
        self._encoders, self._preparing = ThreadPoolExecutor(ENCODERS, "orthrus-encoders"), 0
        self._tickets: set[Ticket] = set()
        self._logged: BaseException | None = None
        self._finished: deque[float] = deque(maxlen=RECENT)

    @property
    def model_name(self) -> str:
        """What clients call the model."""
        return self.settings.served_model_name or self.model.checkpoint.backbone.id

    @property
    def max_model_len(self) -> int:
        """The most tokens of a request, prompt and answer together."""
        longest = self.engine.limits.max_positions
        return min(longest, self.settings.max_model_len or longest)

    @property
    def longest_prompt(self) -> int:
        """The most characters of a prompt: no token has more than the longest one."""
        return self.max_model_len * self.model.longest_token

    @property
    def longest_body(self) -> int:
        """The most bytes of a body with one prompt, whose characters JSON may escape, and with all else."""
        return 6 * self.longest_prompt + BYTES_BESIDE_PROMPT

    @property
    def healthy(self) -> bool:
        """Whether the engine decodes, or would as soon as it is asked."""
        return self._served.alive

    @property
    def stuck(self) -> bool:
        """Whether a pass takes longer than passes do."""
        return self._served.pass_seconds > self.settings.pass_timeout

    @property
    def unfinished(self) -> int:
        """Requests that were admitted and have not ended."""
        return len(self._tickets)

    async def prepare(self, make: Callable[[], T]) -> T:
        """Run what encodes a prompt in one of few threads, since it takes time and memory.

        Raises QueueFullError where as many prompts wait as the server holds requests, and what `make` raises.
        """
        if self._preparing >= self.settings.max_num_seqs + self.settings.max_queue:
            self.metrics.count_rejected("queue_full")
            raise QueueFullError(self._seconds_until(1))
        self._preparing += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._encoders, make)
        finally:
            self._preparing -= 1

    def submit(self, requests: Seq[Request], context: RequestContext | None = None) -> list[Ticket]:
        """Admit all requests or none; they are decoded in this order of arrival.

        context: of the HTTP request they belong to, whose disconnection then cancels them.
        Raises DrainingError, QueueFullError, PassFailedError if the engine has died, or ValueError where a request
        cannot be decoded.
        """
        if self.draining:
            raise DrainingError
        if not self.healthy:
            raise PassFailedError
        places = self.settings.max_num_seqs + self.settings.max_queue
        if len(requests) > places:
            raise ValueError(f"{len(requests)} answers at once are more than this server can hold ({places})")
        for request in {id(request.prompt): request for request in requests}.values():
            check_but_constraint(request, self.engine.limits, self.model.decode)  # what the engine would refuse later
        missing = len(self._tickets) + len(requests) - places
        if missing > 0:
            self.metrics.count_rejected("queue_full")
            raise QueueFullError(self._seconds_until(missing))
        arrived = perf_counter() if context is None else context.arrived
        waited, default = perf_counter() - arrived, self.settings.request_timeout
        timeouts = [default if request.timeout is None else request.timeout for request in requests]
        salt = self._cache_salt("" if context is None else context.key)
        limited = [
            replace(request, timeout=max(timeout - waited, 1e-6), cache_salt=salt)
            for request, timeout in zip(requests, timeouts, strict=True)
        ]
        tickets = [Ticket(request, arrived) for request in limited]
        if context is not None:
            context.tickets.extend(tickets)
        for ticket in tickets:
            self._tickets.add(ticket)
            ticket._task = asyncio.create_task(self._follow(ticket))
            ticket._task.add_done_callback(partial(self._end, ticket))
        if context is not None and context.gone:
            context.disconnected = True
            context.cancel()
        return tickets

    def cancel_all(self) -> None:
        """End all requests before the next pass."""
        for ticket in list(self._tickets):
            ticket.cancel()

    async def drain(self, seconds: float) -> None:
        """Take no new requests, wait for those in flight, cancel what is left after `seconds`, and end the engine. A
        pass that hangs is left behind: its thread ends with the process."""
        self.draining = True
        tasks = {ticket._task for ticket in self._tickets if ticket._task is not None}
        if tasks:
            await asyncio.wait(tasks, timeout=seconds)
            self.cancel_all()
            await asyncio.wait(tasks)
        self._encoders.shutdown(wait=False)
        await self._compilations.close()
        await asyncio.to_thread(self._served.close, SECONDS_OF_A_PASS)

    def _seconds_until(self, places: int) -> int:
        """Whole seconds until so many more requests have ended, going by those that ended last; at least 1."""
        if len(self._finished) < 2:
            return 1
        rate = len(self._finished) / max(perf_counter() - self._finished[0], 1e-3)
        return min(MAX_RETRY_AFTER, max(1, ceil(places / rate)))

    def _load(self) -> Load:
        running, cache = len(self.engine.running), self.engine.cache
        waiting = max(0, self.unfinished - running)
        return Load(running, waiting, cache.pages_in_use / cache.pages, self.engine.preemptions)

    @property
    def _badly_planned(self) -> bool:
        """Whether the cycle is planned by a cost table that was measured while other programs were busy."""
        return self.model.decoding_config(self.settings.engine_options).cycle == "auto" and self.model.costs().disturbed

    def _measure_costs(self, interrupted: Callable[[], bool]) -> float | None:
        """Measure the cost table again, in the thread of the engine, unless a request comes."""
        before = self.model.costs().spread
        costs = self.model.calibration.measure_again(interrupted)
        if costs is None:
            return IDLE_SECONDS
        self.engine.use_costs(costs)
        log.info(
            "measured the cost table again, which other programs had disturbed: spread %.2f, now %.2f%s",
            before, costs.spread, "; to be repeated" if costs.disturbed else "",
        )  # fmt: skip
        return STILL_DISTURBED_SECONDS if costs.disturbed else None

    def _cache_salt(self, key: str) -> str:
        """The salt of requests that are submitted together with an API key: others may have it too, as the settings
        say."""
        return {"keys": key, "all": "", "off": uuid4().hex}[self.settings.share_prefixes]

    async def _follow(self, ticket: Ticket) -> None:
        """Move the steps of a request from the engine into its ticket until it ends. Its time runs while its constraint
        is compiled."""
        request, began = ticket.request, perf_counter()
        assert request.timeout is not None
        async with AsyncExitStack() as leaving:
            try:
                async with asyncio.timeout(request.timeout):
                    using = self._compilations.using(request.sampling.constraint)
                    compiled = await leaving.enter_async_context(using)
            except TimeoutError:
                raise OverdueError from None
            ticket._compiled.set()
            left = max(request.timeout - (perf_counter() - began), 1e-6)
            async for step in self._served.stream(replace(request, timeout=left), compiled):
                self.metrics.count_step(ticket.progress, step)
                ticket.finish_reason = step.finish_reason
                ticket._steps.put_nowait(step)

    def _end(self, ticket: Ticket, task: asyncio.Task[None]) -> None:
        """End a ticket. A callback of the task, since one that is cancelled before it starts runs none of its code."""
        error = None if task.cancelled() else task.exception()
        ticket._compiled.set()
        if isinstance(error, ValueError | OverdueError):
            ticket._refusal, ticket.finish_reason = error, "error"
        elif task.cancelled():
            ticket.finish_reason = ticket.finish_reason or "cancelled"
        elif error is not None:
            if error is not self._logged:  # it ends all requests in flight
                log.error("a pass failed", exc_info=error)
            self._logged = error
            ticket.finish_reason = "error"
        self._tickets.discard(ticket)
        self._finished.append(perf_counter())
        self.metrics.count_end(ticket.progress, ticket.finish_reason or "error")
        failure = ticket._refusal or (None if error is None else PassFailedError())
        ticket._steps.put_nowait(failure)
