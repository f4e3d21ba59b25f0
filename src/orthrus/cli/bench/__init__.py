"""`orthrus bench`: measure, with provenance. One file per measurement, found by listing this folder."""

from __future__ import annotations

import importlib
import pkgutil

import typer

app = typer.Typer(help="Measure, with provenance.", no_args_is_help=True)


@app.callback()
def _bench() -> None:
    """Measure, with provenance."""


for _module in sorted(pkgutil.iter_modules(__path__), key=lambda found: found.name):
    _verb = importlib.import_module(f"{__name__}.{_module.name}")
    app.command(name=_module.name.replace("_", "-"))(_verb.command)
