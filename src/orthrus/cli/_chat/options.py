"""The options of `orthrus chat` that differ from those of `generate`: without a value, the checkpoint or the server
decides."""

from __future__ import annotations

from typing import Annotated

import typer

from orthrus.cli._help import DRAFTING, INPUT, LOADING, OUTPUT, SAMPLING, STOPPING

ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model", "-m",
        help="A name of `orthrus models`, a checkpoint directory, a .gguf file, or a hub id (owner/name); with --url, a"
        " model of the server.",
        show_default="smollm2-demo; with --url, the first model of the server", rich_help_panel=LOADING),
]  # fmt: skip
SystemOption = Annotated[str | None, typer.Option(help="System message.", rich_help_panel=INPUT)]
MaxNewTokensOption = Annotated[
    int | None,
    typer.Option(
        "--max-new-tokens",
        "--max-tokens",
        "-n",
        help="Maximum tokens per answer.",
        show_default="512",
        rich_help_panel=STOPPING,
    ),
]
MinNewTokensOption = Annotated[
    int | None, typer.Option(help="Suppress end tokens until this many tokens.", rich_help_panel=STOPPING)
]
PresencePenaltyOption = Annotated[
    float | None, typer.Option(help="Subtracted once for each generated token.", rich_help_panel=SAMPLING)
]
FrequencyPenaltyOption = Annotated[
    float | None, typer.Option(help="Subtracted each time a token was generated.", rich_help_panel=SAMPLING)
]
RuleOption = Annotated[
    str | None, typer.Option(help="exact (default) or rejection; see generate.", rich_help_panel=DRAFTING)
]
ColorOption = Annotated[bool, typer.Option(help="Show accepted drafts in green as they come.", rich_help_panel=OUTPUT)]
HistoryOption = Annotated[bool, typer.Option(help="Keep the lines you type in a file, for the arrow keys.")]
