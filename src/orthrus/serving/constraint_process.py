"""A process that checks constraints: each is compiled in a fork of it, which is killed if it takes too much.

llguidance cannot be interrupted, and some schemas of a few lines take it minutes or gigabytes. What has been checked
here compiles in the server within the same limits.

The first line of the input is `[bytes, V, end tokens, seconds, bytes of memory]`, followed by so many bytes of the
tokenizer. Each line after it is a constraint, `[kind, text]`, and is answered by a line: what is wrong with it, or
null. A line that comes before the answer ends the check.
"""

from __future__ import annotations

import json
import os
import resource
import selectors
import signal
import sys
from pathlib import Path
from typing import BinaryIO

from orthrus.config import Constraint
from orthrus.decoding.constraint_compiler import ConstraintCompiler

WALL_FACTOR = 10
"""Seconds that a check may last for each second of processor time: other programs may be busy."""


def main(requests: BinaryIO, answers: BinaryIO) -> None:
    """Serve the input to its end."""
    size, vocab_size, ends, seconds, memory = json.loads(requests.readline())
    tokenizer = requests.read(size).decode()
    compiler = ConstraintCompiler(lambda: tokenizer, vocab_size, frozenset(ends))
    compiler.load("regex")
    while line := requests.readline():
        if line.strip():
            answers.write(json.dumps(_check(compiler, line, seconds, memory)).encode() + b"\n")
            answers.flush()


def _check(compiler: ConstraintCompiler, line: bytes, seconds: int, memory: int) -> str | None:
    """What is wrong with a constraint, found out in a fork."""
    result, writing = os.pipe()
    child = os.fork()
    if not child:
        os.close(result)
        os.write(writing, _compiled(compiler, line, seconds, memory).encode(errors="replace"))
        os._exit(0)
    os.close(writing)
    with selectors.DefaultSelector() as waiting:
        waiting.register(result, selectors.EVENT_READ)
        waiting.register(0, selectors.EVENT_READ)
        ready = {key.fd for key, _ in waiting.select(seconds * WALL_FACTOR)}
    text = b""
    if result in ready:
        while part := os.read(result, 2**16):
            text += part
    else:
        os.kill(child, signal.SIGKILL)
    os.close(result)
    _, status = os.waitpid(child, 0)
    if text:
        return str(json.loads(text)["problem"]) or None
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGABRT:
        limit = f"{memory // 10**6} MB"
    else:
        limit = f"{seconds} s of processor time"
    kind, _ = json.loads(line)
    return f"{kind} cannot be used as a constraint: it takes more than {limit} to compile; make it simpler"


def _compiled(compiler: ConstraintCompiler, line: bytes, seconds: int, memory: int) -> str:
    """Compile within limits that the system enforces. Runs in the fork; one that exceeds them ends there."""
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + memory, used + memory))
    problem = ""
    try:
        kind, text = json.loads(line)
        compiler.matcher(Constraint(kind, text))
    except (ValueError, RecursionError) as error:
        problem = str(error)
    except MemoryError:
        os.abort()
    return json.dumps({"problem": problem[:2000]})


if __name__ == "__main__":
    main(sys.stdin.buffer, sys.stdout.buffer)
