"""`orthrus bench report`: results as one HTML page, or as Markdown tables."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def command(
    files: Annotated[list[Path], typer.Argument(help="Files with the output of `orthrus bench ... --json`.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="HTML file to write.")] = Path("report.html"),
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the tables in Markdown instead.")] = False,
    headlines: Annotated[
        bool, typer.Option("--headlines", help="Print only the headline figures, in one Markdown table.")
    ] = False,
) -> None:
    """Write results into one self-contained HTML page with tables, charts and the provenance of every figure."""
    from orthrus.bench import report

    missing = [str(file) for file in files if not file.is_file()]
    if missing:
        raise ValueError(f"no such file: {', '.join(missing)}")
    if markdown or headlines:
        print(report.headlines(files) if headlines else report.markdown(files))
        return
    output.write_text(report.page(files), encoding="utf-8")
    print(f"{output}: {len(files)} results")
