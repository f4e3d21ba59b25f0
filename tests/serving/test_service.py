"""The service: admission, cancellation, failures, and draining."""

from __future__ import annotations

import asyncio
import json
import threading
from dataclasses import replace

import pytest
import tiny

import orthrus
from orthrus.config import Constraint
from orthrus.decoding.planning import calibration
from orthrus.serving import service as service_module
from orthrus.serving.compilations import Checker
from orthrus.serving.service import DrainingError, QueueFullError, Service
from orthrus.serving.settings import ServeSettings
from orthrus.serving.tickets import OverdueError, PassFailedError, RequestContext


def served(model, **settings):
    return Service(model, ServeSettings(cycle="one-pass", **settings))


def asked(model, new=20, prompt="abc", **options):
    return model.request(prompt, {"max_new_tokens": new, "seed": 1, **options})


async def tokens_of(ticket):
    return [token async for step in ticket.steps() for token in step.kept.tokens]


def run(main):
    async def bounded():
        async with asyncio.timeout(60):
            return await main()

    return asyncio.run(bounded())


def test_requests_get_the_tokens_of_the_model_whoever_reads_them_and_when(model):
    prompts = ["abc", "x" * 300, "hello there"]

    async def main():
        service = served(model, max_num_seqs=2)
        tickets = service.submit([asked(model, prompt=prompt) for prompt in prompts])
        while not all(ticket.done for ticket in tickets):  # nobody reads
            await asyncio.sleep(0.01)
        found = [await tokens_of(ticket) for ticket in tickets]
        await service.drain(0)
        return found, [ticket.progress.generated for ticket in tickets], service

    found, counted, service = run(main)
    expected = [model.generate(p, max_new_tokens=20, seed=1, cycle="ar").tokens for p in prompts]
    assert found == expected
    assert counted == [len(tokens) for tokens in expected]
    assert service.unfinished == service.engine.unfinished == service.engine.cache.pages_in_use == 0


def test_requests_beyond_the_queue_are_refused_together(model):
    async def main():
        service = served(model, max_num_seqs=2, max_queue=2)
        first = service.submit([asked(model, 400)] * 3)
        with pytest.raises(QueueFullError) as refused:
            service.submit([asked(model)] * 2)
        assert refused.value.retry_after >= 1
        assert service.unfinished == 3
        with pytest.raises(ValueError, match="5 answers at once are more than this server can hold"):
            service.submit([asked(model)] * 5)
        first[0].cancel()
        assert await tokens_of(first[0]) == []
        last = service.submit([asked(model)] * 2)
        found = await tokens_of(last[1])
        await service.drain(60)
        return found, first

    found, first = run(main)
    assert found == model.generate("abc", max_new_tokens=20, cycle="ar").tokens
    assert [ticket.finish_reason for ticket in first] == ["cancelled", "length", "length"]


def test_cancelling_ends_a_request_before_the_next_pass(model):
    async def main():
        service = served(model)
        context = RequestContext("one")
        [ticket] = service.submit([asked(model, 480)], context)
        [other] = service.submit([asked(model)])
        steps = ticket.steps()
        await anext(steps)
        context.cancel()
        async for _ in steps:
            pass
        found = await tokens_of(other)
        while service.engine.unfinished:
            await asyncio.sleep(0.01)
        pages = service.engine.cache.pages_in_use
        await service.drain(0)
        return ticket, found, pages

    ticket, found, pages = run(main)
    assert (ticket.finish_reason, pages) == ("cancelled", 0)
    assert ticket.progress.generated < 480
    assert found == model.generate("abc", max_new_tokens=20, cycle="ar").tokens


def test_a_failed_pass_fails_its_requests_and_no_later_one(model, monkeypatch):
    async def main():
        service = served(model)
        monkeypatch.setattr(service.engine, "step", lambda: 1 / 0)
        failed = service.submit([asked(model)] * 2)
        for ticket in failed:
            with pytest.raises(PassFailedError):
                await tokens_of(ticket)
        monkeypatch.undo()
        [later] = service.submit([asked(model)])
        found = await tokens_of(later)
        await service.drain(0)
        return found, service

    found, service = run(main)
    assert found == model.generate("abc", max_new_tokens=20, cycle="ar").tokens
    assert service.engine.cache.pages_in_use == 0


def test_draining_finishes_what_is_in_flight_and_refuses_new_requests(model):
    async def main():
        service = served(model)
        [ticket] = service.submit([asked(model, 60)])
        draining = asyncio.create_task(service.drain(60))
        await asyncio.sleep(0)
        with pytest.raises(DrainingError):
            service.submit([asked(model)])
        await draining
        return await tokens_of(ticket)

    assert run(main) == model.generate("abc", max_new_tokens=60, cycle="ar").tokens


