"""The state of a training run, from which it resumes: weights, moments, averages and counters in one file, written
atomically."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.optim import AdamW

from orthrus.checkpoint.tensors import save_tensors
from orthrus.file_cache import write_atomically

STATE, STABLE = "state.safetensors", "stable.safetensors"
"""The newest state, and the one before the decay of the learning rate, from which a run is extended."""
MOMENTS = ("exp_avg", "exp_avg_sq", "step")
AVERAGE = "average"


def save(
    directory: Path, parameters: dict[str, nn.Parameter], optimiser: AdamW, averages: dict[str, Tensor],
    counters: dict[str, Any], name: str = STATE,
) -> None:  # fmt: skip
    """Write fp32 masters, moments, averages of the weights if there are any, and counters. Raises OSError and
    leaves the older state intact."""
    tensors: dict[str, Tensor] = {}
    for key, parameter in parameters.items():
        tensors[key] = parameter.detach()
        for moment in MOMENTS:
            tensors[f"{key}/{moment}"] = optimiser.state[parameter][moment]
    tensors |= {f"{key}/{AVERAGE}": average for key, average in averages.items()}
    metadata = {"counters": json.dumps(counters)}
    write_atomically(directory, {name: lambda path: save_tensors(path, tensors, metadata)})


def restore(
    directory: Path, parameters: dict[str, nn.Parameter], optimiser: AdamW, averages: dict[str, Tensor],
    name: str = STATE,
) -> dict[str, Any] | None:  # fmt: skip
    """Load a saved state; return its counters, or None where there is none. Raises ValueError where it is damaged."""
    path = directory / name
    if not path.exists():
        return None
    try:
        with safe_open(path, "pt") as stored:
            counters: dict[str, Any] = json.loads(stored.metadata()["counters"])
            for key, parameter in parameters.items():
                parameter.data.copy_(stored.get_tensor(key))
                moments = {m: stored.get_tensor(f"{key}/{m}").clone() for m in MOMENTS}
                optimiser.state[parameter] = {m: own.to(parameter.device) for m, own in moments.items()}
            for key, average in averages.items():
                average.copy_(stored.get_tensor(f"{key}/{AVERAGE}"))
    except (SafetensorError, KeyError, json.JSONDecodeError, RuntimeError) as error:
        raise ValueError(
            f"{path}: cannot be read as the state of this run ({error}); start again in another directory, with"
            " --warm-start from the best adapter of this one"
        ) from error
    return counters
