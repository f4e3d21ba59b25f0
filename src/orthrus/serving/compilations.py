"""Constraints compiled for requests that have been admitted: one at a time, within limits, and beside the event loop.

A constraint is first checked in a process that is killed where it takes too much time or memory, or where the clients
that wait for it have gone. Then it is compiled in a thread. It holds its memory until the last of its requests has
ended, so only so many are compiled at once; others wait.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import sys
from collections import OrderedDict
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

from orthrus.config import Constraint
from orthrus.decoding.constraints import Compiled, Grammars
from orthrus.decoding.sequence import Limits
from orthrus.serving import constraint_process

SECONDS, MEMORY = 2, 64_000_000
"""Processor time and bytes of memory that compiling one constraint may take."""
KNOWN_PROBLEMS = 1000
"""Constraints whose check is remembered, the newest ones."""


class Compilations:
    """Compiles constraints for the requests of one event loop. End it with `close`.

    Args:
        limits: those of the model.
        most: the most constraints that are compiled for unfinished requests at once.
    """

    def __init__(self, limits: Limits, most: int) -> None:
        self._limits, self._places = limits, asyncio.Semaphore(most)
        self._jobs: dict[Constraint, _Job] = {}
        self._thread = ThreadPoolExecutor(1, "orthrus-compilations")
        self._checker: Checker | None = None
        if limits.grammars is not None:
            with suppress(ValueError):  # which the first request with a constraint gets
                limits.grammars.compiler.load("constraint")  # now, as it holds the lock of Python for up to a second
                self._checker = Checker(limits.grammars)

    @asynccontextmanager
    async def using(self, constraint: Constraint | None) -> AsyncIterator[Compiled | None]:
        """The compiled constraint of a request, for as long as the request needs it.

        Raises ValueError naming the option where it is invalid, unsupported or too complex.
        """
        if constraint is None:
            yield None
            return
        job = self._jobs.get(constraint)
        if job is None:
            job = self._jobs[constraint] = _Job(asyncio.get_running_loop().create_future())
            job.task = asyncio.create_task(self._run(constraint, job))
        job.users += 1
        try:
            yield await asyncio.shield(job.result)
        finally:
            job.users -= 1
            if not job.users:
                if self._jobs.get(constraint) is job:
                    del self._jobs[constraint]
                assert job.task is not None
                job.task.cancel()

    async def close(self) -> None:
        """End the process and the thread. No request may be left."""
        self._thread.shutdown(wait=False, cancel_futures=True)
        if self._checker is not None:
            await self._checker.close()

    async def _run(self, constraint: Constraint, job: _Job) -> None:
        """Hold a place for a constraint until it is cancelled, which happens when no request uses it any more."""
        async with self._places:
            try:
                job.result.set_result(await self._compiled(constraint))
            except Exception as error:
                job.result.set_exception(error)
                job.result.exception()  # each user gets it, and there may be none
            else:
                await asyncio.Event().wait()

    async def _compiled(self, constraint: Constraint) -> Compiled:
        kept = self._limits.grammars.kept(constraint) if self._limits.grammars is not None else None
        if kept is not None and kept.ready:
            return kept
        if self._checker is not None:
            await self._checker.check(constraint)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, self._limits.compile, constraint)


@dataclass
class _Job:
    """A constraint that is compiled, or will be, and how many requests wait for it or use it."""

    result: asyncio.Future[Compiled]
    users: int = 0
    task: asyncio.Task[None] | None = None


class Checker:
    """Finds out in another process whether constraints compile within `SECONDS` and `MEMORY`, one at a time. The
    process starts with the first of them."""

    def __init__(self, grammars: Grammars) -> None:
        self._compiler = grammars.compiler
        self._tokenizer = grammars.compiler.tokenizer_json("constraint").encode()  # now, as it holds the lock too
        self._process: asyncio.subprocess.Process | None = None
        self._free = asyncio.Lock()
        self._known: OrderedDict[bytes, str | None] = OrderedDict()

    async def check(self, constraint: Constraint) -> None:
        """Raise ValueError where a constraint cannot be used. Cancelling it ends the check."""
        digest = hashlib.sha256(json.dumps([constraint.kind, constraint.text]).encode()).digest()
        async with self._free:
            if digest not in self._known:
                self._known[digest] = await self._ask(constraint)
                if len(self._known) > KNOWN_PROBLEMS:
                    self._known.popitem(last=False)
            problem = self._known[digest]
        if problem is not None:
            raise ValueError(problem)

    async def close(self) -> None:
        """End the process."""
        process, self._process = self._process, None
        if process is not None and process.returncode is None:
            process.kill()
            await process.wait()

    async def _ask(self, constraint: Constraint) -> str | None:
        process = await self._started()
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(json.dumps([constraint.kind, constraint.text]).encode() + b"\n")
        answer = asyncio.ensure_future(process.stdout.readline())
        try:
            await asyncio.shield(answer)
        except asyncio.CancelledError:
            process.stdin.write(b"\n")
            await asyncio.wait([answer])  # soon, and before the next request may ask
            raise
        if not answer.result():
            await self.close()
            raise RuntimeError("the process that checks constraints has ended")
        problem = json.loads(answer.result())
        return None if problem is None else str(problem)

    async def _started(self) -> asyncio.subprocess.Process:
        if self._process is None:
            content, compiler = self._tokenizer, self._compiler
            command = (sys.executable, "-m", constraint_process.__name__)
            self._process = await asyncio.create_subprocess_exec(
                *command, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.DEVNULL,
            )  # fmt: skip
            assert self._process.stdin is not None
            first = [len(content), compiler.vocab_size, sorted(compiler.end_token_ids), SECONDS, MEMORY]
            self._process.stdin.write(json.dumps(first).encode() + b"\n" + content)
        return self._process
