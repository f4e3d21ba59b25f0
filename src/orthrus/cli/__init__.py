"""The command line: one file per verb, found by listing this folder. Heavy imports wait until a verb runs."""

from __future__ import annotations

import importlib
import os
import pkgutil
import sys

import typer

app = typer.Typer(
    help="Lossless parallel token generation: several tokens per forward pass, the same text as the base model.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _register() -> None:
    for module in sorted(pkgutil.iter_modules(__path__), key=lambda found: found.name):
        if not module.name.startswith("_"):
            verb = importlib.import_module(f"{__name__}.{module.name}")
            if hasattr(verb, "app"):
                app.add_typer(verb.app, name=module.name)
            else:
                app.command(name=module.name)(verb.command)


def main() -> None:
    """Run the command line; errors that a user can mend are one message and exit code 2."""
    _register()
    try:
        app()
    except ValueError as error:
        _fail(str(error), 2)
    except KeyboardInterrupt:
        _fail("interrupted", 130)
    except BrokenPipeError:
        # the reader has gone; keep the interpreter from complaining about it on exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except OSError as error:
        _fail(str(error), 1)


def _fail(message: str, code: int) -> None:
    print(f"orthrus: {message}", file=sys.stderr)
    sys.exit(code)
