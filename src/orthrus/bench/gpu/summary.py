"""The results of a folder as one table, and what to do about them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from orthrus.bench.gpu.parts import PARTS
from orthrus.file_cache import save_bytes, save_json, write_atomically

ALL, PAGE = "all.json", "summary.md"


def records_in(folder: Path) -> dict[str, dict[str, Any]]:
    """The records of the parts, in their order."""
    files = {name: folder / f"{name}.json" for name in PARTS}
    return {name: json.loads(file.read_text(encoding="utf-8")) for name, file in files.items() if file.is_file()}


def write(folder: Path, machine: dict[str, Any], *, dry_run: bool = False) -> str:
    """Write `all.json`, every record in one file, and `summary.md`. Returns the text of the latter."""
    records = records_in(folder)
    text = ("A dry run: its figures mean nothing.\n\n" if dry_run else "") + page(records, machine)
    write_atomically(folder, {
        ALL: lambda path: save_json(path, {"machine": machine, "parts": records}),
        PAGE: lambda path: save_bytes(path, text.encode()),
    })  # fmt: skip
    return text


def page(records: dict[str, dict[str, Any]], machine: dict[str, Any]) -> str:
    """Markdown: a line per part, and advice."""
    lines = [", ".join(f"{name} {value}" for name, value in machine.items() if value is not None), ""]
    lines += ["| part | status | seconds | result |", "|---|---|---|---|"]
    lines += [_row(name, record) for name, record in records.items()]
    advice = [f"- {name}: {one}" for name, record in records.items() for one in _advice(name, record)]
    missing = [name for name in PARTS if name not in records]
    if missing:
        advice.append(f"- not measured yet: {', '.join(missing)}; the same command goes on")
    return "\n".join([*lines, "", "What to do:", "", *(advice or ["- nothing: all parts are as hoped"]), ""])


def _row(name: str, record: dict[str, Any]) -> str:
    result = record.get("result")
    said = PARTS[name].headline(result) if result else (record.get("output") or "-").splitlines()[-1][:200]
    return f"| {name} | {record['status']} | {record['seconds']:.0f} | {said.replace('|', '/')} |"


def _advice(name: str, record: dict[str, Any]) -> list[str]:
    found = PARTS[name].advice(record["result"]) if record.get("result") else []
    if record["status"] == "failed":
        found.append(f"it failed: see `output` in {name}.json, then repeat it with `--parts {name} --again`")
    if record["status"] == "time limit":
        found.append(f"it reached its time limit; what it had measured is kept. `--parts {name} --again` repeats it")
    return found
