"""The worker process: loads one peer, then answers each line of JSON with a line of JSON until the pipe closes."""

import importlib.util
import json
import os
import sys
import time
from pathlib import Path
from typing import Any


def main() -> None:
    """The first line names the peer; each further line is a prompt."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries that print must not write between the answers
    asked = json.loads(sys.stdin.readline())
    path = Path(__file__).with_name(asked["peer"] + ".py")
    spec = importlib.util.spec_from_file_location("peer_" + asked["peer"], path)
    assert spec is not None and spec.loader is not None
    module: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    generate = module.load(asked["weights"], asked["options"], asked["threads"], asked["device"])
    print(json.dumps({"ready": True}), file=answers, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        start = time.perf_counter()
        tokens = generate(request["tokens"], request["count"], request["stops"])
        print(json.dumps({"tokens": tokens, "seconds": time.perf_counter() - start}), file=answers, flush=True)


if __name__ == "__main__":
    main()
