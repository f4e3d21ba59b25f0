"""The file of the demo model in parts small enough to be copied, joined again with a check of its sha256."""

from __future__ import annotations

import hashlib
import json
import shutil
from functools import partial
from pathlib import Path

from orthrus.file_cache import save_bytes, save_json, write_atomically

PART_BYTES = 50_000_000
CONTENTS = "contents.json"


def split(file: Path, folder: Path, size: int = PART_BYTES) -> list[Path]:
    """Write a file in parts of at most `size` bytes, and their contents (name, sha256, number of parts)."""
    whole = hashlib.sha256()
    parts: list[Path] = []
    with file.open("rb") as source:
        while data := source.read(size):
            whole.update(data)
            parts.append(folder / f"part-{len(parts)}")
            write_atomically(folder, {parts[-1].name: partial(save_bytes, data=data)})
    contents = {"name": file.name, "sha256": whole.hexdigest(), "parts": len(parts)}
    write_atomically(folder, {CONTENTS: lambda path: save_json(path, contents)})
    return parts


def join(folder: Path, output: Path) -> Path:
    """Join the parts into a file of the original name in `output`, unless it is there. Returns its path.

    Raises ValueError if parts are missing, or are not those of the original file.
    """
    if not (folder / CONTENTS).is_file():
        raise ValueError(
            f"{folder}: no {CONTENTS} here; `orthrus bench gpu --split-model FOLDER` writes it and the parts"
        )
    contents = json.loads((folder / CONTENTS).read_text(encoding="utf-8"))
    target = output / Path(contents["name"]).name
    if target.is_file() and _sha256(target) == contents["sha256"]:
        return target
    parts = [folder / f"part-{number}" for number in range(contents["parts"])]
    missing = [part.name for part in parts if not part.is_file()]
    if missing:
        raise ValueError(f"{folder}: {', '.join(missing)} of {contents['parts']} parts are missing")

    def write(path: Path) -> None:
        with path.open("wb") as whole:
            for part in parts:
                with part.open("rb") as source:
                    shutil.copyfileobj(source, whole)
        if _sha256(path) != contents["sha256"]:
            raise ValueError(f"{folder}: the joined parts are not the original file (another sha256): copy them again")

    write_atomically(output, {target.name: write})
    return target


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