def test_a_drain_that_takes_too_long_cancels(model):
    async def main():
        service = served(model, max_num_seqs=1)
        tickets = service.submit([asked(model, 480)] * 3)
        await service.drain(0)
        return [ticket.finish_reason for ticket in tickets]

    assert run(main) == ["cancelled"] * 3


@pytest.mark.parametrize("pages", [None, 1])
def test_a_prompt_beyond_the_context_or_the_cache_is_refused_at_once(model, pages, monkeypatch):
    if pages is not None:
        monkeypatch.setattr("orthrus.decoding.engine.affordable_pages", lambda *_: pages)

    async def main():
        service = served(model)
        longest = service.max_model_len
        assert longest == 512 if pages is None else 100 < longest < 256
        with pytest.raises(ValueError, match=f"the prompt has 600 tokens, the model's context {longest}"):
            service.submit([asked(model), model.request("x" * 600, {"raw": True})])
        assert service.unfinished == 0
        [ticket] = service.submit([model.request("x" * (longest - 2), {"raw": True})])
        assert len(await tokens_of(ticket)) == 2
        await service.drain(0)

    run(main)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"port": 70000}, "--port must lie in 0 .* not 70000"),
        ({"api_keys": ("",)}, "an API key must be ASCII"),
        ({"api_keys": (" a",)}, "an API key must be ASCII"),
        ({"max_num_seqs": 0}, "max_num_seqs must be at least 1, not 0"),
        ({"max_queue": -1}, "max_queue must not be negative"),
        ({"request_timeout": 0.0}, "request_timeout must be a positive number"),
        ({"drain_timeout": float("inf")}, "drain_timeout must be a positive number"),
        ({"allowed_origins": ("example.com",)}, "an origin looks like"),
        ({"allowed_origins": ("https://example.com/",)}, "an origin looks like"),
    ],
)
def test_wrong_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        ServeSettings(**settings)


