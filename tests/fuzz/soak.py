"""Soak: rounds of the same mixed requests against a server process, for minutes. Memory must stay flat, nothing may be
left behind, and every round must give the answers of the first.

    python tests/fuzz/soak.py --minutes 30 --model smollm2-demo

Prints the server's memory, threads and open files after each round, when no request is in flight.
"""

from __future__ import annotations

import argparse
import asyncio
import copy
import random
import re
import subprocess
import sys
from pathlib import Path
from time import monotonic

import httpx
import served

KINDS = tuple(kind for kind in served.KINDS if kind != "tools")
"""Without tools: the demo model's template does not show them."""


def state_of(process: int) -> dict[str, int]:
    """Resident megabytes, threads and open files of a process."""
    status = dict(line.split(":", 1) for line in Path(f"/proc/{process}/status").read_text().splitlines())
    files = len(list(Path(f"/proc/{process}/fd").iterdir()))
    return {"MB": int(status["VmRSS"].split()[0]) // 1024, "threads": int(status["Threads"]), "files": files}


async def figure(client: httpx.AsyncClient, name: str) -> float:
    """A gauge of the server's metrics."""
    text = (await client.get("/metrics")).text
    found = re.search(rf"^{name}(?:{{.*?}})? (\S+)$", text, re.MULTILINE)
    assert found, name
    return float(found[1])


async def play(client: httpx.AsyncClient, cases: list[served.Case], at_once: int) -> list[served.Case]:
    """Send fresh copies of the cases. Returns them with their answers."""
    places, played = asyncio.Semaphore(at_once), copy.deepcopy(cases)

    async def one(case: served.Case) -> None:
        async with places:
            await served.ask(client, case)

    await asyncio.gather(*(one(case) for case in played))
    while await figure(client, "vllm:num_requests_running"):  # of clients that have left
        await asyncio.sleep(0.05)
    return played


def differs(case: served.Case, first: served.Case) -> bool:
    """Whether an answer is another one. Of a client that left, what both have read is compared."""
    if case.left or first.left:
        return not (case.texts[0].startswith(first.texts[0]) or first.texts[0].startswith(case.texts[0]))
    return (case.texts, case.reasons) != (first.texts, first.reasons)


async def soak(url: str, process: int, minutes: float, count: int, at_once: int) -> int:
    """Play rounds until the time is over. Returns how many answers differed from the first round."""
    rng, end, first, differing, number = random.Random(0), monotonic() + 60 * minutes, None, 0, 0
    cases = [served.make_case(rng, KINDS[n % len(KINDS)]) for n in range(count)]
    async with httpx.AsyncClient(base_url=url, timeout=3000) as client:
        while monotonic() < end:
            rng.shuffle(order := list(range(count)))
            played = await play(client, [cases[n] for n in order], at_once)
            answers = dict(zip(order, played, strict=True))
            first = first or answers
            differing += sum(differs(answers[n], first[n]) for n in range(count))
            number += 1
            pages = await figure(client, "vllm:kv_cache_usage_perc")
            print(f"round {number}: {state_of(process)}, pages in use {pages}, {differing} answers differ", flush=True)
    print(f"{number * count} requests in {number} rounds")
    return differing


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--model", default="smollm2-demo")
    parser.add_argument("--count", type=int, default=60, help="requests per round")
    parser.add_argument("--at-once", type=int, default=8)
    given = parser.parse_args()
    command = [
        sys.executable,
        "-m",
        "orthrus",
        "serve",
        given.model,
        "--port",
        "0",
        "--max-num-seqs",
        "6",
        "--client-timeout",
        "3000",
        "--request-timeout",
        "3000",
    ]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert server.stdout is not None
    found = re.search(r"http://127\.0\.0\.1:\d+", server.stdout.readline())
    assert found, "the server has not started"
    try:
        differing = asyncio.run(soak(found[0], server.pid, given.minutes, given.count, given.at_once))
    finally:
        server.terminate()
        print(f"the server exits with {server.wait(60)}")
    sys.exit(bool(differing))


if __name__ == "__main__":
    main()
