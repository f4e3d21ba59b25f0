"""One self-contained HTML page, with charts, from the JSON output of `orthrus bench ... --json`."""

from __future__ import annotations

import base64
import html
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from importlib.util import find_spec
from pathlib import Path
from typing import Any

Record = dict[str, Any]
Cell = Callable[[Record], str]

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
table { border-collapse: collapse; margin: 1rem 0 } th, td { padding: .25rem .7rem; text-align: right }
th { border-bottom: 2px solid #2f6690; font-weight: 600 } td { border-bottom: 1px solid #ddd }
th:first-child, td:first-child, .left { text-align: left } img { max-width: 100% }
p.from { color: #666; font-size: 13px } code { background: #f2f4f7; padding: .1rem .3rem }
"""


def _spread(middle: float, ends: list[float], digits: int = 2) -> str:
    low, high = ends
    return f"{middle:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def _speedup(record: Record) -> str:
    return "" if record["absent"] else _spread(record["ours_over"], record["ours_over_quartiles"])


@dataclass(frozen=True)
class Section:
    """How to display records of one kind: a title, and columns as (heading, cell)."""

    title: str
    columns: list[tuple[str, Cell]]


SECTIONS = {
    "acceptance": Section("Acceptance of two-pass cycles", [
        ("part", lambda r: r["part"]), ("drafts", lambda r: r.get("drafts", "chain")),
        ("prompts", lambda r: str(r["prompts"])),
        ("A (95 %)", lambda r: _spread(r["acceptance_length"], r["interval"])),
        ("loops", lambda r: str(r.get("loops", ""))),
        ("A without loops", lambda r: _spread(*r["without_loops"]) if r.get("without_loops") else ""),
        ("tokens per pass (95 %)", lambda r: _spread(r["tpf"], r["tpf_interval"])),
        ("rows per pass", lambda r: f"{r['rows_per_pass']:.1f}"),
    ]),
    "speed": Section("Speed of cycles, batch 1, settings interleaved per prompt", [
        ("part", lambda r: r["part"]), ("setting", lambda r: r["setting"]), ("prompts", lambda r: str(r["prompts"])),
        ("A", lambda r: f"{r['acceptance_length']:.2f}"), ("tokens per pass", lambda r: f"{r['tpf']:.2f}"),
        ("rows per pass", lambda r: f"{r['rows_per_pass']:.1f}"),
        ("tokens/s (quartiles)", lambda r: _spread(r["speed"], r["quartiles"], 0)),
        ("speedup over the first setting", lambda r: _spread(r["over_plain"], r["over_plain_quartiles"])),
        ("same tokens", lambda r: f"{r['identical']} of {r['prompts']}"),
    ]),
    "passes": Section("Time per pass", [
        ("pass", lambda r: r["kind"]), ("context", lambda r: f"{r['context']:,}"), ("rows", lambda r: str(r["rows"])),
        ("ms (quartiles)", lambda r: _spread(1e3 * r["seconds"], [1e3 * q for q in r["quartiles"]])),
        ("x one row", lambda r: f"{r['over_one_row']:.2f}"),
    ]),
    "sides": Section("Against peers, greedy, batch 1, systems interleaved per prompt", [
        ("part", lambda r: r["part"]), ("system", lambda r: r["name"]), ("prompts", lambda r: str(r["prompts"])),
        ("tokens/s (quartiles)", lambda r: r["absent"] or _spread(r["speed"], r["quartiles"], 0)),
        ("speedup of orthrus auto", _speedup),
        ("ms to the first token", lambda r: "" if r["absent"] else f"{1e3 * r['first_token']:.0f}"),
        ("same tokens", lambda r: f"{r['identical']} of {r['prompts']}"),
    ]),
    "memory": Section("Bytes of one sequence", [
        ("context", lambda r: f"{r['context']:,}"), ("cache", lambda r: f"{r['cache']:,}"),
        ("workspace of plain decoding", lambda r: f"{r['plain']:,}"),
        ("extra, two-pass", lambda r: f"{r['two_pass']:,}"), ("extra, one-pass", lambda r: f"{r['one_pass']:,}"),
    ]),
    "scores": Section("Accuracy", [
        ("cycle", lambda r: r["cycle"]), ("right", lambda r: f"{r['right']} of {r['prompts']}"),
        ("same tokens", lambda r: f"{r['identical']} of {r['prompts']}"),
    ]),
}  # fmt: skip


TASKS = {"HumanEval": "humaneval", "MBPP": "mbpp", "GSM8K": "gsm8k", "Spec-Bench": "spec_bench, all"}
"""The columns of the headline table: a task, and what its part is called in the results."""


@dataclass(frozen=True)
class Headline:
    """A row of the headline table: its text, the results it is read from, and the figure of a record.

    names: a pattern for `setting`, `name` or `drafts` of the record; the fastest such record of a task is shown.
    int8: whether the results must be of int8 activations, the default for GGUF files; None: either.
    """

    text: str
    kind: str
    cell: Cell
    names: str = ""
    int8: bool | None = True


HEADLINES = (
    Headline("A, accepted drafts per two-pass cycle, trees of 8", "acceptance",
             lambda r: f"{r['acceptance_length']:.2f}", "tree of 8", int8=None),
    Headline("tokens per forward pass, two-pass, trees of 8", "acceptance", lambda r: f"{r['tpf']:.2f}", "tree of 8",
             int8=None),
    Headline("speed-up of `auto` over plain decoding", "speed",
             lambda r: _spread(r["over_plain"], r["over_plain_quartiles"]), "auto"),
    Headline("tokens/s, Orthrus `auto`", "sides", lambda r: f"{r['speed']:.0f}", "orthrus auto"),
    Headline("tokens/s, Orthrus plain decoding", "sides", lambda r: f"{r['speed']:.0f}", "orthrus ar"),
    Headline("tokens/s, llama.cpp", "sides", lambda r: f"{r['speed']:.0f}", "llama.cpp*"),
    Headline("bfloat16: tokens/s, Orthrus `auto`", "sides", lambda r: f"{r['speed']:.0f}", "orthrus auto", int8=False),
    Headline("bfloat16: tokens/s, Orthrus plain decoding", "sides", lambda r: f"{r['speed']:.0f}", "orthrus ar",
             int8=False),
    Headline("bfloat16: tokens/s, llama.cpp", "sides", lambda r: f"{r['speed']:.0f}", "llama.cpp*", int8=False),
)  # fmt: skip


def headlines(files: list[Path]) -> str:
    """The headline figures of these results in Markdown: a row each, a column for each task; medians."""
    contents = [_read(file) for file in files]
    lines = [f"| | {' | '.join(TASKS)} | prompts per task | processor |", f"|{'---|' * (len(TASKS) + 3)}"]
    for headline in HEADLINES:
        for kind, content in contents:
            provenance = content["provenance"]
            if kind != headline.kind or headline.int8 not in (None, "int8" in provenance["kernels"]):
                continue
            if kind == "speed" and content[kind][0]["setting"] != "ar":
                continue  # its factors are relative to another setting than plain decoding
            shown = [_headline_record(content[kind], headline.names, part) for part in TASKS.values()]
            cells = [headline.cell(record) if record else "" for record in shown]
            counts = dict.fromkeys(str(record["prompts"]) for record in shown if record)
            processor = provenance["machine"]["cpu"]
            lines.append(f"| {headline.text} | {' | '.join(cells)} | {', '.join(counts)} | {processor} |")
    return "\n".join(lines)


def _headline_record(records: list[Record], names: str, part: str) -> Record | None:
    """The fastest record of a part whose setting, name or drafts match `names`; None where there is none."""
    matching = [
        record for record in records
        if record["part"] == part and not record.get("absent")
        and fnmatchcase(record.get("setting") or record.get("name") or record.get("drafts") or "", names)
    ]  # fmt: skip
    return max(matching, key=lambda record: record.get("speed", 0.0), default=None)


def page(files: list[Path]) -> str:
    """The HTML page. Raises ValueError, naming the file, if a file is not the result of a benchmark."""
    parts = []
    for file in files:
        kind, content = _read(file)
        parts.append(_section(SECTIONS[kind], content[kind], content["provenance"], _picture(kind, content[kind])))
    body = "\n".join(parts)
    title = "Orthrus: measured"
    head = f"<!doctype html><html lang=en><meta charset=utf-8><title>{title}</title><style>{STYLE}</style>"
    return f"{head}\n<h1>{title}</h1>\n{body}\n</html>\n"


def markdown(files: list[Path]) -> str:
    """The tables in Markdown, each with its provenance. Parts with one prompt are omitted if there are larger ones."""
    parts = []
    for file in files:
        kind, content = _read(file)
        section, provenance = SECTIONS[kind], content["provenance"]
        heads = [name for name, _ in section.columns]
        records = [record for record in content[kind] if record.get("prompts") != 1] or content[kind]
        lines = [" | ".join(cell(record) for _, cell in section.columns) for record in records]
        rule = "|".join("---" for _ in heads)
        table = "\n".join(f"| {line} |" for line in [" | ".join(heads), *lines])
        first, _, rest = table.partition("\n")
        where = f"{section.title} ({_origin(provenance)}):"
        parts.append(f"{where}\n\n{first}\n|{rule}|\n{rest}\n\n`{provenance['command']}`")
    return "\n\n".join(parts)


def _read(file: Path) -> tuple[str, Record]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        return next(kind for kind in SECTIONS if kind in content), content
    except (ValueError, TypeError, StopIteration) as error:
        raise ValueError(
            f"{file}: not what a benchmark of {', '.join(SECTIONS)} prints with --json; there are no tables for others"
        ) from error


def _origin(provenance: Record) -> str:
    machine = provenance["machine"]
    kernels = provenance.get("kernels")
    parts = [provenance["model"], provenance["dtype"], kernels, f"{machine['cores']} cores of {machine['cpu']}",
             f"torch {machine['torch']}"]  # fmt: skip
    return ", ".join(part for part in parts if part)


def _section(section: Section, records: list[Record], provenance: Record, picture: str) -> str:
    head = "".join(f"<th>{html.escape(name)}</th>" for name, _ in section.columns)
    rows = "\n".join(
        "<tr>" + "".join(f"<td>{html.escape(cell(record))}</td>" for _, cell in section.columns) + "</tr>"
        for record in records
    )
    origin = f"{html.escape(_origin(provenance))}, {provenance['time']}"
    return (
        f"<h2>{html.escape(section.title)}</h2>\n{picture}<table><tr>{head}</tr>\n{rows}</table>\n"
        f"<p class=from>{origin}<br><code>{html.escape(provenance['command'])}</code></p>"
    )


def _picture(kind: str, records: list[Record]) -> str:
    """A bar chart of tokens per second, or lines of milliseconds by rows; empty for other kinds."""
    if kind not in ("speed", "sides", "passes"):
        return ""
    if find_spec("matplotlib") is None:
        return "<p>The picture needs matplotlib: <code>pip install 'orthrus-lm[bench]'</code>\n"
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    shown = [record for record in records if not record.get("absent")]
    figure, axis = pyplot.subplots(figsize=(9, max(2.5, 0.28 * len(shown)) if kind != "passes" else 4))
    if kind == "passes":
        for context in sorted({record["context"] for record in shown}):
            own = [record for record in shown if record["context"] == context and record["kind"] == "ar"]
            axis.plot(
                [r["rows"] for r in own], [1e3 * r["seconds"] for r in own], "o-", label=f"{context:,} cached tokens"
            )
        axis.set(xscale="log", xlabel="rows of an AR pass", ylabel="ms", ylim=(0, None))
        axis.legend()
    else:
        names = [f"{r['part']}: {r.get('setting') or r['name']}" for r in shown][::-1]
        axis.barh(names, [r["speed"] for r in shown][::-1], color="#2f6690")
        axis.set_xlabel("tokens per second")
    figure.tight_layout()
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=110)
    pyplot.close(figure)
    return f'<img alt="" src="data:image/png;base64,{base64.b64encode(data.getvalue()).decode()}">\n'
