"""The command line: one module per command, discovered by listing this package.

Commands import torch and transformers only when they run, so `--help` is fast. Where the arguments name a command, only
its module is imported.
"""

from __future__ import annotations

import importlib
import os
import pkgutil
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from orthrus import torch_threads
from orthrus.backends.native import levels
from orthrus.cli._help import HelpCommand, HelpGroup


def commands() -> list[str]:
    """The names of all commands."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_"))


def build(names: Sequence[str]) -> typer.Typer:
    """Build the Typer application with the commands of these names."""
    app = typer.Typer(
        help="Lossless parallel token generation: several tokens per forward pass, the same text as the base model.",
        no_args_is_help=True,
        cls=HelpGroup,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )

    @app.callback(invoke_without_command=True)
    def orthrus(
        version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
    ) -> None:
        if version:
            print(importlib.import_module("orthrus").__version__)
            raise typer.Exit

    for name in names:
        command = importlib.import_module(f"{__name__}.{name}")
        if hasattr(command, "app"):
            app.add_typer(command.app, name=name)
        else:
            app.command(name=name, cls=HelpCommand)(command.command)
    return app


def main() -> None:
    """Run the command line. A ValueError is for the user to fix: it becomes one message and exit code 2."""
    torch_threads.wait_briefly()
    available = commands()
    named = [argument for argument in sys.argv[1:2] if argument in available]
    try:
        if os.environ.get(levels.MARCH):
            levels.asked()
        build(named or available)()
    except ValueError as error:
        _fail(str(error), 2)
    except KeyboardInterrupt:
        _fail("interrupted", 130)
    except OSError as error:
        _fail(_told(error), 1)


def _told(error: OSError) -> str:
    """Which file it is about, and what went wrong with it, without the number of the error."""
    what = error.strerror or str(error)
    return what if error.filename is None else f"{error.filename}: {what}"


def _fail(message: str, code: int) -> None:
    print(f"orthrus: {message}", file=sys.stderr)
    sys.exit(code)
