"""Speed against peers with the same prompts, weights and threads: greedy, batch 1, systems interleaved per prompt."""

from __future__ import annotations

import importlib
import json
import os
import pkgutil
import subprocess
import sys
import tempfile
import venv
from collections.abc import Callable, Iterable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from orthrus import torch_threads
from orthrus.api import Model, Options
from orthrus.bench import exactness
from orthrus.bench.measure import decode_alone, turns
from orthrus.bench.peers import transformers, workers
from orthrus.bench.tasks import TaskPrompt
from orthrus.decoding.sequence import Request
from orthrus.file_cache import cache_directory

OURS = ("ar", "auto")
Run = tuple[list[int], float, float]
"""Generated tokens, seconds to generate them, and seconds to generate the first token alone."""


@dataclass(frozen=True)
class System:
    """The results of one system (ours with one cycle, or a peer) over all prompts of a part.

    speed: tokens per second, prefill included; ours_over: speed of `orthrus auto` divided by it; first_token: median
    seconds of prefill and one token; identical: prompts with the same tokens as our plain decoding; absent: why a peer
    could not run.
    """

    part: str
    name: str
    prompts: int
    speed: float
    quartiles: tuple[float, float]
    ours_over: float
    ours_over_quartiles: tuple[float, float]
    first_token: float
    identical: int
    absent: str | None = None


def variants() -> dict[str, str]:
    """Every variant of every peer, and the module that defines it."""
    modules: dict[str, str] = {}
    for module in pkgutil.iter_modules(workers.__path__):
        if not module.name.startswith("_"):
            modules |= dict.fromkeys(_peer(module.name).VARIANTS, module.name)
    return modules


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
    """A peer in its own process. Raises RuntimeError, with the end of its stderr, if it cannot start."""

    def __init__(self, variant: str, weights: dict[str, str], threads: int, device: str = "cpu") -> None:
        peer = variants()[variant]
        script = Path(workers.__path__[0]) / "_worker.py"
        self._stderr = tempfile.TemporaryFile("w+")  # noqa: SIM115 - open as long as the worker is
        own = {name: value for name, value in os.environ.items() if name not in torch_threads.SETTINGS}
        self._process = subprocess.Popen(
            [environment(peer), "-P", str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._stderr,
            text=True, env=own | {"OMP_NUM_THREADS": str(threads)},
        )  # fmt: skip
        options = _peer(peer).VARIANTS[variant]
        self._ask({"peer": peer, "options": options, "weights": weights, "threads": threads, "device": device})

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._stderr.close()

    def generate(self, request: Request, stops: list[int]) -> tuple[list[int], float]:
        """Greedy tokens and the seconds they took, prefill included."""
        asked = {"tokens": list(request.prompt), "count": request.stop.max_new_tokens, "stops": stops}
        answer = self._ask(asked)
        return answer["tokens"], answer["seconds"]

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


def weights_for(model: Model, chosen: Iterable[str]) -> dict[str, str]:
    """Files with this model's backbone in the formats that these variants read; written once and cached."""
    peers = {variants()[variant] for variant in chosen}
    paths: dict[str, str] = {}
    folder = cache_directory() / "peers" / "weights" / model.checkpoint.backbone.sha256[:16]
    if peers & {"transformers", "vllm"}:
        directory = folder / "transformers"
        if not (directory / "config.json").exists():
            transformers.load(model).save_pretrained(directory)
        paths["directory"] = str(directory)
    if "llama_cpp" in peers:
        from orthrus.bench.peers import gguf  # needs the package gguf

        paths |= gguf.files(model.checkpoint.backbone.id, folder)
    return paths


def measure(
    model: Model,
    task: str,
    prompts: list[TaskPrompt],
    options: Options,
    chosen: list[str],
    track: Callable[[Iterable[int]], Iterable[int]],
) -> list[System]:
    """Decode every prompt with every system. The order of the systems rotates from prompt to prompt of a part. A peer
    that fails is absent."""
    requests = exactness.requests(model, [prompt.prompt for prompt in prompts], options)
    stops, absent = sorted(model.limits.end_token_ids), {}
    weights, threads, device = weights_for(model, chosen), torch.get_num_threads(), str(model.decoder.device)
    with ExitStack() as stack:
        systems: dict[str, Callable[[Request], tuple[list[int], float]]] = {
            f"orthrus {cycle}": partial(decode_alone, model, model.decoding_config({**options, "cycle": cycle}))
            for cycle in OURS
        }
        for variant in chosen:
            try:
                worker = stack.enter_context(Worker(variant, weights, threads, device))
                systems[variant] = partial(worker.generate, stops=stops)
                systems[variant](requests[0])  # warm-up
            except (OSError, RuntimeError) as error:
                absent[variant] = str(error)
                systems.pop(variant, None)
        for cycle in OURS:
            systems[f"orthrus {cycle}"](requests[0])
        runs: dict[str, list[Run]] = {name: [] for name in systems}
        for number, turn in enumerate(track(turns([prompt.part for prompt in prompts], len(systems)))):
            names = list(runs)
            for name in names[turn:] + names[:turn]:
                try:
                    whole, first = systems[name](requests[number]), systems[name](_first_of(requests[number]))
                except (OSError, RuntimeError) as error:
                    if name not in chosen:
                        raise
                    absent[name] = str(error)
                    del runs[name]
                else:
                    runs[name].append((*whole, first[1]))
    parts = {prompt.part for prompt in prompts}
    groups = {part: [n for n, prompt in enumerate(prompts) if prompt.part == part] for part in sorted(parts)}
    if len(parts) > 1:
        groups[f"{task}, all"] = list(range(len(prompts)))
    measured = [
        _summary(part, name, {system: [own[n] for n in indices] for system, own in runs.items()})
        for part, indices in groups.items() for name in runs
    ]  # fmt: skip
    return measured + [
        System(f"{task}, all", name, 0, 0.0, (0.0, 0.0), 0.0, (0.0, 0.0), 0.0, 0, why) for name, why in absent.items()
    ]


def _first_of(request: Request) -> Request:
    return replace(request, stop=replace(request.stop, max_new_tokens=1))


def _summary(part: str, name: str, runs: dict[str, list[Run]]) -> System:
    def speeds_of(system: str) -> np.ndarray[Any, Any]:
        return np.array([len(tokens) / seconds for tokens, seconds, _ in runs[system]])

    speeds, plain = speeds_of(name), runs[f"orthrus {OURS[0]}"]
    ratios = speeds_of(f"orthrus {OURS[-1]}") / speeds
    identical = sum(tokens == others for (tokens, *_), (others, *_) in zip(runs[name], plain, strict=True))
    medians = float(np.median(speeds)), _quartiles(speeds), float(np.median(ratios)), _quartiles(ratios)
    return System(part, name, len(plain), *medians, float(np.median([first for *_, first in runs[name]])), identical)


def _quartiles(values: np.ndarray[Any, Any]) -> tuple[float, float]:
    low, high = np.quantile(values, (0.25, 0.75))
    return float(low), float(high)
