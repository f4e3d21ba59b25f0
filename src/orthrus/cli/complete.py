"""`orthrus complete`: code for a place in a file, which the text before and after it decides."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from orthrus.cli import _sampling as sampling
from orthrus.cli._costs import measure_costs_after_answer
from orthrus.cli._defaults import described
from orthrus.cli._footer import Clock, print_footer
from orthrus.cli._help import INPUT, LOADING, OUTPUT, SAMPLING, STOPPING
from orthrus.cli._limits import apply_limits
from orthrus.cli._shared import (
    AdapterOption,
    AllowOption,
    CacheOption,
    CycleOption,
    DeviceOption,
    Dtype,
    DtypeOption,
    QuantizeOption,
    load_model,
    print_notice,
    stderr,
    without_none,
)
from orthrus.prompt_files import decode_utf8

if TYPE_CHECKING:
    from orthrus.api import Model, Options, Result

FileArgument = Annotated[Path, typer.Argument(help="The file to complete.")]
LineOption = Annotated[int, typer.Option("--line", "-l", help="The line of the cursor, from 1.", rich_help_panel=INPUT)]
ColumnOption = Annotated[
    int | None,
    typer.Option(
        help="Its column, from 1: the completion goes before the character there.",
        show_default="the end of the line",
        rich_help_panel=INPUT,
    ),
]
ContextTokensOption = Annotated[
    int,
    typer.Option(
        help="Most tokens of the file that the model reads, whole lines around the cursor: seven eighths before it, an"
        " eighth after it.",
        min=16,
        rich_help_panel=INPUT,
    ),
]
ModelOption = Annotated[
    str,
    typer.Option(
        "--model", "-m", rich_help_panel=LOADING,
        help="A model that can fill in the middle: a name of `orthrus models`, a checkpoint directory, a .gguf file, or"
        " a hub id (owner/name).",
    ),
]  # fmt: skip
MaxTokensOption = Annotated[
    int,
    typer.Option(
        "--max-tokens", "--max-new-tokens", "-n", help="Stop after this many tokens.", min=1, rich_help_panel=STOPPING
    ),
]
LinesOption = Annotated[
    int | None,
    typer.Option(
        help="Stop after this many lines, of which the first has text.",
        min=1, show_default="as many as the model writes", rich_help_panel=STOPPING,
    ),
]  # fmt: skip
TemperatureOption = Annotated[
    float, typer.Option(help="0 is greedy: the same completion each time.", rich_help_panel=SAMPLING)
]
AsJsonOption = Annotated[
    bool, typer.Option("--json", help="Print JSON: the text, and how it came about.", rich_help_panel=OUTPUT)
]


def command(
    file: FileArgument,
    line: LineOption,
    model: ModelOption = "qwen2.5-coder-0.5b",
    column: ColumnOption = None,
    context_tokens: ContextTokensOption = 1024,
    max_tokens: MaxTokensOption = 128,
    lines: LinesOption = None,
    stop: sampling.StopOption = None,
    temperature: TemperatureOption = 0.0,
    top_p: sampling.TopPOption = None,
    top_k: sampling.TopKOption = None,
    seed: sampling.SeedOption = None,
    adapter: AdapterOption = None,
    cycle: CycleOption = None,
    threads: sampling.ThreadsOption = None,
    dtype: DtypeOption = Dtype.bfloat16,
    device: DeviceOption = "cpu",
    quantize: QuantizeOption = None,
    cache: CacheOption = True,
    allow_other_backbone: AllowOption = False,
    as_json: AsJsonOption = False,
) -> None:
    """Complete code in the middle of a file, and print what belongs at the cursor.

    The file stays as it is.
    """
    cursor = Cursor.of(file, line, column)
    options: Any = without_none(
        max_new_tokens=max_tokens, stop=stop, temperature=temperature, top_p=top_p, top_k=top_k, seed=seed, cycle=cycle
    )
    apply_limits(None, threads)
    loaded = load_model(model, adapter, dtype, device, allow_other_backbone, quantize, cache)
    prefix, suffix = loaded.fill_in_middle.window(cursor.before, cursor.after, context_tokens)
    print_notice(loaded)
    planned = loaded.decoder.diffusion is not None and loaded.decoding_config(options).cycle == "auto"
    assumed = planned and loaded.assume_costs()
    clock = Clock()
    result: Result | None = None
    options["suffix"] = suffix
    for text, last in _completed(loaded, prefix, options, lines):
        clock.token()
        result = last
        if not as_json:
            print(text, end="", flush=True)
    assert result is not None, "the last step has it"
    if as_json:
        where = {"file": str(file), "line": cursor.line, "column": cursor.column}
        read = {"prefix_lines": prefix.count("\n") + 1, "suffix_lines": suffix.count("\n") + 1}
        print(json.dumps({**where, **read, **result.to_dict()}, ensure_ascii=False))
    else:
        print()
        print_footer(stderr, [result], clock, sampling=described(options))
    if assumed:
        measure_costs_after_answer(loaded)


def _completed(model: Model, prefix: str, options: Options, lines: int | None) -> Iterator[tuple[str, Result | None]]:
    """The text as it becomes certain, and with the last of it the result."""
    from orthrus.api import result_of

    limit, shown = LineLimit(lines), ""
    for step in model.run([model.request(prefix, options)], model.decoding_config(options)):
        text = limit.take("".join(piece.text for piece in step.pieces))
        shown += text
        if step.finish_reason is None and limit.reached:
            step.sequence.finish("stop")
        if step.sequence.finish_reason is None:
            yield text, None
        else:
            yield text, replace(result_of(step.sequence, model.token_texts), text=shown)
            return


@dataclass(frozen=True)
class Cursor:
    """A place in a file: its line and column, from 1, and the text before and after it."""

    line: int
    column: int
    before: str
    after: str

    @staticmethod
    def of(file: Path, line: int, column: int | None) -> Cursor:
        """The place in a file. Raises ValueError where it has none, or is no text; OSError if it cannot be read."""
        data = file.read_bytes()
        if not data:
            raise ValueError(f"{file} is empty: there is nothing to complete")
        if b"\0" in data:
            raise ValueError(f"{file} holds zero bytes, so it is no text file")
        lines = decode_utf8(data, str(file)).split("\n")
        if not 1 <= line <= len(lines):
            raise ValueError(f"--line {line}: {file} has the lines 1 to {len(lines)}")
        whole = lines[line - 1]
        width = len(whole.removesuffix("\r"))
        at = width if column is None else column - 1
        if not 0 <= at <= width:
            raise ValueError(f"--column {column}: line {line} of {file} has the columns 1 to {width + 1}")
        before, after = "\n".join([*lines[: line - 1], whole[:at]]), "\n".join([whole[at:], *lines[line:]])
        return Cursor(line, at + 1, before, after)


class LineLimit:
    """Cuts a text after so many lines, counted from the first that has text."""

    def __init__(self, lines: int | None) -> None:
        self._left, self._blank = lines, True
        self.reached = False

    def take(self, text: str) -> str:
        """The part of the next text that belongs to these lines. `reached` says whether they are complete."""
        if self._left is None:
            return text
        for at, character in enumerate(text):
            self._blank = self._blank and character.isspace()
            if character == "\n" and not self._blank:
                self._left -= 1
                if self._left == 0:
                    self.reached = True
                    return text[:at]
        return text
