"""`orthrus bench report`: one page of what was measured."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def command(
    files: Annotated[list[Path], typer.Argument(help="What `orthrus bench ... --json` printed, saved into files.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The page.")] = Path("report.html"),
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the tables in Markdown instead.")] = False,
) -> None:
    """Put results into one self-contained HTML page: tables, pictures, and where every figure comes from."""
    from orthrus.bench import report

    missing = [str(file) for file in files if not file.is_file()]
    if missing:
        raise ValueError(f"no such file: {', '.join(missing)}")
    if markdown:
        print(report.markdown(files))
        return
    output.write_text(report.page(files), encoding="utf-8")
    print(f"{output}: {len(files)} results")
