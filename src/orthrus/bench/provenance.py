"""Provenance of a result: model, machine, versions, settings, command."""

from __future__ import annotations

import os
import platform
import shlex
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import transformers

import orthrus
from orthrus.api import Model
from orthrus.file_cache import processor_name
from orthrus.runner.runner import Runner


def machine(device: torch.device) -> dict[str, Any]:
    """The machine and the versions of the libraries."""
    accelerator = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return {
        "orthrus": orthrus.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "cpu": processor_name(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "accelerator": accelerator,
    }


def of_run(model: Model) -> dict[str, Any]:
    """The provenance of a result measured with a loaded model."""
    backbone = model.checkpoint.backbone
    checkpoint = {"revision": backbone.revision, "backbone_sha256": backbone.sha256, "view": model.checkpoint.view}
    return of_runner(model.runner, backbone.id) | checkpoint


def of_runner(runner: Runner, name: str) -> dict[str, Any]:
    """The provenance of a result measured with a model called `name`, which may have no checkpoint."""
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join([Path(sys.argv[0]).name.replace("__main__.py", "orthrus"), *sys.argv[1:]]),
        "model": name,
        "dtype": str(runner.decoder.dtype).removeprefix("torch."),
        "kernels": kernels(runner),
        "device": str(runner.device),
        "machine": machine(runner.device),
    }


def kernels(runner: Runner) -> str:
    """The GEMM kernels that an AR pass runs."""
    return " + ".join(runner.linear_kernels)
