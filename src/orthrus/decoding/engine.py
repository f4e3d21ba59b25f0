"""The engine: requests join and leave at any pass.

A step admits waiting requests, gives every sequence the pages it needs, runs one pass in which some sequences decode
while others are prefilled, and lets finished sequences go. Where pages run out, the sequence that came last is
preempted: it gives up its pages and waits, and its keys and values are computed again later. A sequence's tokens depend
on none of this.

`add` and `cancel` may be called from any thread and never wait for a pass. One thread at a time runs `step`: a lock
makes others wait. A pass compiles no constraint. A sequence whose constraint has used up its spare matcher is left out
of passes until the next one is compiled.
"""

from __future__ import annotations

from bisect import insort
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import partial
from itertools import chain, count
from threading import Lock

from orthrus.cache import BlockTable, OutOfPagesError, pages_for
from orthrus.config import PAGE, DecodingConfig
from orthrus.decoding import cycle, cycles, rules
from orthrus.decoding.batch_size import pages_of
from orthrus.decoding.constraints import Compiled
from orthrus.decoding.cycle import Job, Step
from orthrus.decoding.drafting import drafting_of, learn, with_costs, workspace_positions
from orthrus.decoding.planning.cost_model import CostModel
from orthrus.decoding.sequence import Limits, Request, Sequence
from orthrus.decoding.text import Decode
from orthrus.decoding.verdict import Verdict
from orthrus.runner.memory import affordable_pages
from orthrus.runner.runner import Runner

MIN_CHUNK = 32
"""Rows of prompts in every pass while a prompt waits, even if the decoding sequences use up the row budget."""
SECONDS_UNTIL_READY = 0.01
"""How long a step waits for a spare matcher where no sequence can run without one."""


