"""Law 10 through HTTP: mixed requests that run at once, each of which must equal the oracle run alone.

    python tests/fuzz/served.py --count 500 --model smollm2-demo

Greedy and sampled answers, plain ones beside drafted ones, several choices, tools, schemas, regular expressions, stop
strings, penalties, shared prefixes, streams and whole answers; clients that leave at random; sequences that are
preempted at random passes. Seed and model determine the requests. At the end no page may be in use.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

sys.path.insert(0, str(Path(__file__).parents[1]))

import tiny

import orthrus
from orthrus.decoding.reference import autoregress
from orthrus.serving.app import create_app
from orthrus.serving.http import Server, bind
from orthrus.serving.service import Service
from orthrus.serving.settings import ServeSettings
from orthrus.tool_calls import parse_tool_calls

WORDS = "write a short poem about the sea in spring, then list three colours and count to ten. why is the sky blue?"
SYSTEM = "You are a careful assistant. " * 12
"""Shared by some prompts: longer than a page of the tiny tokenizer, which reads bytes."""
SCHEMA = {
    "type": "object", "additionalProperties": False, "required": ["name", "age"],
    "properties": {"name": {"type": "string", "maxLength": 8}, "age": {"type": "integer", "minimum": 0, "maximum": 99}},
}  # fmt: skip
TOOL = {"type": "function", "function": {"name": "add_person", "description": "Add one.", "parameters": SCHEMA}}
KINDS = ("greedy", "sampled", "plain", "choices", "stop", "penalties", "schema", "regex", "tools", "text", "leaves")


@dataclass
class Case:
    """A body for a path, the same request in options of Python, and what the server answered: a text per choice."""

    kind: str
    path: str
    body: dict[str, Any]
    prompt: Any
    options: dict[str, Any]
    choices: int = 1
    leaves_after: int | None = None
    texts: list[str] = field(default_factory=list)
    reasons: list[str | None] = field(default_factory=list)
    calls: list[list[tuple[str, str]]] = field(default_factory=list)
    left: bool = False


def make_case(rng: random.Random, kind: str) -> Case:
    """A random request of a kind."""
    new = rng.choice([1, 8, 24, 40])
    words = WORDS.split()
    question = " ".join(rng.choice(words) for _ in range(rng.randint(1, 12)))
    messages = [{"role": "user", "content": question}]
    if rng.random() < 0.4:
        messages.insert(0, {"role": "system", "content": SYSTEM})
    seed = rng.randrange(100)
    sampled = kind in ("sampled", "choices") or rng.random() < 0.4
    options: dict[str, Any] = {"max_new_tokens": new, "temperature": 0.9 if sampled else 0.0, "seed": seed}
    body: dict[str, Any] = {
        "messages": messages, "max_tokens": new, "temperature": 0.9 if sampled else 0, "seed": seed,
        "stream": rng.random() < 0.5, "priority": rng.choice([0, 0, 1]), "top_p": 1,
        "repetition_penalty": 1.0, "top_k": 0, "min_p": 0.0,
    }  # fmt: skip
    case = Case(kind, "/v1/chat/completions", body, messages, options)
    more: dict[str, Any] = {}
    if kind == "plain":
        body["drafts"] = False
    elif kind == "choices":
        body["n"] = case.choices = rng.choice([2, 3])
    elif kind == "stop":
        more["stop"] = [rng.choice(["e", "th", ".", "\n", "qq"])]
    elif kind == "penalties":
        more.update(presence_penalty=0.5, frequency_penalty=0.25, logit_bias={rng.randrange(256): 4.0})
    elif kind == "schema":
        options["json_schema"], new = SCHEMA, 60
        body["response_format"] = {"type": "json_schema", "json_schema": {"name": "person", "schema": SCHEMA}}
    elif kind == "regex":
        options["regex"] = "(red|green|blue)(, (red|green|blue)){2}"
        body["response_format"] = {"type": "regex", "regex": options["regex"]}
    elif kind == "tools":
        options.update(tools=[TOOL], tool_choice="required")
        body.update(tools=[TOOL], tool_choice="required")
        new = 90
    elif kind == "text":
        case.path, case.prompt = "/v1/completions", question
        options["raw"] = True
        del body["messages"]
        body["prompt"] = question
    elif kind == "leaves":
        body["stream"], case.leaves_after, new = True, rng.randint(1, 6), 60
    options.update(more, max_new_tokens=new)
    body.update(more, max_tokens=new)
    if "logit_bias" in body:
        body["logit_bias"] = {str(token): bias for token, bias in body["logit_bias"].items()}
    return case


async def ask(client: httpx.AsyncClient, case: Case) -> None:
    """Send a case and keep the answer."""
    case.texts, case.reasons = [""] * case.choices, [None] * case.choices
    case.calls = [[] for _ in range(case.choices)]
    if not case.body["stream"]:
        answer = await client.post(case.path, json=case.body)
        assert answer.status_code == 200, answer.text
        for choice in answer.json()["choices"]:
            message, index = choice.get("message", {}), choice["index"]
            case.texts[index] = choice.get("text") or message.get("content") or ""
            case.reasons[index] = choice["finish_reason"]
            functions = [call["function"] for call in message.get("tool_calls") or ()]
            case.calls[index] = [(function["name"], function["arguments"]) for function in functions]
        return
    async with client.stream("POST", case.path, json=case.body) as answer:
        assert answer.status_code == 200, await answer.aread()
        chunks = 0
        async for line in answer.aiter_lines():
            if not line.startswith("data: ") or line == "data: [DONE]":
                continue
            for choice in json.loads(line[6:])["choices"]:
                _read_delta(case, choice)
            chunks += 1
            if case.leaves_after is not None and chunks > case.leaves_after:
                case.left = True
                return


def _read_delta(case: Case, choice: dict[str, Any]) -> None:
    index, delta = choice["index"], choice.get("delta", {})
    case.texts[index] += choice.get("text") or delta.get("content") or ""
    case.reasons[index] = choice["finish_reason"] or case.reasons[index]
    for call in delta.get("tool_calls") or ():
        while len(case.calls[index]) <= call["index"]:
            case.calls[index].append(("", ""))
        name, arguments = case.calls[index][call["index"]]
        function = call["function"]
        case.calls[index][call["index"]] = (name + (function.get("name") or ""), arguments + function["arguments"])


def problem_with(model: orthrus.Model, case: Case) -> str | None:
    """How an answer differs from the oracle run alone, or None."""
    for index in range(case.choices):
        request = model.request(case.prompt, {**case.options, "sample_index": index})
        truth = autoregress(model.runner, request, model.limits, case.options["seed"], model.decode)
        ends = model.limits.end_token_ids
        text = model.decode([token for token in truth.tokens if token not in ends])
        cuts = [text.index(stop) for stop in request.stop.stop_strings if stop in text]
        text = text[: min(cuts)] if cuts else text
        content, calls = parse_tool_calls(text) if case.kind == "tools" else (text, [])
        expected = content or "", truth.finish_reason, [(call.name, call.arguments) for call in calls]
        if expected[2] and expected[1] == "stop":
            expected = expected[0], "tool_calls", expected[2]
        found = case.texts[index], case.reasons[index], case.calls[index]
        if case.left:
            if not text.startswith(case.texts[index]):
                return f"choice {index}: {case.texts[index]!r} does not begin {text!r}"
        elif found != expected:
            return f"choice {index}: {found} instead of {expected}"
    return None


async def preempt_at_random(service: Service, rng: random.Random) -> None:
    """Take a random sequence's pages now and then, as if there were none left."""
    engine = service.engine
    while True:
        await asyncio.sleep(rng.uniform(0.0, 0.05))
        if engine._lock.acquire(blocking=False):
            with contextlib.ExitStack() as held:
                held.callback(engine._lock.release)
                running = [sequence for sequence in engine.running if sequence.finish_reason is None]
                if running:
                    engine._preempt(rng.choice(running))


