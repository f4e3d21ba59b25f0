"""`orthrus pack`: a directory of distilled records as one compressed file."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer


def command(
    directory: Annotated[Path, typer.Argument(help="Directory that `orthrus distill` wrote.")],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="File to write.", show_default="the directory's name and .jsonl.xz"),
    ] = None,
) -> None:
    """Write distilled records as one file, a twelfth as large, which `orthrus train --data` reads like the directory.

    It holds the token ids and not the texts, so `orthrus bench overlap` must see the directory first.
    """
    from orthrus.file_cache import save_bytes, write_atomically
    from orthrus.training.shards import PACKED, packed

    path = output or directory.with_name(directory.resolve().name + PACKED)
    if not path.name.endswith(PACKED):
        raise ValueError(f"--output {path}: the name must end with {PACKED}, by which `orthrus train` knows such files")
    content = packed(directory)
    write_atomically(path.parent, {path.name: partial(save_bytes, data=content)})
    print(f"{path}: {len(content) / 1e3:,.0f} kB")
