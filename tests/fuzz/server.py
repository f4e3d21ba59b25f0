"""Fuzz the server: malformed bodies, malformed HTTP, and clients that leave, over real connections to a tiny model.

    python tests/fuzz/server.py --count 1000 --seed 0

Seed and index determine a case: `--start INDEX --count 1` repeats it. A case fails if the answer has a status of 500 or
more, if an error is not in OpenAI's shape, or if the connection hangs. At the end nothing may be left: no request, no
page, no error in the log; and a plain request must give the tokens that it gave before.
"""

from __future__ import annotations

import argparse
import asyncio
import copy
import json
import logging
import random
import sys
import tempfile
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import tiny

import orthrus
from orthrus.serving.app import create_app
from orthrus.serving.http import Server, bind
from orthrus.serving.service import Service
from orthrus.serving.settings import ServeSettings

MESSAGES = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hello"}]
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
CHAT = {
    "model": "tiny", "messages": MESSAGES, "max_tokens": 4, "temperature": 0.5, "seed": 1, "stream": True, "n": 2,
    "stop": ["x"], "stream_options": {"include_usage": True}, "logit_bias": {"5": 1.0}, "top_p": 0.9, "user": "me",
    "presence_penalty": 0.1, "max_completion_tokens": 4,
}  # fmt: skip
TEXT = {"model": "tiny", "prompt": "abc", "max_tokens": 4, "temperature": 0, "echo": True, "best_of": 1}
VALID = [
    ("/v1/chat/completions", CHAT),
    ("/v1/chat/completions", {"messages": MESSAGES, "max_tokens": 4}),
    ("/v1/chat/completions", {**CHAT, "tools": [TOOL], "tool_choice": "auto", "logprobs": True, "top_logprobs": 2}),
    ("/v1/completions", TEXT),
    ("/v1/completions", {**TEXT, "logprobs": 2, "prompt": ["abc", "d"]}),
    ("/v1/responses", {"model": "tiny", "input": "abc", "max_output_tokens": 4, "instructions": "be brief"}),
    ("/tokenize", {"model": "tiny", "prompt": "abc"}),
    ("/detokenize", {"model": "tiny", "tokens": [97, 98]}),
]
STRANGE = [
    None, True, False, 0, -1, 1, 2**31, 2**64, -(2**70), 10**400, 0.5, 1e308, float("nan"), float("inf"), "", "a", "\0",
    "\ud800", "x" * 3000, "\U0001f600" * 50, "null", "1", [], [[]], [None], ["a", 1], [1.5], {}, {"": ""},
    {"a": {"b": []}}, [MESSAGES], [10**9], [-1], {"type": "function"}, {"role": "user"}, "assistant", "<|end|>", "auto",
]  # fmt: skip
JSON = "Content-Type: application/json"
DEADLINE = 30
"""Seconds after which a connection counts as hanging."""


