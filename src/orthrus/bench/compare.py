"""Speed against peers with the same prompts, weights and threads: greedy, batch 1, systems interleaved per prompt."""

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
from collections.abc import Callable, Iterable, Sequence
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

SECONDS_TO_END = 10.0
"""Seconds that a worker has to end by itself, after an answer that it may still be computing."""
OURS = ("ar", "auto")
Decode = Callable[[Request], tuple[list[int], float]]
"""Greedy tokens of a request and the seconds they took, prefill included."""
Turn = tuple[int, str]
"""The number of a prompt, and the system that decodes it."""
Run = tuple[list[int], float, float]
"""Generated tokens, seconds to generate them, and seconds to generate the first token alone."""


@dataclass(frozen=True)
class System:
    """The results of one system (ours with one cycle, or a peer) over all prompts of a part.

    speed: tokens per second, prefill included; ours_over: speed of `orthrus auto` (of `orthrus ar` without a view)
    divided by it; first_token: median
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
            text=True, env=own | {"OMP_NUM_THREADS": str(threads)}, start_new_session=True,
        )  # fmt: skip
        options = _peer(peer).VARIANTS[variant]
        try:
            self._ask({"peer": peer, "options": options, "weights": weights, "threads": threads, "device": device})
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


def weights_for(model: Model, variant: str) -> dict[str, str]:
    """Files with this model's backbone in the formats that a variant reads; written once and cached. Raises ValueError
    where the backbone is none that the peer can read."""
    peer = variants()[variant]
    folder = cache_directory() / "peers" / "weights" / model.checkpoint.backbone.sha256[:16]
    if peer == "llama_cpp":
        from orthrus.bench.peers import gguf  # needs the package gguf

        return gguf.files(model.checkpoint.backbone.id, folder)
    directory = folder / "transformers"
    if not (directory / "config.json").exists():
        transformers.load(model).save_pretrained(directory)
    return {"directory": str(directory)}


def ours(model: Model) -> tuple[str, ...]:
    """The cycles that are compared with the peers, the fastest last: without a diffusion view there is one."""
    return OURS if model.decoder.diffusion else OURS[:1]


def measure(
    model: Model,
    task: str,
    prompts: list[TaskPrompt],
    options: Options,
    chosen: list[str],
    track: Callable[[Sequence[Turn]], Iterable[Turn]],
    tell: Callable[[str], object] = lambda text: None,
) -> list[System]:
    """Decode every prompt with every system. The order of the systems rotates from prompt to prompt of a part. A peer
    that fails is absent.

    track: gets the turns, and yields them again. tell: is told what takes long before the first turn.
    """
    requests = exactness.requests(model, [prompt.prompt for prompt in prompts], options)
    with ExitStack() as stack:
        systems: dict[str, Decode] = {
            f"orthrus {cycle}": partial(decode_alone, model, model.decoding_config({**options, "cycle": cycle}))
            for cycle in ours(model)
        }
        peers, absent = _started(model, requests[0], chosen, stack, tell)
        tell("warming up")
        for decode in systems.values():
            decode(requests[0])
        systems |= peers
        names, runs = list(systems), {name: list[Run]() for name in systems}
        firsts = turns([prompt.part for prompt in prompts], len(names))
        order = [(n, name) for n, first in enumerate(firsts) for name in names[first:] + names[:first]]
        for number, name in track(order):
            if name in absent:
                continue
            try:
                whole, first_token = systems[name](requests[number]), systems[name](_first_of(requests[number]))
            except (OSError, RuntimeError) as error:
                if name not in chosen:
                    raise
                absent[name] = str(error)
                del runs[name]
            else:
                runs[name].append((*whole, first_token[1]))
    parts = {prompt.part for prompt in prompts}
    groups = {part: [n for n, prompt in enumerate(prompts) if prompt.part == part] for part in sorted(parts)}
    if len(parts) > 1:
        groups[f"{task}, all"] = list(range(len(prompts)))
    measured = [
        _summary(part, name, {system: [own[n] for n in indices] for system, own in runs.items()}, ours(model))
        for part, indices in groups.items() for name in runs
    ]  # fmt: skip
    return measured + [
        System(f"{task}, all", name, 0, 0.0, (0.0, 0.0), 0.0, (0.0, 0.0), 0.0, 0, why) for name, why in absent.items()
    ]


def _started(
    model: Model, request: Request, chosen: list[str], stack: ExitStack, tell: Callable[[str], object]
) -> tuple[dict[str, Decode], dict[str, str]]:
    """The peers that have answered a first request, and why the others did not. Their processes end with the stack."""
    stops, running, absent = sorted(model.limits.end_token_ids), dict[str, Decode](), dict[str, str]()
    threads, device = torch.get_num_threads(), str(model.decoder.device)
    for variant in chosen:
        tell(f"starting {variant}")
        try:
            worker = stack.enter_context(Worker(variant, weights_for(model, variant), threads, device))
            decode = partial(worker.generate, stops=stops)
            decode(request)  # warm-up
        except (OSError, RuntimeError, ValueError) as error:
            absent[variant] = str(error)
        else:
            running[variant] = decode
    return running, absent


def _first_of(request: Request) -> Request:
    return replace(request, stop=replace(request.stop, max_new_tokens=1))


def _summary(part: str, name: str, runs: dict[str, list[Run]], cycles: Sequence[str]) -> System:
    def speeds_of(system: str) -> np.ndarray[Any, Any]:
        return np.array([len(tokens) / seconds for tokens, seconds, _ in runs[system]])

    speeds, plain = speeds_of(name), runs[f"orthrus {cycles[0]}"]
    ratios = speeds_of(f"orthrus {cycles[-1]}") / speeds
    identical = sum(tokens == others for (tokens, *_), (others, *_) in zip(runs[name], plain, strict=True))
    medians = float(np.median(speeds)), _quartiles(speeds), float(np.median(ratios)), _quartiles(ratios)
    return System(part, name, len(plain), *medians, float(np.median([first for *_, first in runs[name]])), identical)


def _quartiles(values: np.ndarray[Any, Any]) -> tuple[float, float]:
    low, high = np.quantile(values, (0.25, 0.75))
    return float(low), float(high)
