"""`orthrus chat`: a conversation in the terminal, with statistics after each answer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from orthrus.cli._sampling import ContextOption, check_context
from orthrus.cli._shared import (
    AdapterOption,
    AllowOption,
    CacheOption,
    CycleOption,
    DeviceOption,
    Dtype,
    DtypeOption,
    ModelOption,
    QuantizeOption,
    load_model,
    print_notice,
    without_none,
)

if TYPE_CHECKING:
    from orthrus.api import Chunk, Message, Options, Result

HELP = "/reset forgets the conversation, /undo the last exchange, /system TEXT sets the system message, /exit leaves."


def command(
    model: ModelOption = "smollm2-demo",
    adapter: AdapterOption = None,
    system: Annotated[str | None, typer.Option(help="System message.")] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Maximum tokens per answer.", min=1)] = 512,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.0,
    top_p: Annotated[float, typer.Option(help="Keep the smallest set of tokens with this probability.")] = 1.0,
    seed: Annotated[int | None, typer.Option(help="Seed for sampling; without it one is drawn.")] = None,
    cycle: CycleOption = None,
    rule: Annotated[str, typer.Option(help="exact or rejection; see generate.")] = "exact",
    color: Annotated[bool, typer.Option(help="Show accepted drafts in green as they come.")] = True,
    dtype: DtypeOption = Dtype.bfloat16,
    device: DeviceOption = "cpu",
    quantize: QuantizeOption = None,
    cache: CacheOption = True,
    ctx_size: ContextOption = None,
    allow_other_backbone: AllowOption = False,
) -> None:
    """Chat with a model, history included. Ctrl-C stops an answer, Ctrl-D or /exit leaves."""
    from orthrus.options import Settings

    options: Options = without_none(  # type: ignore[assignment]
        max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p, seed=seed, cycle=cycle, rule=rule
    )
    Settings.of(options)
    check_context(ctx_size)
    loaded = load_model(model, adapter, dtype, device, allow_other_backbone, quantize, cache, ctx_size)
    if not loaded.checkpoint.text.chat_template:
        raise ValueError("this tokenizer has no chat template; use `orthrus generate --raw` to continue a text")
    engine = loaded.engine(**options)
    print_notice(loaded)
    console = Console(highlight=False)
    console.print(f"{loaded.checkpoint.backbone.id}, diffusion view: {loaded.checkpoint.view}. {HELP}", style="dim")
    history: list[Message] = []
    while True:
        try:
            line = console.input("[bold]> [/]").strip()
        except (EOFError, KeyboardInterrupt):
            console.print()
            return
        if line == "/exit":
            return
        if line.startswith("/"):
            history, system = _run_slash_command(console, line, history, system)
        elif line:
            opening: list[Message] = [{"role": "system", "content": system}] if system else []
            asked: list[Message] = [*history, {"role": "user", "content": line}]
            text = _answer(console, partial(loaded.stream, engine=engine, **options), [*opening, *asked], color=color)
            history = [*asked, {"role": "assistant", "content": text}]


def _run_slash_command(
    console: Console, line: str, history: list[Message], system: str | None
) -> tuple[list[Message], str | None]:
    """Run a line that begins with a slash. Returns the new history and system message."""
    if line == "/reset":
        return [], system
    if line == "/undo":
        return history[:-2], system
    if line.startswith("/system"):
        return history, line.removeprefix("/system").strip() or None
    console.print(HELP, style="dim")
    return history, system


def _answer(
    console: Console, stream: Callable[[list[Message]], Iterator[Chunk]], messages: list[Message], *, color: bool
) -> str:
    """Stream one answer and print its statistics. After Ctrl-C the partial answer is kept."""
    text, result = "", None
    try:
        for chunk in stream(messages):
            for piece in chunk.pieces:
                console.print(
                    piece.text, style="green" if piece.drafted and color else "", end="", markup=False, soft_wrap=True
                )
            text += chunk.text
            result = chunk.result
    except KeyboardInterrupt:
        console.print(" [stopped]", style="yellow", markup=False)
        return text
    except ValueError as error:  # the conversation no longer fits the context: report it and keep chatting
        console.print(f"{error} (/reset or /undo makes room)", style="yellow", markup=False)
        return text
    console.print()
    if result is not None:
        console.print(_statistics(result), style="dim")
    return text


def _statistics(result: Result) -> str:
    s = result.statistics
    speed = s.generated / s.seconds if s.seconds else 0.0
    drafts = f", {s.acceptance_length:.2f} drafts accepted per cycle" if s.drafted else ""
    kept = f"; {s.cached_tokens} of {result.prompt_tokens} prompt tokens kept from before" if s.cached_tokens else ""
    return f"{s.generated} tokens in {s.passes} passes ({s.tpf:.2f} per pass{drafts}), {speed:.1f} tokens/s{kept}"
