"""`orthrus distill` and `orthrus train` on the demo model, for as long as the part may run; both resume.

Before its time is over a part stops its command as Ctrl-C does, so that the work is saved.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

from orthrus.bench.gpu.settings import AbsentError, Settings
from orthrus.checkpoint import known_models
from orthrus.file_cache import save_bytes, write_atomically
from orthrus.training.shards import MANIFEST, read_manifest

TOPICS = known_models.BUNDLED / known_models.DEMO / "topics.txt"
RESERVE = 25.0
"""Seconds to stop and save in."""
LEAST = 5.0
"""Seconds that a command gets at least."""
COMMAND = (sys.executable, "-m", "orthrus")
DISTILL = (
    "--count 20000 --batch-size 64 --shard-size 256 --max-new-tokens 224 --prompt-temperature 0.8"
    " --max-prompt-tokens 300 --seed 1"
)
TRAIN = (
    "--block-size 8 --sequence-length 2048 --roots 384 --sequences 4 --steps 2000 --learning-rate 1e-3"
    " --validate-every 500 --save-every 100 --held-out 16"
)
DRY_DISTILL = "--shard-size 4 --max-new-tokens 24 --max-prompt-tokens 60"
DRY_TRAIN = "--block-size 4 --sequence-length 160 --roots 8 --sequences 1 --steps 1 --held-out 1"


def distill(settings: Settings) -> Iterator[dict[str, Any]]:
    """Yields how much was written, once."""
    output = settings.work / "distilled"
    before = _distilled(output)
    if settings.dry_run:
        prompts = [json.dumps({"prompt": f"say {number}"}) for number in range(4)]
        write_atomically(settings.work, {"prompts.jsonl": partial(save_bytes, data="\n".join(prompts).encode())})
        arguments = (*DRY_DISTILL.split(), "--data", str(settings.work / "prompts.jsonl"))
    else:
        arguments = (*DISTILL.split(), "--topics", str(TOPICS))
    ended, seconds, log = _run(settings, "distill", ("--output", str(output), *arguments))
    now = _distilled(output)
    yield {
        "finished": ended, "seconds": seconds, "records": now[0], "answer_tokens": now[1],
        "tokens_per_second": (now[1] - before[1]) / seconds, "log": log,
    }  # fmt: skip


def train(settings: Settings) -> Iterator[dict[str, Any]]:
    """Yields the course of the run, once."""
    data, output = settings.work / "distilled", settings.work / "view"
    if not _distilled(data)[0]:
        raise AbsentError("there are no distilled records yet: run the part distill first")
    arguments = (*(DRY_TRAIN if settings.dry_run else TRAIN).split(), *_mask_token(settings.model))
    ended, seconds, log = _run(settings, "train", ("--output", str(output), "--data", str(data), *arguments))
    metrics = output / "metrics.jsonl"
    steps = [json.loads(line) for line in metrics.read_text().splitlines()] if metrics.exists() else []
    if not steps:
        raise RuntimeError(f"no step was made: {log[-1500:]}")
    yield {
        "finished": ended, "seconds": seconds, "steps": len(steps), "loss": steps[-1]["loss"],
        "rows_per_second": median(step["rows"] / step["seconds"] for step in steps), "last": steps[-1], "log": log,
    }  # fmt: skip


def _mask_token(model: str) -> tuple[str, ...]:
    """The option with the mask token of a bundled view; other models must have a view with one."""
    known = known_models.known(model)
    if known is None or known.view is None:
        return ()
    return "--mask-token", str(json.loads((known.view / "adapter_config.json").read_text())["mask_token_id"])


def _run(settings: Settings, verb: str, arguments: tuple[str, ...]) -> tuple[bool, float, str]:
    """Run a command until it ends or its time is over: whether it ended by itself, seconds, and the end of its log.
    Raises RuntimeError if it fails."""
    options = ("--model", settings.model, "--device", settings.device)
    start = perf_counter()
    process = subprocess.Popen(
        [*COMMAND, verb, *options, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    stopped, log = False, ""
    try:
        log, _ = process.communicate(timeout=max(LEAST, settings.seconds - RESERVE))
    except subprocess.TimeoutExpired:
        stopped = True
        process.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            log, _ = process.communicate(timeout=RESERVE)
    if process.returncode and not stopped:
        raise RuntimeError(f"orthrus {verb} ended with exit code {process.returncode}: {log[-1500:]}")
    return not stopped, perf_counter() - start, log[-1500:]


def _distilled(output: Path) -> tuple[int, int]:
    """Records and answer tokens of the complete shards."""
    if not (output / MANIFEST).exists():
        return 0, 0
    shards = read_manifest(output)["shards"]
    return sum(shard["records"] for shard in shards), sum(shard["answer_tokens"] for shard in shards)


def headline(result: dict[str, Any]) -> str:
    """One line for the summary."""
    if "records" in result:
        return f"{result['records']:,} records at {result['tokens_per_second']:,.0f} answer tokens/s"
    return f"{result['steps']} steps at {result['rows_per_second']:,.0f} rows/s, loss {result['loss']:.3f}"


def advice(result: dict[str, Any]) -> list[str]:
    """How to go on with an unfinished run."""
    name = "distill" if "records" in result else "train"
    return [] if result["finished"] else [f"`--parts {name} --again` goes on where this run ended"]