def places(value, path=()):
    """The paths of all values in a body."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, own in items:
        yield from places(own, (*path, key))


def mutate(rng, body):
    """A body with one to three values replaced, removed, added or nested deeply."""
    body = copy.deepcopy(body)
    for _ in range(rng.randint(1, 3)):
        path = rng.choice([path for path in places(body) if path] or [()])
        if not path:
            return rng.choice(STRANGE)
        parent = body
        for key in path[:-1]:
            parent = parent[key]
        action = rng.choice(["replace", "replace", "replace", "remove", "add", "nest"])
        if action == "replace":
            parent[path[-1]] = copy.deepcopy(rng.choice(STRANGE))
        elif action == "remove":
            del parent[path[-1]]
        elif action == "nest":
            for _ in range(rng.choice([3, 200])):
                parent[path[-1]] = [parent[path[-1]]]
        elif isinstance(parent, dict):
            parent[rng.choice(["unknown", "", "functions", "guided_json", "\u0000"])] = copy.deepcopy(
                rng.choice(STRANGE)
            )
    return body


def garble(rng, data):
    """Bytes with some of them changed, cut off, repeated or added."""
    data = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at, action = rng.randrange(len(data) + 1), rng.choice(["change", "cut", "insert", "repeat"])
        if action == "change" and at < len(data):
            data[at] = rng.randrange(256)
        elif action == "cut":
            del data[at:]
        elif action == "insert":
            data[at:at] = bytes(rng.randrange(256) for _ in range(rng.randint(1, 20)))
        else:
            data += data[at : at + 50]
    return bytes(data)


def head_of(path, length):
    lines = (f"POST {path} HTTP/1.1", "Host: localhost", f"Content-Length: {length}", JSON, "Connection: close", "", "")
    return "\r\n".join(lines).encode()


def case(seed, index):
    """Kind, what is sent, and how many bytes of the answer are read before the client leaves (None: all)."""
    rng = random.Random(f"{seed} {index}")
    path, body = rng.choice(VALID)
    valid = json.dumps(body).encode()
    kind = rng.choice(["body", "body", "body", "bytes", "head", "length", "chunks", "leave"])
    if kind == "body":
        mutated = json.dumps(mutate(rng, body), ensure_ascii=rng.random() < 0.5).encode(errors="surrogatepass")
        return kind, head_of(path, len(mutated)) + mutated, None
    if kind == "bytes":
        garbled = garble(rng, valid)
        return kind, head_of(path, len(garbled)) + garbled, None
    if kind == "head":
        return kind, garble(rng, head_of(path, len(valid))) + valid, None
    if kind == "length":
        length = rng.choice(["-1", "abc", "", "0", str(len(valid) - 5), "99999999999999999999", "1e3"])
        return kind, head_of(path, length) + valid, None
    if kind == "chunks":
        chunk = rng.choice(
            [b'5\r\n{"a":\r\n0\r\n\r\n', b"zz\r\n", b"-1\r\n", b"5\r\n{}", b"0\r\n\r\n", b"ffffffffff\r\n{"]
        )
        head = head_of(path, 0).replace(b"Content-Length: 0", b"Transfer-Encoding: chunked")
        return kind, head + chunk, None
    sent = head_of(path, len(valid)) + valid
    return kind, sent[: rng.choice([len(sent), rng.randrange(len(sent))])], rng.choice([0, 1, 200])


async def exchange(address, sent, read):
    """The answer to what is sent; the writing half stays open, unless the client leaves."""
    reader, writer = await asyncio.open_connection(*address)
    try:
        writer.write(sent)
        return await (reader.read() if read is None else reader.read(read) if read else asyncio.sleep(0, b""))
    except ConnectionError:
        return b""
    finally:
        writer.transport.abort()


def wrong(answer):
    """What is wrong with a complete answer, or nothing. A connection may be closed without one."""
    if not answer:
        return ""
    head, _, body = answer.partition(b"\r\n\r\n")
    status = head.split(b" ")[1].decode()
    if not status.isdecimal() or int(status) >= 500:
        return f"status {status}: {body[:300]!r}"
    if int(status) < 400 or b"application/json" not in head.lower():
        return ""
    try:
        error = json.loads(body)["error"]
        return "" if set(error) == {"message", "type", "param", "code"} and error["message"] else f"error {error}"
    except (ValueError, KeyError, TypeError):
        return f"an error in another shape: {body[:300]!r}"


class Errors(logging.Handler):
    """Collects what is logged as an error."""

    def __init__(self):
        super().__init__(logging.ERROR)
        self.records = []

    def emit(self, record):
        self.records.append(self.format(record))


async def run(model, indices, seed, at_once=16):
    """Run cases; returns the counts by kind and status, and the failures."""
    service = Service(model, ServeSettings(port=0, cycle="one-pass", served_model_name="tiny", client_timeout=0.3))
    bound, log = bind(service.settings), Errors()
    address, server = bound.getsockname(), Server(create_app(service), service)
    serving = asyncio.create_task(server.serve([bound]))
    logging.getLogger().addHandler(log)
    counts, failures = Counter(), []

    async def one(index, limit):
        kind, sent, read = case(seed, index)
        async with limit:
            try:
                async with asyncio.timeout(DEADLINE):
                    answer = await exchange(address, sent, read)
            except TimeoutError:
                failures.append(f"case {index} ({kind}): the connection hangs")
                return
        counts[kind, answer[9:12].decode(errors="replace") or "closed"] += 1
        if read is None and (found := wrong(answer)):
            failures.append(f"case {index} ({kind}): {found}")

    async def plain():
        body = json.dumps({"prompt": "abc", "max_tokens": 20, "temperature": 0}).encode()
        return json.loads(
            (await exchange(address, head_of("/v1/completions", len(body)) + body, None)).split(b"\r\n\r\n")[1]
        )

    while not server.started:
        await asyncio.sleep(0.01)
    limit, before = asyncio.Semaphore(at_once), await plain()
    await asyncio.gather(*(one(index, limit) for index in indices))
    after = await plain()
    while service.unfinished or service.engine.unfinished:
        await asyncio.sleep(0.01)
    if before.get("choices", 0) != after.get("choices"):
        failures.append(f"a plain request gave {before} before and {after} after")
    if service.engine.cache.pages_in_use or not service.healthy:
        failures.append(f"{service.engine.cache.pages_in_use} pages are left; healthy: {service.healthy}")
    server.drain()
    await serving
    logging.getLogger().removeHandler(log)
    return counts, failures + [f"logged: {record}" for record in log.records]


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--start", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as directory:
        path = tiny.save_checkpoint(Path(directory) / "tiny", template=tiny.CHAT)
        model = orthrus.load(path, dtype="float32", ctx_size=512)
        counts, failures = asyncio.run(run(model, range(options.start, options.start + options.count), options.seed))
    for (kind, status), number in sorted(counts.items()):
        print(f"{kind:8} {status:8} {number}")
    print(*failures, f"{len(failures)} failures in {sum(counts.values())} cases", sep="\n")
    return bool(failures)


if __name__ == "__main__":
    sys.exit(main())
