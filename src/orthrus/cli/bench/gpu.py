"""`orthrus bench gpu`: everything worth measuring on a GPU, in parts, within a given time."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from orthrus.cli._costs import timed
from orthrus.cli._shared import ModelOption, quiet, stderr


def command(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the results.")] = Path("gpu-measured"),
    parts: Annotated[
        list[str] | None, typer.Option(help="A part; may be repeated, or several with commas.", show_default="all")
    ] = None,
    minutes: Annotated[float, typer.Option(help="Minutes of this call; the next one goes on.", min=0.0)] = 25.0,
    again: Annotated[bool, typer.Option("--again", help="Also run the parts that have a result.")] = False,
    model: ModelOption = "smollm2-demo",
    device: Annotated[str, typer.Option(help="Device to measure.")] = "cuda",
    model_parts: Annotated[
        Path | None, typer.Option(help="Folder with the parts of the demo model's file; they are joined first.")
    ] = None,
    split_model: Annotated[
        Path | None, typer.Option(help="Write the demo model's file in parts of 50 MB to this folder, and exit.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Run every part on tiny shapes on the CPU, with Triton's interpreter.")
    ] = False,
) -> None:
    """Measure a GPU: tests, passes against the bandwidth floor, decoding, prefill, peers, training; one file per part.

    The parts run in order of value, each in its own process and within its own time limit. A part whose file exists is
    skipped, so the same command goes on where the last one ended. `summary.md` says what was found and what to do, and
    `all.json` holds all results. Nothing is downloaded.
    """
    from orthrus.bench.gpu import run, summary, transfer
    from orthrus.bench.gpu.parts import PARTS
    from orthrus.bench.gpu.settings import Settings
    from orthrus.checkpoint import known_models, sources

    quiet()
    if split_model is not None:
        for path in transfer.split(sources.resolve(known_models.DEMO, None).path, split_model):
            print(path)
        return
    if output.exists() and not output.is_dir():
        raise ValueError(f"{output} is a file: name a folder for the results")
    chosen = [name for one in parts or PARTS for name in one.split(",")]
    unknown = [name for name in chosen if name not in PARTS]
    if unknown:
        raise ValueError(f"no part {unknown[0]!r}; parts: {', '.join(PARTS)}")
    machine = _machine("cpu" if dry_run else device)
    if model_parts is not None:
        os.environ[known_models.DEMO_FILE] = str(transfer.join(model_parts, output / "work"))
    settings = Settings(output, "cpu" if dry_run else device, model, dry_run=dry_run)
    jobs = [run.job(name, PARTS[name].seconds) for name in PARTS if name in chosen]
    with timed():
        run.run(jobs, settings, minutes, again=again, tell=lambda line: stderr.print(line, markup=False))
    print(summary.write(output, machine, dry_run=dry_run))


def _machine(device: str) -> dict[str, object]:
    """The machine. Raises ValueError where there is no such device."""
    import torch

    from orthrus.bench import provenance

    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError("there is no CUDA device here; --dry-run runs every part on the CPU, with tiny shapes")
    return provenance.machine(torch.device(device))
