"""`run.json`: the settings and the data of a run. Its directory takes no other run, except one that extends it."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from orthrus.checkpoint.hub import Checkpoint
from orthrus.file_cache import save_json, write_atomically
from orthrus.training.config import TrainConfig
from orthrus.training.data import Corpus

RUN = "run.json"
EXTEND, DECAY = "recipe.extend", "recipe.decay_share"
"""What may change when a run is extended."""


def describe(checkpoint: Checkpoint, config: TrainConfig, corpus: Corpus, processes: int) -> dict[str, Any]:
    """What a run is started with."""
    return {
        "recipe": json.loads(json.dumps(asdict(config))),
        "data": {"sha256": corpus.digest, "documents": len(corpus.documents), "sources": corpus.sources},
        "backbone_sha256": checkpoint.backbone.sha256,
        "dtype": str(checkpoint.decoder.dtype).removeprefix("torch."),
        "view_at_start": checkpoint.view,
        "warm_start": checkpoint.provenance or None,
        "processes": processes,
    }


def write(directory: Path, description: dict[str, Any]) -> None:
    """Write the file, atomically. Raises OSError."""
    write_atomically(directory, {RUN: lambda path: save_json(path, description)})


def previous(directory: Path, description: dict[str, Any], config: TrainConfig) -> TrainConfig | None:
    """The settings of the run in a directory, None where there is none.

    They are those of `config`, with a shorter end if `config` extends the run. Settings that the run did not know yet
    had their default. Raises ValueError if it is another run.
    """
    path = directory / RUN
    if not path.exists():
        return None
    before = _flat({"recipe": asdict(TrainConfig())}) | _flat(json.loads(path.read_text(encoding="utf-8")))
    now = _flat(description)
    may_change = {EXTEND, DECAY} if before[EXTEND] < now[EXTEND] else {EXTEND}
    changed = [
        f"{k} was {before.get(k)!r}, is {now.get(k)!r}" for k in now.keys() - may_change if before.get(k) != now[k]
    ]
    if changed:
        raise ValueError(
            f"{path}: the run was started with other settings ({'; '.join(sorted(changed))}); use another --output"
        )
    if before[EXTEND] > now[EXTEND]:
        raise ValueError(
            f"{path}: the run was extended by {before[EXTEND]} steps; --extend {before[EXTEND]} goes on with it, and a"
            " larger number extends it further"
        )
    return replace(config, extend=before[EXTEND], decay_share=before[DECAY])


def _flat(content: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested dict flattened to dotted keys."""
    flat = {}
    for key, value in content.items():
        flat.update(_flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value})
    return flat
