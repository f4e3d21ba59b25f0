"""Distilled records: directories of JSONL shards and a manifest with their sha256, and packed files.

A packed file is JSONL compressed by xz: the manifest without its shards, then the records without their messages. It
takes a twelfth of the room, and training reads it as it reads the directory.
"""

from __future__ import annotations

import hashlib
import json
import lzma
from pathlib import Path
from typing import Any

from orthrus import prompt_files

MANIFEST = "manifest.json"
PACKED = ".jsonl.xz"
"""How the name of a packed file ends."""


class DamagedShardError(ValueError):
    """A shard is missing, or its sha256 is not that of the manifest."""


def read_manifest(directory: Path) -> dict[str, Any]:
    """Read the manifest of a directory of shards. Raises ValueError where it is missing or damaged."""
    path = directory / MANIFEST
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != 1 or not {"backbone", "settings", "shards"} <= content.keys():
            raise ValueError("not of format 1")  # noqa: TRY301
        settings, shards = content["settings"], content["shards"]
        if not isinstance(settings, dict) or not isinstance(content["backbone"]["sha256"], str):
            raise ValueError("`settings` or `backbone` is wrong")  # noqa: TRY004, TRY301
        for entry in shards:
            if Path(entry["file"]).name != entry["file"] or not isinstance(entry["sha256"], str):
                raise ValueError(f"the shard {entry['file']!r} is not a plain file name")  # noqa: TRY301
    except FileNotFoundError:
        raise ValueError(f"{directory}: no {MANIFEST} here; `orthrus distill --output` writes one") from None
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: not a manifest of distilled shards ({error})") from error
    return content


def unfinished(manifest: dict[str, Any]) -> tuple[int, int] | None:
    """The prompts whose shards are written, and the prompts of the whole run; None where the run is complete."""
    size, count = (manifest["settings"].get(name) for name in ("shard_size", "count"))
    if not isinstance(size, int) or not isinstance(count, int):
        return None
    done = size * len(manifest["shards"])
    return None if done >= count else (done, count)


def read_shard(directory: Path, entry: dict[str, Any]) -> list[dict[str, Any]]:
    """Read the records of one shard. Raises DamagedShardError."""
    path = directory / entry["file"]
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        data = b""
    if hashlib.sha256(data).hexdigest() != entry["sha256"]:
        raise DamagedShardError(
            f"{path}: missing or damaged (its sha256 differs from the manifest); run the same `orthrus distill` again"
            " to rewrite it"
        )
    return [record for _, record in prompt_files.lines(data, str(path))]


def is_packed(path: Path) -> bool:
    """Whether a path is that of a packed file."""
    return path.is_file() and path.name.endswith(PACKED)


def read_records(path: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The manifest and all records of a directory of shards, or of a packed file. Raises ValueError."""
    if not is_packed(path):
        manifest = read_manifest(path)
        return manifest, [record for entry in manifest["shards"] for record in read_shard(path, entry)]
    try:
        text = lzma.decompress(path.read_bytes())
    except (lzma.LZMAError, EOFError) as error:
        raise ValueError(f"{path}: not a packed file of `orthrus pack`, or damaged ({error})") from error
    (_, manifest), *records = [*prompt_files.lines(text, str(path))] or [(0, {})]
    if manifest.get("format") != 1 or manifest.get("records") != len(records):
        raise ValueError(f"{path}: not a packed file of `orthrus pack`, or cut short")
    return manifest, [record for _, record in records]


def packed(directory: Path) -> bytes:
    """The content of a packed file of a directory of shards. Raises ValueError."""
    manifest, records = read_records(directory)
    head = {name: content for name, content in manifest.items() if name != "shards"} | {"records": len(records)}
    lean = ({name: content for name, content in record.items() if name != "messages"} for record in records)
    lines = "".join(json.dumps(line, separators=(",", ":")) + "\n" for line in (head, *lean))
    return lzma.compress(lines.encode(), preset=9 | lzma.PRESET_EXTREME)
