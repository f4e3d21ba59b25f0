"""Run all benchmarks, one after another, each into its own file. Existing results are kept."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from orthrus.bench import report
from orthrus.file_cache import save_bytes, save_json, write_atomically

Step = tuple[str, tuple[str, ...]]
TASKS = ("--task", "gsm8k", "--task", "humaneval", "--task", "spec_bench")

FULL: dict[str, Step] = {
    "passes": ("passes", ()),
    "memory": ("memory", ("--context", "1024", "--context", "7680")),
    "speed": ("speed", (*TASKS, "--limit", "20", "--setting", "ar", "--setting", "two-pass", "--setting", "auto")),
    "sampled": ("speed", (*TASKS, "--limit", "8", "--temperature", "0.8", "--setting", "ar", "--setting", "auto")),
    "compare": ("compare", (*TASKS, "--limit", "4")),
    "acceptance": ("acceptance", (*TASKS, "--task", "mbpp", "--task", "math500", "--limit", "60",
                                  "--max-new-tokens", "128", "--batch-size", "16")),
    "quality": ("quality", ("--task", "gsm8k", "--limit", "60", "--batch-size", "16")),
}  # fmt: skip
QUICK: dict[str, Step] = {
    "passes": ("passes", ("-n", "5", "--rows", "8", "--rows", "16", "--rows", "32")),
    "memory": ("memory", ("--context", "1024", "--context", "2048")),
    "speed": ("speed", (*TASKS, "--limit", "2", "--max-new-tokens", "64", "--setting", "ar", "--setting", "auto")),
    "compare": (
        "compare",
        (
            "--task",
            "gsm8k",
            "--limit",
            "2",
            "--max-new-tokens",
            "64",
            "--peer",
            "transformers bf16",
            "--peer",
            "llama.cpp, the file as it is",
        ),
    ),
    "acceptance": ("acceptance", (*TASKS, "--limit", "8", "--max-new-tokens", "64", "--batch-size", "8")),
    "quality": ("quality", ("--task", "gsm8k", "--limit", "8", "--batch-size", "8")),
}
SETTINGS = "suite.json"
"""The file with the settings of the results in a directory."""
NOT_FOR_MEMORY = ("--adapter", "--device", "--quantize")
"""Options of the other benchmarks that `memory` does not have."""


def run(directory: Path, options: Sequence[str], *, quick: bool, tell: Callable[[str], None]) -> Path:
    """Run the benchmarks whose results are missing in `directory`, and write a page of all results. Returns its path.

    options: passed to every benchmark (`--model NAME`, ...). Each benchmark runs in its own process.

    Raises:
        ValueError: `directory` is a file, or has results of other settings.
        ChildProcessError: a benchmark failed and printed the reason to stderr. Earlier results are kept.
    """
    settings = {"quick": quick, "options": list(options)}
    if directory.exists() and not directory.is_dir():
        raise ValueError(f"{directory} is a file: name a directory for the results")
    known = directory / SETTINGS
    if known.is_file() and json.loads(known.read_text(encoding="utf-8")) != settings:
        raise ValueError(f"{directory} holds results of other settings (see {known.name}): choose another --output")
    write_atomically(directory, {SETTINGS: lambda path: save_json(path, settings)})
    steps = QUICK if quick else FULL
    for number, (name, (verb, arguments)) in enumerate(steps.items(), start=1):
        at = f"{number} of {len(steps)}: {name}"
        if (directory / f"{name}.json").is_file():
            tell(f"{at} is already measured")
            continue
        own = _without(options, NOT_FOR_MEMORY) if verb == "memory" else options
        command = ["bench", verb, *arguments, *own, "--json"]
        tell(f"{at}: orthrus {' '.join(command)}")
        done = subprocess.run([sys.executable, "-m", "orthrus", *command], check=False, stdout=subprocess.PIPE)
        if done.returncode:
            raise ChildProcessError(f"{name} failed with exit code {done.returncode}; run the same command to resume")
        write_atomically(directory, {f"{name}.json": partial(save_bytes, data=done.stdout)})
    page = directory / "report.html"
    page.write_text(report.page([directory / f"{name}.json" for name in steps]), encoding="utf-8")
    return page


def _without(options: Sequence[str], names: Sequence[str]) -> list[str]:
    """Options, as pairs of name and value, without those in `names`."""
    pairs = zip(options[::2], options[1::2], strict=True)
    return [part for name, value in pairs if name not in names for part in (name, value)]
