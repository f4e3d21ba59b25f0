"""The worker process: loads one peer, then answers each line of JSON with a line of JSON until the pipe closes.

The pipe also closes when the process that started it dies, of whatever signal. A worker then ends within `GRACE`
seconds, even while it loads or computes. The processes that it has started end with it.
"""

import atexit
import importlib.util
import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import Any

GRACE = 3.0
"""Seconds that a worker has to end regularly after its pipe has closed."""


def main() -> None:
    """The first line names the peer; each further line is a prompt."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries that print must not write between the answers
    lines = _lines()
    asked = next(lines)
    path = Path(__file__).with_name(asked["peer"] + ".py")
    spec = importlib.util.spec_from_file_location("peer_" + asked["peer"], path)
    assert spec is not None and spec.loader is not None
    module: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    generate = module.load(asked["weights"], asked["options"], asked["threads"], asked["device"])
    print(json.dumps({"version": module.version()}), file=answers, flush=True)
    for request in lines:
        getattr(generate, "before", _nothing)()
        start = time.perf_counter()
        answer = generate(**request)
        print(json.dumps({"answer": answer, "seconds": time.perf_counter() - start}), file=answers, flush=True)
    getattr(generate, "close", _nothing)()


def _nothing() -> None:
    pass


def _lines() -> Iterator[dict[str, Any]]:
    """The lines of the pipe, which a thread reads, so that its end is noticed at once."""
    queue: SimpleQueue[str | None] = SimpleQueue()

    def read() -> None:
        for line in sys.stdin:
            queue.put(line)
        queue.put(None)
        time.sleep(GRACE)
        _end_group()
        os._exit(1)

    Thread(target=read, daemon=True).start()
    while (line := queue.get()) is not None:
        yield json.loads(line)


def _end_group() -> None:
    """Kill this process and those that it has started, if it leads a group of its own, as it is started."""
    if os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    atexit.register(_end_group)  # the first one registered runs last, after what a library does at its end
    main()