async def serve_all(model: orthrus.Model, cases: list[Case], rng: random.Random, at_once: int) -> None:
    """Send all cases to a server of its own, `at_once` at a time. Raises AssertionError if a page is left behind."""
    settings = ServeSettings(port=0, max_num_seqs=6, max_queue=4 * at_once, drain_timeout=5)
    service = Service(model, settings)
    bound = bind(settings)
    server = Server(create_app(service), service)
    serving = asyncio.create_task(server.serve([bound]))
    while not server.started:
        await asyncio.sleep(0.005)
    chaos = asyncio.create_task(preempt_at_random(service, rng))
    places = asyncio.Semaphore(at_once)
    url = "http://{}:{}".format(*bound.getsockname())
    async with httpx.AsyncClient(base_url=url, timeout=300, limits=httpx.Limits(max_connections=at_once)) as client:

        async def one(case: Case) -> None:
            async with places:
                await ask(client, case)

        await asyncio.gather(*(one(case) for case in cases))
    chaos.cancel()
    server.drain()
    await serving
    assert service.engine.cache.pages_in_use == 0, "pages are still in use"


def run(model: orthrus.Model, count: int, seed: int = 0, at_once: int = 12) -> tuple[list[str], Counter[str]]:
    """Returns the problems, and how many requests there were of each kind."""
    rng = random.Random(seed)
    kinds = KINDS if "tools" in (model.checkpoint.text.chat_template or "") else tuple(k for k in KINDS if k != "tools")
    cases = [make_case(rng, kinds[n % len(kinds)]) for n in range(count)]
    rng.shuffle(cases)
    asyncio.run(serve_all(model, cases, rng, at_once))
    found = [(case, problem_with(model, case)) for case in cases]
    problems = [f"{case.kind} {json.dumps(case.body)}: {problem}" for case, problem in found if problem]
    return problems, Counter("left" if case.left else case.kind for case in cases)


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--at-once", type=int, default=12)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--model", default=None, help="a checkpoint; a tiny random model by default")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        name = given.model or tiny.save_checkpoint(Path(folder) / "tiny", template=tiny.TOOL_CHAT)
        model = orthrus.load(name, dtype=given.dtype)
        problems, counts = run(model, given.count, given.seed, given.at_once)
    print(*problems, sep="\n")
    print(f"{given.count} requests, {len(problems)} differ from the oracle: {dict(sorted(counts.items()))}")
    sys.exit(bool(problems))


if __name__ == "__main__":
    main()
