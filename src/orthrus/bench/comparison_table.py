"""The tables of a comparison with peers in Markdown: to be read in a terminal of any width, and to be pasted."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from string import ascii_uppercase

from orthrus.bench.compare import System
from orthrus.bench.first_tokens import FirstToken

Row = Sequence[str]
WIDTH = 120
"""The widest caption."""


def called(systems: Sequence[System], width: int) -> dict[str, str]:
    """What the tables call each system: its name or, where the table of speeds would be wider than `width`, a
    letter."""
    names = {system.name: system.name for system in systems if system.absent is None}
    wide = len(speed_table(systems, names)[0]) > width
    return dict(zip(names, ascii_uppercase, strict=False)) if wide else names


def speed_table(systems: Sequence[System], called: Mapping[str, str]) -> list[str]:
    """The lines of the table of speeds; below it a list says which letter stands for which system, if letters do."""
    first, lettered = next(iter(called)), any(name != text for name, text in called.items())
    head = ("task", "system", "tokens/s", f"x {called[first]}", "first token, ms", "same tokens")
    short = ("task", "", "tokens/s", f"x {called[first]}", "first ms", "same")
    rows = [
        _speed_row(system, called[system.name], 1 if lettered else 2) for system in systems if system.absent is None
    ]
    if not lettered:
        return _table(head, rows)
    return [*_table(short, rows), "", *(f"- {letter}: {name}" for name, letter in called.items())]


def first_token_table(times: Sequence[FirstToken], called: Mapping[str, str]) -> list[str]:
    """The lines of the table of times to the first token, in ms: a column for each length of prompt."""
    lengths = sorted({time.prompt_tokens for time in times})
    cells = {(time.name, time.prompt_tokens): _milliseconds(time) for time in times}
    rows = [
        (called[name], *(cells.get((name, length), "") for length in lengths))
        for name in dict.fromkeys(time.name for time in times)
    ]
    return _table(("prompt tokens", *(f"{length:,}" for length in lengths)), rows)


def caption(parts: Sequence[str], width: int) -> list[str]:
    """The lines of a caption of several sentences."""
    return textwrap.wrap(" ".join(parts), min(width, WIDTH), break_long_words=False, break_on_hyphens=False)


def _speed_row(system: System, name: str, decimals: int) -> Row:
    """decimals: of the quartiles of the ratio."""
    (low, high), (ratio_low, ratio_high) = system.quartiles, system.over_first_quartiles
    return (
        system.part, name, f"{system.speed:.1f} ({low:.0f}-{high:.0f})",
        f"{system.over_first:.2f} ({ratio_low:.{decimals}f}-{ratio_high:.{decimals}f})",
        f"{1e3 * system.first_token:.0f}", f"{system.identical}/{system.prompts}",
    )  # fmt: skip


def _milliseconds(time: FirstToken) -> str:
    low, high = time.quartiles
    return f"{1e3 * time.seconds:.0f} ({1e3 * low:.0f}-{1e3 * high:.0f})"


def _table(head: Row, rows: Sequence[Row]) -> list[str]:
    """A Markdown table whose columns are aligned: text to the left, figures to the right."""
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
    left = [column for column in range(len(head)) if head[column] in ("task", "system", "", "prompt tokens")]

    def line(row: Row) -> str:
        cells = (text.ljust(widths[n]) if n in left else text.rjust(widths[n]) for n, text in enumerate(row))
        return f"| {' | '.join(cells)} |"

    rule = "|".join("-" * (widths[n] + 2) if n in left else "-" * (widths[n] + 1) + ":" for n in range(len(head)))
    return [line(head), f"|{rule}|", *map(line, rows)]
