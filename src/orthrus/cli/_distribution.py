"""`orthrus verify --samples`: compare the distributions of rejection and plain sampling."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING

from rich.table import Table

from orthrus.cli._shared import progress, table_console

if TYPE_CHECKING:
    from orthrus.api import Model, Options

SIGNIFICANCE = 0.001
"""A smaller p-value is reported as a difference; equal distributions give one in a thousand times."""


def compare_distributions(model: Model, prompt: str, samples: int, options: Options, *, as_json: bool) -> bool:
    """Sample a prompt by `rejection` and by plain decoding, and print the distance between their first tokens.

    Returns whether chance explains the distance.
    """
    from orthrus.bench import distribution, provenance

    seed = options.get("seed") or 0
    settings: list[tuple[str, Options]] = [
        ("rejection", {**options, "cycle": "two-pass", "rule": "rejection", "seed": seed}),
        ("plain sampling", {**options, "cycle": "ar", "seed": seed + samples}),
    ]
    drawn = [
        list(progress(distribution.first_tokens(model, prompt, chosen, samples), name, samples))
        for name, chosen in settings
    ]
    agreements = distribution.compare(drawn[0], drawn[1])
    same = all(a.p_value >= SIGNIFICANCE for a in agreements)
    if as_json:
        record = {"samples": samples, "agreements": [asdict(a) for a in agreements], "same": same}
        print(json.dumps({**record, "provenance": provenance.of_run(model)}, indent=2))
        return same
    console = table_console()
    table = Table(title=f"{samples} samples by rejection, {samples} by plain sampling, T = {options['temperature']:g}")
    for column in ("compared", "distinct", "total variation", "chance: median", "chance: 95 %", "p-value"):
        table.add_column(column, justify="left" if column == "compared" else "right")
    for a in agreements:
        figures = (a.distance, a.chance, a.limit, a.p_value)
        table.add_row(a.what, str(a.distinct), *(f"{figure:.3f}" for figure in figures))
    console.print(table)
    console.print(
        "the distributions agree within the sampling error" if same else "the distributions DIFFER, which is a defect",
        style="bold green" if same else "bold red",
    )
    return same