class Engine:
    """Decodes requests on one runner.

    Args:
        runner: the model.
        config: how to decode; `batch_size` is the most sequences in a pass, `row_budget` the most rows while prompts
            are prefilled beside decoding sequences.
        limits: the limits of the model.
        decode: makes text of tokens, for stop strings.
        costs: the cost model of the cycle `auto`; measured here if None.
        pages: the size of the cache; by default, room for `batch_size` sequences of the whole context, or for as many
            as memory allows.

    Raises ValueError if the configuration does not fit the model, or if the cache of one sequence does not fit into
    memory.
    """

    def __init__(
        self,
        runner: Runner,
        config: DecodingConfig,
        limits: Limits,
        *,
        decode: Decode | None = None,
        costs: CostModel | None = None,
        pages: int | None = None,
    ) -> None:
        self._runner, self._config, self._decode = runner, config, decode
        self._cycle, self._rule = cycles.load(config.cycle), rules.load(config.rule)
        self._drafting = drafting_of(runner, config, costs)
        self._workspace = workspace_positions(runner, config)
        alone = pages_for(limits.max_positions + self._workspace)
        pages = pages or affordable_pages(runner.page_bytes, runner.device, config.batch_size * alone, alone)
        self._limits = replace(limits, max_positions=min(limits.max_positions, pages * PAGE - self._workspace))
        self.cache = runner.new_cache(pages)
        self.preemptions = 0
        self._ids = count()
        self._added: deque[Sequence] = deque()
        self._cancelled: deque[int] = deque()
        self._waiting: list[Sequence] = []
        self._running: list[Sequence] = []
        self._lock = Lock()

    def add(self, request: Request, compiled: Compiled | None = None) -> int:
        """Queue a request. Returns its id, which its steps carry as `sequence.index`. Without `compiled`, this compiles
        its constraint. Raises ValueError if it cannot be decoded."""
        sequence = Sequence(next(self._ids), request, self._limits, self._decode, compiled)
        sequence.statistics.batch_size = self._config.batch_size
        self._added.append(sequence)
        return sequence.index

    def cancel(self, index: int) -> None:
        """End a request before the next pass. One that is unknown or finished is ignored."""
        self._cancelled.append(index)

    @property
    def limits(self) -> Limits:
        """The limits of every request: those of the model, and no more positions than the cache holds."""
        return self._limits

    @property
    def unfinished(self) -> int:
        """How many requests are waiting or being decoded."""
        return len(self._added) + len(self._waiting) + len(self._running)

    def follow(self, index: int) -> Iterator[Step]:
        """Run passes, yielding the steps of one request until it ends. Closing the iterator early cancels it.

        For one thread: the steps of other requests are dropped. `AsyncEngine` serves many.
        """
        try:
            while self.unfinished:
                for step in self.step():
                    if step.sequence.index == index:
                        yield step
                        if step.finish_reason is not None:
                            return
        finally:
            self.cancel(index)

    def cancel_all(self) -> None:
        """End all requests at once."""
        with self._lock:
            self._cancelled.extend(s.index for s in (*self._running, *self._waiting, *self._added))
            self._leave()

    def use_costs(self, costs: CostModel) -> None:
        """Plan by another cost model from the next pass on. Cycles that plan nothing ignore it."""
        with self._lock:
            self._drafting = with_costs(self._drafting, self._config, costs)

    @property
    def running(self) -> list[Sequence]:
        """The sequences that hold pages, in the order in which they run."""
        return list(self._running)

    def step(self) -> list[Step]:
        """Run one pass. Returns what each sequence gained in it, and a step for those that ended before or after it
        because they were cancelled or their time was up."""
        with self._lock, self._runner.between_passes():
            ended = self._leave()
            self._join()
            self._make_room()
            ready = [sequence for sequence in self._running if sequence.ready]
            batch = [sequence for sequence in ready if sequence.decodes]
            decoding = cycle.decoding_jobs(self._cycle, self._runner, batch, self._drafting, self._rule)
            passes = self._passes(decoding, [sequence for sequence in ready if not sequence.decodes])
            runs = (cycle.run(self._runner, jobs, self._rule, self._drafting.nodes) for jobs in passes)
            steps = [*chain.from_iterable(runs)]
            if self._running and not ready:
                self._running[0].wait(SECONDS_UNTIL_READY)
            self._share_prompts(steps)
            learn(self._drafting, decoding, steps)
            return ended + steps + self._leave()

    def _leave(self) -> list[Step]:
        """Let sequences go that are finished, cancelled or overdue, and all that is kept for them. Returns the steps of
        those that had not finished by themselves."""
        cancelled = {self._cancelled.popleft() for _ in range(len(self._cancelled))}  # before those that it may name
        while self._added:
            insort(self._waiting, self._added.popleft(), key=lambda sequence: sequence.order)
        ended = []
        for sequence in (*self._running, *self._waiting):
            if sequence.finish_reason is None and (sequence.index in cancelled or sequence.overdue):
                sequence.finish("cancelled" if sequence.index in cancelled else "timeout")
                ended.append(sequence)
        for sequence in [s for s in (*self._running, *ended) if s.finish_reason is not None]:
            if sequence in self._running:
                self._running.remove(sequence)
                self._give_up_pages(sequence)
            elif sequence in self._waiting:
                self._waiting.remove(sequence)
            if self._drafting.planner is not None:
                self._drafting.planner.forget(sequence)
        return [Step.of(sequence, Verdict([])) for sequence in ended]

    def _join(self) -> None:
        """Admit waiting sequences in their order, while there are places and pages. A known prefix is shared."""
        while self._waiting and len(self._running) < self._config.batch_size:
            sequence = self._waiting[0]
            if sequence.finish_reason is not None:
                del self._waiting[0]
                continue
            table = self._table_for(sequence)
            if table is None:
                break
            if not sequence.begun:
                sequence.statistics.cached_tokens = table.length
            sequence.begin(table)
            insort(self._running, self._waiting.pop(0), key=lambda running: running.order)

    def _table_for(self, sequence: Sequence) -> BlockTable | None:
        """The table of a sequence that joins, which shares a known prefix of its tokens; None if pages are missing.

        A page that is shared in part must be copied. Where there is no page for the copy, whole pages alone are shared.
        """
        table, positions = BlockTable(self.cache), sequence.length + self._workspace
        shares = self._runner.exact and not sequence.scores_prompt
        tokens = sequence.committed[:-1] if shares else []
        pages, length = self.cache.known_prefix(tokens, sequence.request.cache_salt)
        for shared in (length, length // PAGE * PAGE):
            table.adopt(pages[: pages_for(shared)], shared)
            if table.pages_missing(positions) <= self.cache.available_pages:
                table.reserve(positions)
                return table
            table.free()
        return None

    def _make_room(self) -> None:
        """Give every running sequence the pages that its next pass may need; those that came last yield theirs."""
        for sequence in list(self._running):
            while sequence in self._running:
                try:
                    sequence.table.reserve(sequence.length + self._workspace)
                    break
                except OutOfPagesError:
                    self._preempt(self._running[-1])

    def _preempt(self, sequence: Sequence) -> None:
        """Let a sequence wait, before those that came later. All that it needs stays with it, except its pages."""
        self.preemptions += 1
        self._running.remove(sequence)
        self._give_up_pages(sequence)
        insort(self._waiting, sequence, key=lambda waiting: waiting.order)

    def _share_prompts(self, steps: list[Step]) -> None:
        """Let later prompts share the whole pages of those that have just been prefilled."""
        for step in steps:
            sequence, request = step.sequence, step.sequence.request
            if self._runner.exact and len(sequence.tokens) == len(step.kept.tokens):
                whole = len(request.prompt) // PAGE
                tokens, pages = request.prompt[: whole * PAGE], sequence.table.pages[:whole]
                self.cache.keep_prefix(tokens, pages, request.cache_salt)

    def _give_up_pages(self, sequence: Sequence) -> None:
        table = sequence.table
        if self._runner.exact:
            self.cache.keep_prefix(sequence.committed[: table.length], table.pages, sequence.request.cache_salt)
        table.free()
        sequence.block_table = None

    def _passes(self, decoding: list[Job], prefilling: list[Sequence]) -> Iterator[list[Job]]:
        """The passes of a step: one, within the row budget. Prompts are prefilled in the order in which they came.

        For attention kernels that take a mask, every prompt has a pass of its own: a rectangle of queries that is as
        high as a chunk would be mostly padding.
        """
        if not prefilling:
            yield from [decoding] if decoding else []
            return
        width = cycle.block_width(decoding)
        used = sum(len(job.rows) + job.plan.blocks * width for job in decoding)
        room = max(self._config.row_budget - used, MIN_CHUNK) if decoding else self._runner.max_rows
        prompts = []
        for sequence in prefilling:
            if room:
                ahead = partial(self._first_width, sequence)
                prompts.append(cycle.prefill_job(sequence, min(room, self._runner.max_rows), ahead))
                room -= len(prompts[-1].rows)
        together = [decoding + prompts] if self._runner.ragged else [decoding, *([job] for job in prompts)]
        yield from (jobs for jobs in together if jobs)

    def _first_width(self, sequence: Sequence) -> int:
        if not (sequence.request.drafts and self._cycle.DRAFTS_AHEAD):
            return 0
        planner = self._drafting.planner
        return planner.first_width(sequence.length, len(self._running)) if planner else self._drafting.width


def generate(
    runner: Runner,
    requests: Iterable[Request],
    config: DecodingConfig,
    limits: Limits,
    decode: Decode | None = None,
    costs: CostModel | None = None,
) -> Iterator[Step]:
    """Decode requests, at most `config.batch_size` at a time; yields a step per sequence and pass as they happen.

    The cache has the size that these requests need. To stop early, close the iterator or call `finish("cancelled")` on
    a sequence. Raises ValueError before any work if a request or the configuration cannot be decoded.
    """
    requests = list(requests)
    config = replace(config, batch_size=max(1, min(config.batch_size, len(requests))))
    pages = _pages_needed(runner, requests, config, limits)
    engine = Engine(runner, config, limits, decode=decode, costs=costs, pages=pages)
    for request in requests:
        engine.add(request)
    while engine.unfinished:
        yield from engine.step()


def _pages_needed(runner: Runner, requests: list[Request], config: DecodingConfig, limits: Limits) -> int:
    """The pages with which no sequence is ever preempted, or as many as memory allows."""
    needed = pages_of(runner, requests, config, limits)
    together = sum(needed[-config.batch_size :])
    return affordable_pages(runner.page_bytes, runner.device, together, needed[-1]) if needed else 1
