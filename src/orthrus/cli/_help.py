"""The help of the commands: options in panels, and no name or word cut off at any width.

Help texts are plain text: brackets in them are brackets, never markup.
"""

from __future__ import annotations

import inspect
import re
import shutil
import textwrap
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.panel import Panel
from rich.text import Text
from typer.core import TyperCommand, TyperGroup

if TYPE_CHECKING:
    Record = tuple[str, str]

OWN, INPUT, SAMPLING, STOPPING, DRAFTING, CONSTRAINTS, LOADING, OUTPUT = PANELS = (
    "Options", "Input", "Sampling", "Stopping", "Drafting", "Constraints", "Loading", "Output",
)  # fmt: skip
"""The panels in the order in which they are shown; an option that names none is in the first."""
MAX_WIDTH, BESIDE = 120, 76
"""Columns: the widest help; the narrowest in which a description stands beside its option, not below it."""
MARGIN, INDENT, WIDEST_NAME = 4, 4, 32
"""Columns: of a panel's borders; before a description below its option; of a name in the line of its description."""
TYPE = re.compile(r" (<[^>]+>|[A-Z]\S*)")


class HelpCommand(TyperCommand):
    """A command whose help is printed by this module."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the usage, the description, and a panel of options for each purpose."""
        formatter.write(_rendered(_page(self, ctx)))


class HelpGroup(TyperGroup):
    """A group of commands whose help is printed by this module."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the usage, the description, the options and the commands."""
        named = [(name, self.get_command(ctx, name)) for name in self.list_commands(ctx)]
        commands = [(name, _first_paragraph(command.help or "")) for name, command in named if command is not None]
        formatter.write(_rendered([*_page(self, ctx), ("Commands", commands)]))


def _page(command: TyperCommand | TyperGroup, ctx: Any) -> list[RenderableType | tuple[str, list[Record]]]:
    """Usage and description, then the title of each panel with its records."""
    page: list[Any] = [command.get_usage(ctx), *inspect.cleandoc(command.help or "").split("\n\n")]
    panels: dict[str, list[Record]] = {}
    for param in command.get_params(ctx):
        record = param.get_help_record(ctx)
        if record is None:
            continue
        if param.param_type_name == "argument":
            panel = "Arguments"
        elif param.name == "help":
            panel = OUTPUT if OUTPUT in panels else OWN
        else:
            panel = getattr(param, "rich_help_panel", None) or OWN
        panels.setdefault(panel, []).append(record)
    order = ["Arguments", *PANELS]
    return [*page, *sorted(panels.items(), key=lambda item: order.index(item[0]))]


def _rendered(page: Iterable[Any]) -> str:
    width = min(shutil.get_terminal_size().columns, MAX_WIDTH)
    console = Console(width=width, highlight=False)
    with console.capture() as capture:
        for part in page:
            if isinstance(part, str):
                console.print(Padding(Text(" ".join(part.split())), (0, 1, 1, 1)))
            else:
                title, records = part
                console.print(Panel(_records(records, width - MARGIN), title=title, title_align="left"))
    return capture.get()


def _records(records: list[Record], width: int) -> Group:
    """Names with their descriptions, beside them where there is room, else below."""
    names = [_short_type(name) for name, _ in records]
    column = max((len(name) for name in names if len(name) <= WIDEST_NAME), default=0) + 2
    beside = width + MARGIN >= BESIDE
    indent = column if beside else INDENT
    lines: list[Text] = []
    for name, (_, description) in zip(names, records, strict=True):
        wrapped = textwrap.wrap(description, width - indent, break_on_hyphens=False)
        first = wrapped.pop(0) if wrapped and beside and len(name) + 2 <= column else ""
        line = Text(name.ljust(column) if first else name, style="bold cyan")
        for match in TYPE.finditer(name):
            line.stylize("not bold yellow", *match.span())
        lines.append(line.append(first, style="not bold default"))
        lines.extend(Text(" " * indent + text) for text in wrapped)
    return Group(*lines)


def _short_type(name: str) -> str:
    """An option's name and type: of one that may be repeated the type of one value, of a bounded one the plain type."""
    return name.replace("<list[", "<").replace("]>", ">").replace(" range>", ">").replace("<Path>", "<path>")


def _first_paragraph(text: str) -> str:
    return " ".join(inspect.cleandoc(text).split("\n\n")[0].split())
