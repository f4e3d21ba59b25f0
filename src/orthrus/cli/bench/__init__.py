"""`orthrus bench`: benchmarks with provenance. One module per benchmark, discovered by listing this package."""

from __future__ import annotations

import importlib
import pkgutil

import typer

from orthrus.cli._help import HelpCommand, HelpGroup

app = typer.Typer(
    help="Run benchmarks. Results record model, machine, versions and command.", no_args_is_help=True, cls=HelpGroup
)


@app.callback()
def _bench() -> None:
    """Run benchmarks. Results record model, machine, versions and command."""


for _module in sorted(pkgutil.iter_modules(__path__), key=lambda info: info.name):
    _command = importlib.import_module(f"{__name__}.{_module.name}")
    app.command(name=_module.name.replace("_", "-"), cls=HelpCommand)(_command.command)
