"""Peers in processes of their own: their variants, their virtual environments, and the pipe to a worker."""

from __future__ import annotations

import importlib
import json
import os
import pkgutil
import signal
import subprocess
import sys
import tempfile
import venv
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from orthrus import torch_threads
from orthrus.bench.peers import workers
from orthrus.file_cache import cache_directory

SECONDS_TO_END = 10.0
"""Seconds that a worker has to end by itself, after an answer that it may still be computing."""
CONTEXT = 4096
"""Tokens of a sequence that a worker has room for, where nothing else is asked for."""


def variants() -> dict[str, str]:
    """Every variant of every peer, and the module that defines it."""
    modules: dict[str, str] = {}
    for module in pkgutil.iter_modules(workers.__path__):
        if not module.name.startswith("_"):
            modules |= dict.fromkeys(_peer(module.name).VARIANTS, module.name)
    return modules


def module_of(variant: str) -> Any:
    """The module of the peer that has this variant."""
    return _peer(variants()[variant])


def _peer(name: str) -> Any:
    return importlib.import_module(f"{workers.__name__}.{name}")


def environment(peer: str) -> Path:
    """The Python of a peer's virtual environment, or ours if the peer has no requirements or is installed here."""
    if not _peer(peer).REQUIREMENTS or find_spec(peer) is not None:
        return Path(sys.executable)
    return cache_directory() / "peers" / peer / "bin" / "python"


def install(peer: str) -> None:
    """Create a peer's virtual environment. Raises ValueError with the end of pip's output if that fails."""
    requirements = _peer(peer).REQUIREMENTS
    if not requirements:
        return
    python = environment(peer)
    venv.create(python.parents[1], with_pip=True)
    commands = [["install", *requirements]]
    if left_out := getattr(_peer(peer), "LEFT_OUT", []):
        commands.append(["uninstall", "--yes", *left_out])
    for command in commands:
        call = [python, "-m", "pip", "--quiet", *command]
        made = subprocess.run(call, capture_output=True, text=True, check=False)
        if made.returncode:
            raise ValueError(f"{peer} could not be installed: {made.stderr.strip()[-400:]}")


class Worker:
    """A peer in its own process. Raises RuntimeError, with the end of its stderr, if it cannot start.

    context: the most tokens of a sequence. version: of the peer, as it says itself.
    """

    def __init__(
        self, variant: str, weights: dict[str, str], threads: int, device: str = "cpu", context: int = CONTEXT
    ) -> None:
        peer = variants()[variant]
        if not environment(peer).exists():
            raise RuntimeError(f"not installed: `orthrus bench compare --install --peer {variant!r}` installs it")
        script = Path(workers.__path__[0]) / "_worker.py"
        self._stderr = tempfile.TemporaryFile("w+")  # noqa: SIM115 - open as long as the worker is
        own = {name: value for name, value in os.environ.items() if name not in torch_threads.SETTINGS}
        self._process = subprocess.Popen(
            [environment(peer), "-P", str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._stderr,
            text=True, env=own | {"OMP_NUM_THREADS": str(threads)}, start_new_session=True,
        )  # fmt: skip
        options = {**_peer(peer).VARIANTS[variant], "context": context}
        started = {"peer": peer, "options": options, "weights": weights, "threads": threads, "device": device}
        try:
            self.version = str(self._ask(started)["version"])
        except BaseException:  # signals too: no other code ends the process
            self._end()
            raise

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def _end(self) -> None:
        """Close the pipe, by which the worker ends, and kill it with its children where it does not."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(timeout=SECONDS_TO_END)
        except subprocess.TimeoutExpired:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self._stderr.close()

    def generate(self, **asked: Any) -> tuple[Any, float]:
        """What the peer answers, and the seconds it took, prefill included. asked: the arguments of its function."""
        answer = self._ask(asked)
        return answer["answer"], answer["seconds"]

    def _ask(self, line: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None and self._process.stdout is not None
        with suppress(BrokenPipeError):
            print(json.dumps(line), file=self._process.stdin, flush=True)
        answer = self._process.stdout.readline()
        if not answer:
            self._stderr.seek(0)
            raise RuntimeError(self._stderr.read().strip()[-300:] or "the process ended without an error message")
        content: dict[str, Any] = json.loads(answer)
        return content
