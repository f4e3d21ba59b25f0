"""Fuzz decoding with random cases for a given time. Seed and number reproduce a case.

    python tests/fuzz/decoding.py --seconds 60 --seed 0
    python tests/fuzz/decoding.py --seed 0 --case 17

Cases run in a child process that is replaced after some cases. This bounds the memory, and a crash or a hanging case is
reported like any other failure. The exit status is 1 if there is a failure.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import json
import queue
import resource
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import cases
import checks

CASES_PER_PROCESS = 60
CASE_TIMEOUT = 600.0
"""Seconds after which a case counts as hung."""
PROGRESS_INTERVAL = 10.0
"""Seconds between two lines of progress."""
MAX_FAILURES = 20
"""Stop after this many failed cases."""


def main(arguments=None):
    """Run the command line. Returns the exit status."""
    parser = argparse.ArgumentParser(description="Fuzz of decoding against the oracle.")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--case", type=int, help="run only this case, in this process, and print all of it")
    parser.add_argument("--first", type=int, default=0, help="the number of the first case")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    if chosen.worker:
        return work(chosen.seed, chosen.first)
    if chosen.case is not None:
        case = cases.make(chosen.seed, chosen.case)
        print(case.setup, *case.jobs, f"together: {case.together}", sep="\n")
        failures = checks.run(case).failures
        print(*failures, f"{len(failures)} failures", sep="\n")
        return int(bool(failures))
    return Run(chosen.seed, chosen.first).until(time.monotonic() + chosen.seconds)


def work(seed, first):
    """The child process: prints a line of JSON before and after every case."""
    faulthandler.enable()
    for number in range(first, first + CASES_PER_PROCESS):
        print(json.dumps({"begins": number}), flush=True)
        findings = checks.run(cases.make(seed, number))
        print(json.dumps({"counts": findings.counts, "failures": findings.failures}), flush=True)
    return 0


class Run:
    """Runs the cases from `first` on, in one child process after another."""

    def __init__(self, seed, first):
        self._seed, self._next, self._current = seed, first, first
        self._counts, self._failures = Counter(), 0
        self._began = self._reported = time.monotonic()

    def until(self, end):
        """Run until this time, or until too many cases failed. Returns the exit status."""
        while time.monotonic() < end and self._failures < MAX_FAILURES:
            self._child(end)
        print(f"\n{self._line()}")
        for name, count in sorted(self._counts.items()):
            print(f"  {count:8} {name}")
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024
        print(f"  {peak:8} MiB of memory in the largest child")
        return int(self._failures > 0)

    def _child(self, end):
        command = [sys.executable, __file__, "--worker", "--seed", str(self._seed), "--first", str(self._next)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
            lines, errors = queue.Queue(), []
            readers = [
                threading.Thread(target=_read, args=(child.stdout, lines.put)),
                threading.Thread(target=_read, args=(child.stderr, errors.append)),
            ]
            for reader in readers:
                reader.start()
            self._current = None
            try:
                while (line := lines.get(timeout=CASE_TIMEOUT)) is not None:
                    self._handle(json.loads(line))
                    if time.monotonic() > end or self._failures >= MAX_FAILURES:
                        self._current = None
                        break
                else:
                    child.wait(timeout=CASE_TIMEOUT)
            except queue.Empty:
                self._fail(f"hung for {CASE_TIMEOUT:.0f} seconds")
                self._current = None
            finally:
                child.kill()
                for reader in readers:
                    reader.join()
        if self._current is not None:
            reason = " (killed from outside, or out of memory)" if child.returncode == -signal.SIGKILL else ""
            stderr = "".join(filter(None, errors))[-4000:]
            self._fail(f"the process died with status {child.returncode}{reason}\n{stderr}")

    def _handle(self, record):
        if "begins" in record:
            self._current, self._next = record["begins"], record["begins"] + 1
            return
        self._counts.update(record["counts"])
        if failures := record["failures"]:
            self._fail(failures[0] + (f"\nand {len(failures) - 1} more" if len(failures) > 1 else ""))
        self._current = None
        if time.monotonic() - self._reported > PROGRESS_INTERVAL:
            self._reported = time.monotonic()
            print(self._line(), flush=True)

    def _fail(self, text):
        self._failures += 1
        number = self._next - 1
        print(f"\nFAILED: python tests/fuzz/decoding.py --seed {self._seed} --case {number}\n{text}\n", flush=True)

    def _line(self):
        counts, seconds = self._counts, time.monotonic() - self._began
        return (
            f"{seconds:6.0f} s: {counts['cases']} cases, {counts['decodings']} decodings, {counts['tokens']} tokens,"
            f" {self._failures} failed cases"
        )


def _read(stream, take):
    """Call `take` with every line of a stream, and with None at its end."""
    with contextlib.suppress(ValueError):
        for line in stream:
            take(line)
    take(None)


if __name__ == "__main__":
    sys.exit(main())