@pytest.mark.parametrize(
    ("host", "local"),
    [("127.0.0.1", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("box.example", False)],
)
def test_hosts_that_only_this_machine_reaches(host, local):
    assert ServeSettings(host=host).local is local


@pytest.fixture
def disturbed(tmp_path, monkeypatch):
    """A model whose cost table was measured beside other programs. Later measurements are undisturbed; they last until
    `quiet` is set or a request comes, which adds to `interrupted`."""
    monkeypatch.setenv("ORTHRUS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(service_module, "IDLE_SECONDS", 0.01)
    loaded = orthrus.load(tiny.save_checkpoint(tmp_path / "tiny"), dtype="float32", ctx_size=512)
    loaded.quiet, loaded.started, loaded.interrupted = threading.Event(), 0, 0

    def measure(runner, interrupted=None):
        loaded.started += 1
        while interrupted is not None and not loaded.quiet.wait(0.001):
            if interrupted():
                loaded.interrupted += 1
                raise calibration.MeasuringInterrupted
        return replace(tiny.COSTS["passes"], spread=0.5 if interrupted is None else 0.01)

    monkeypatch.setattr(calibration, "measure", measure)
    assert loaded.costs().disturbed
    return loaded


def test_a_disturbed_cost_table_is_measured_again_while_there_is_no_request(disturbed, caplog):
    caplog.set_level("INFO", "orthrus")

    async def main():
        service, found = Service(disturbed, ServeSettings()), []
        planner = service.engine._drafting.planner
        for turn in range(3):
            while disturbed.started < 2 + turn:
                await asyncio.sleep(0.01)
            [ticket] = service.submit([asked(disturbed)])
            found.append(await tokens_of(ticket))
        assert planner.costs.disturbed and disturbed.interrupted == 3
        disturbed.quiet.set()
        while planner.costs.disturbed:
            await asyncio.sleep(0.01)
        [ticket] = service.submit([asked(disturbed)])
        found.append(await tokens_of(ticket))
        await service.drain(60)
        return found, planner.costs

    found, costs = run(main)
    assert found == [disturbed.generate("abc", max_new_tokens=20, cycle="ar").tokens] * 4
    assert costs == disturbed.costs()
    assert [r.message for r in caplog.records if "cost table again" in r.message] == [
        "measured the cost table again, which other programs had disturbed: spread 0.50, now 0.01"
    ]


@pytest.mark.parametrize("settings", [{"cycle": "one-pass"}, {"cycle": "ar"}])
def test_a_cost_table_that_nothing_plans_by_is_not_measured_again(disturbed, settings):
    async def main():
        service = Service(disturbed, ServeSettings(**settings))
        await asyncio.sleep(0.1)
        started = service._served._thread
        await service.drain(0)
        return started

    assert run(main) is None


def test_a_constraint_is_refused_after_it_is_admitted(model):
    async def main():
        service = served(model)
        tickets = service.submit([constrained(model, "[a"), constrained(model, "ab")])
        with pytest.raises(ValueError, match=r"(?s)regex cannot be used as a constraint: .*unclosed"):
            await tickets[0].compiled()
        with pytest.raises(ValueError, match="regex cannot be used"):
            await tokens_of(tickets[0])
        found = await tokens_of(tickets[1])
        await service.drain(0)
        return model.decode(found), [ticket.finish_reason for ticket in tickets]

    assert run(main) == ("ab", ["error", "stop"])


class Held:
    """A check of constraints that lasts until it is told to end, or is cancelled."""

    def __init__(self, service, monkeypatch):
        self.proceed, self.asked, self.cancelled = asyncio.Event(), [], []
        monkeypatch.setattr(service._compilations._checker, "check", self.check)

    async def check(self, constraint):
        self.asked.append(constraint.text)
        try:
            await self.proceed.wait()
        except asyncio.CancelledError:
            self.cancelled.append(constraint.text)
            raise


def constrained(model, text, new=20):
    return asked(model, new, regex=text)


def test_constraints_that_wait_to_be_compiled_count_in_the_queue_and_are_cancelled(model, monkeypatch):
    async def main():
        service = served(model, max_num_seqs=2, max_queue=2)
        held, context = Held(service, monkeypatch), RequestContext("one")
        leaving = [service.submit([constrained(model, f"a{n}")], context)[0] for n in range(3)]
        await asyncio.sleep(0)
        [free] = service.submit([asked(model)])
        with pytest.raises(QueueFullError):
            service.submit([asked(model)])
        found = await tokens_of(free)
        assert held.asked == ["a0", "a1"], "as many as there are places in a pass"
        context.cancel()
        assert [await tokens_of(ticket) for ticket in leaving] == [[]] * 3
        while len(held.cancelled) < 2:
            await asyncio.sleep(0.01)
        [later, same] = service.submit([constrained(model, "later")] * 2)
        held.proceed.set()
        texts = [model.decode(await tokens_of(ticket)) for ticket in (later, same)]
        await service.drain(0)
        return found, texts, held, service

    found, texts, held, service = run(main)
    assert found == model.generate("abc", max_new_tokens=20, cycle="ar").tokens
    assert texts == ["later", "later"]
    assert held.asked[2:] == ["later"], "what two requests share is compiled once"
    assert held.cancelled == ["a0", "a1"]
    assert service.unfinished == 0 and not service._compilations._jobs


def test_the_time_of_a_request_runs_while_its_constraint_waits(model, monkeypatch):
    async def main():
        service = served(model, request_timeout=0.2)
        held = Held(service, monkeypatch)
        [ticket] = service.submit([constrained(model, "late")])
        with pytest.raises(OverdueError):
            await ticket.compiled()
        await service.drain(0)
        return held

    assert run(main).cancelled == ["late"]


def test_constraints_are_compiled_in_no_thread_that_others_wait_for(model, monkeypatch):
    grammars, threads = model.limits.grammars, set()
    original = grammars._matcher

    def matcher(constraint):
        threads.add(threading.current_thread().name)
        return original(constraint)

    monkeypatch.setattr(grammars, "_matcher", matcher)

    async def main():
        service = served(model)
        Held(service, monkeypatch).proceed.set()
        found = [await tokens_of(t) for t in service.submit([constrained(model, "[ab]{9}c")])]
        await service.drain(0)
        return [model.decode(tokens) for tokens in found]

    [text] = run(main)
    assert len(text) == 10
    assert {name.rstrip("0123456789_") for name in threads} == {"orthrus-compilations"}


def test_a_check_that_takes_too_much_is_killed_and_the_next_one_works(model):
    patterns = [{"type": "string", "pattern": f"[a-z]*{chr(97 + n)}[a-z]{{{n + 5}}}[0-9]"} for n in range(20)]
    endless = Constraint("json_schema", json.dumps({"allOf": patterns}))

    async def main():
        checker = Checker(model.limits.grammars)
        left = asyncio.create_task(checker.check(endless))
        await asyncio.sleep(0.1)
        left.cancel()
        await asyncio.wait([left])
        assert left.cancelled()
        await checker.check(Constraint("regex", "yes|no"))
        for _ in range(2):  # the second time, it is known
            with pytest.raises(ValueError, match="json_schema cannot be used as a constraint: it takes more than"):
                await checker.check(endless)
        with pytest.raises(ValueError, match=r"(?s)regex cannot be used as a constraint: .*unclosed"):
            await checker.check(Constraint("regex", "["))
        process = checker._process
        await checker.close()
        return process.returncode

    assert run(main) is not None


def test_what_the_engine_would_refuse_is_refused_before_it_is_admitted(model):
    async def main():
        service = served(model)
        request = asked(model)
        for wrong in (
            replace(request, prompt=()),
            replace(request, sampling=replace(request.sampling, logit_bias=((10**6, 1.0),))),
        ):
            with pytest.raises(ValueError, match=r"empty|logit_bias"):
                service.submit([request, wrong])
        assert not service.unfinished
        await service.drain(0)

    run(main)
