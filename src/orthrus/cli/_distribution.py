"""The part of `orthrus verify` that compares distributions."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from orthrus.cli._shared import progress

if TYPE_CHECKING:
    from orthrus.api import Model, Options

LEAST_P = 0.001
"""Below this the two distributions are called different: a false alarm in a thousand."""


def compare_distributions(model: Model, prompt: str, samples: int, options: Options, *, as_json: bool) -> bool:
    """Sample a prompt by `rejection` and plainly; print how far apart the first tokens are; whether that is chance."""
    from orthrus.bench import distribution, provenance

    seed = options.get("seed") or 0
    ways: list[tuple[str, Options]] = [
        ("rejection", {**options, "cycle": "two-pass", "rule": "rejection", "seed": seed}),
        ("plain sampling", {**options, "cycle": "ar", "seed": seed + samples}),
    ]
    found = [
        list(progress(distribution.first_tokens(model, prompt, chosen, samples), name, samples))
        for name, chosen in ways
    ]
    agreements = distribution.compare(found[0], found[1])
    same = all(a.p_value >= LEAST_P for a in agreements)
    if as_json:
        record = {"samples": samples, "agreements": [asdict(a) for a in agreements], "same": same}
        print(json.dumps({**record, "provenance": provenance.of_run(model)}, indent=2))
        return same
    console = Console(highlight=False)
    table = Table(
        title=f"{samples} samples by rejection against {samples} by plain sampling, T = {options['temperature']:g}"
    )
    for column in ("of", "distinct", "total variation", "by chance: median", "95 %", "p"):
        table.add_column(column, justify="left" if column == "of" else "right")
    for a in agreements:
        figures = (a.distance, a.chance, a.limit, a.p_value)
        table.add_row(a.what, str(a.distinct), *(f"{figure:.3f}" for figure in figures))
    console.print(table)
    console.print(
        "the distributions agree within the sampling error" if same else "the distributions DIFFER, which is a defect",
        style="bold green" if same else "bold red",
    )
    return same
