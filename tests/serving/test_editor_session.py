"""A request per keystroke: what is known is not read again, and no answer depends on that. A request that its client
has given up takes no further pass, while what it has read stays known."""

from __future__ import annotations

import asyncio
import threading

import pytest
from small_server import serving

from orthrus.serving.app import create_app

BEFORE = "import math\n\n\ndef area(radius):\n    "
AFTER = "\n\n\nprint(area(2))\n"
TYPED = ["", "r", "re", "ret", "return m", "return math.pi", "return math.p", "return math", "return math.pi * r", "x"]
SAMPLED = {"temperature": 0.8, "seed": 3}


def common(one, other):
    """The number of equal leading tokens."""
    pairs = zip(one, other, strict=False)
    return next((n for n, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


@pytest.mark.parametrize("path", ["/v1/completions", "/api/generate", "/infill"])
def test_answers_of_a_session_equal_those_without_reuse(coder, path):
    """The text before the change stays known; the rest of it, the text after the cursor and the token for the gap are
    read again."""
    prompts = [coder.request(BEFORE + typed, {"suffix": AFTER}).prompt for typed in TYPED]

    def body(typed):
        if path == "/infill":
            given = {"input_prefix": BEFORE, "prompt": typed, "input_suffix": AFTER, "n_predict": 9}
            return {**given, **SAMPLED}
        given = {"prompt": BEFORE + typed, "suffix": AFTER}
        if path == "/api/generate":
            return {**given, "stream": False, "options": {**SAMPLED, "num_predict": 9}}
        return {**given, "max_tokens": 9, **SAMPLED}

    def text_of(answer):
        return answer["choices"][0]["text"] if "choices" in answer else answer.get("response", answer.get("content"))

    async def main():
        async with serving(coder, create_app) as (service, client):
            cached = []
            follow = service._served.stream

            def counted(*given):
                async def steps():
                    async for step in follow(*given):
                        if step.finish_reason is not None:
                            cached.append(step.sequence.statistics.cached_tokens)
                        yield step

                return steps()

            service._served.stream = counted
            answers = [(await client.post(path, json=body(typed))).json() for typed in TYPED]
        return [text_of(answer) for answer in answers], cached

    texts, cached = asyncio.run(main())
    fresh = [
        coder.generate(BEFORE + typed, suffix=AFTER, max_new_tokens=9, cycle="ar", **SAMPLED).text for typed in TYPED
    ]
    assert texts == fresh
    for now, prompt in enumerate(prompts):
        known = max((common(prompt, earlier) for earlier in prompts[:now]), default=0)
        assert cached[now] >= min(known, len(prompt) - 1), (now, cached)
        assert known >= (len(BEFORE) if now else 0)


@pytest.mark.parametrize("path", ["/v1/completions", "/api/generate", "/infill"])
def test_a_request_that_was_given_up_takes_no_further_pass_and_leaves_what_it_has_read(coder, path):
    """An editor closes the connection of the request before. It is in the midst of its prompt here, of two passes."""
    before = "".join(f"value = {n % 10}\n" for n in range(85))
    bodies = {
        "/v1/completions": {"prompt": before, "suffix": AFTER, "max_tokens": 4},
        "/api/generate": {"prompt": before, "suffix": AFTER, "options": {"num_predict": 4}},
        "/infill": {"input_prefix": before, "input_suffix": AFTER, "n_predict": 4},
    }
    prompt = coder.request(before, {"suffix": AFTER}).prompt
    assert coder.runner.max_rows < len(prompt) < 1000

    async def main():
        async with serving(coder, create_app, infill_tokens=10_000) as (service, client):
            passed, released, rows = threading.Event(), threading.Event(), []
            step = service.engine.step

            def watched():
                steps = step()
                rows.append([one.sequence.index for one in steps if one.finish_reason is None])
                if not passed.is_set():
                    passed.set()
                    released.wait(20)
                return steps

            service.engine.step = watched
            first = asyncio.create_task(client.post(path, json=bodies[path]))
            await asyncio.to_thread(passed.wait, 20)
            first.cancel()
            while service.unfinished:
                await asyncio.sleep(0.005)
            released.set()
            while service.engine.unfinished:
                await asyncio.sleep(0.005)
            passes = len(rows)
            asked = {"prompt": before + "v", "suffix": AFTER, "max_tokens": 4, "temperature": 0}
            answer = (await client.post("/v1/completions", json=asked)).json()
        return passes, answer

    passes, answer = asyncio.run(main())
    assert passes <= 2, "the pass that ran, and one that only let the request go"
    assert answer["usage"]["prompt_tokens_details"]["cached_tokens"] == coder.runner.max_rows
    assert answer["choices"][0]["text"] == coder.generate(before + "v", suffix=AFTER, max_new_tokens=4).text
