"""Options of `orthrus generate`, and their checks."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from orthrus.cli._help import CONSTRAINTS, DRAFTING, INPUT, LOADING, OUTPUT, SAMPLING, STOPPING
from orthrus.cli._shared import without_none
from orthrus.prompt_files import parse_object

if TYPE_CHECKING:
    from orthrus.api import Options, Prompt

NOTHING_PLANNED = "--explain-plan needs --cycle auto and a diffusion view: without them no pass is planned"

OWN = "the checkpoint's"
"""The default of a setting that `generation_config.json` may hold."""

PromptArgument = Annotated[str | None, typer.Argument(help="The prompt; - or none: standard input.")]
PromptOption = Annotated[
    str | None, typer.Option("--prompt", "-p", help="The prompt, as an option.", rich_help_panel=INPUT)
]
FileOption = Annotated[
    Path | None,
    typer.Option(
        help="JSONL, one object per line with `prompt`, `messages` or `conversations`; `-` is standard input.",
        rich_help_panel=INPUT,
    ),
]
MaxNewTokensOption = Annotated[
    int | None,
    typer.Option(
        "--max-new-tokens", "--max-tokens", "-n",
        help="Stop after this many tokens.", show_default="256", rich_help_panel=STOPPING,
    ),
]  # fmt: skip
MinNewTokensOption = Annotated[
    int, typer.Option(help="Suppress end tokens until this many tokens are generated.", rich_help_panel=STOPPING)
]
TemperatureOption = Annotated[
    float | None, typer.Option(help="0 is greedy.", show_default=f"{OWN}, else 0", rich_help_panel=SAMPLING)
]
TopPOption = Annotated[
    float | None,
    typer.Option(
        help="Keep the smallest set of tokens with this probability.",
        show_default=f"{OWN}, else 1",
        rich_help_panel=SAMPLING,
    ),
]
TopKOption = Annotated[
    int | None,
    typer.Option(help="Keep this many tokens; 0 keeps all.", show_default=f"{OWN}, else 0", rich_help_panel=SAMPLING),
]
MinPOption = Annotated[
    float | None,
    typer.Option(
        help="Keep tokens at least this fraction as likely as the most likely one.",
        show_default=f"{OWN}, else 0",
        rich_help_panel=SAMPLING,
    ),
]
RepetitionPenaltyOption = Annotated[
    float | None,
    typer.Option(
        help="Above 1 discourages tokens already in the text.",
        show_default=f"{OWN}, else 1",
        rich_help_panel=SAMPLING,
    ),
]
PresencePenaltyOption = Annotated[
    float, typer.Option(help="Subtracted once from the logit of each generated token.", rich_help_panel=SAMPLING)
]
FrequencyPenaltyOption = Annotated[
    float,
    typer.Option(help="Subtracted from a token's logit for each time it was generated.", rich_help_panel=SAMPLING),
]
LogitBiasOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="ID_OR_TEXT=VALUE",
        help="Add a value to the logit of a token; may be repeated.",
        rich_help_panel=SAMPLING,
    ),
]
SeedOption = Annotated[
    int | None, typer.Option(help="Seed for sampling; without it one is drawn and reported.", rich_help_panel=SAMPLING)
]
StopOption = Annotated[
    list[str] | None, typer.Option(help="Stop string, cut from the text; may be repeated.", rich_help_panel=STOPPING)
]
StopTokenOption = Annotated[
    list[str] | None,
    typer.Option(help="Additional end token, as text (`<|im_end|>`) or id; may be repeated.", rich_help_panel=STOPPING),
]
SystemOption = Annotated[str | None, typer.Option(help="System message for the chat template.", rich_help_panel=INPUT)]
ChatTemplateKwargsOption = Annotated[
    str | None,
    typer.Option(
        help="JSON object for the chat template, such as '{\"enable_thinking\": false}'.", rich_help_panel=INPUT
    ),
]
RawOption = Annotated[
    bool, typer.Option("--raw", help="Continue the prompt as it is, without the chat template.", rich_help_panel=INPUT)
]
JsonSchemaOption = Annotated[
    str | None,
    typer.Option(
        metavar="FILE_OR_JSON", help="The answer must be JSON that matches this schema.", rich_help_panel=CONSTRAINTS
    ),
]
JsonObjectOption = Annotated[
    bool, typer.Option("--json-object", help="The answer must be a JSON object.", rich_help_panel=CONSTRAINTS)
]
RegexOption = Annotated[
    str | None, typer.Option(help="The answer must match this regular expression.", rich_help_panel=CONSTRAINTS)
]
GrammarOption = Annotated[
    Path | None, typer.Option(help="File of a Lark grammar that the answer must match.", rich_help_panel=CONSTRAINTS)
]
ToolsOption = Annotated[
    Path | None, typer.Option(help="JSON file: a list of tools as in OpenAI's API.", rich_help_panel=CONSTRAINTS)
]
ToolChoiceOption = Annotated[
    str | None,
    typer.Option(
        metavar="auto|none|required|NAME",
        help="Whether a tool is called, or which.",
        show_default="auto",
        rich_help_panel=CONSTRAINTS,
    ),
]
LogprobsOption = Annotated[
    int | None,
    typer.Option(
        help="With --json: the log-probability of each token, with so many alternatives (0 to 20).",
        rich_help_panel=OUTPUT,
    ),
]
RuleOption = Annotated[
    str,
    typer.Option(
        help="exact: same tokens as plain decoding. rejection: same distribution, more drafts accepted.",
        rich_help_panel=DRAFTING,
    ),
]
ExplainOption = Annotated[
    bool,
    typer.Option(
        "--explain-plan",
        help="Print the planner's costs, choices and predictions after the text.",
        rich_help_panel=OUTPUT,
    ),
]
NoDiffusionOption = Annotated[
    bool, typer.Option("--no-diffusion", help="Alias of --cycle ar.", rich_help_panel=DRAFTING)
]
WidthOption = Annotated[
    int | None, typer.Option(help="Rows per diffusion block.", show_default="the block size", rich_help_panel=DRAFTING)
]
TreeNodesOption = Annotated[
    int | None,
    typer.Option(
        help="Drafts verified per pass, as a tree; 0: a chain.",
        show_default="as in a chain; auto plans it",
        rich_help_panel=DRAFTING,
    ),
]
BatchSizeOption = Annotated[
    int | None,
    typer.Option(
        help="Prompts decoded together in one batch.", show_default="as many as memory allows", rich_help_panel=INPUT
    ),
]
ThreadsOption = Annotated[
    int | None,
    typer.Option(
        "--threads", "-t", help="CPU threads of a forward pass.", show_default="torch's", rich_help_panel=LOADING
    ),
]
ContextOption = Annotated[
    int | None,
    typer.Option(
        "--ctx-size",
        "-c",
        help="Maximum tokens, prompt included.",
        show_default="the model's context",
        rich_help_panel=LOADING,
    ),
]
VerboseOption = Annotated[
    bool,
    typer.Option(
        "--verbose",
        help="Also print kernels, cycles, acceptance by offset and load time to stderr.",
        rich_help_panel=OUTPUT,
    ),
]
AsJsonOption = Annotated[
    bool,
    typer.Option(
        "--json", help="One JSON line per prompt, in input order, and nothing else on stdout.", rich_help_panel=OUTPUT
    ),
]


def check(
    options: Mapping[str, Any], prompts: list[Prompt], biases: list[tuple[str, float]], *, explain_plan: bool
) -> None:
    """Check what can be checked before a model is loaded. Raises ValueError."""
    from orthrus.options import Settings
    from orthrus.tokenization import checked_prompt, map_prompts

    settings = Settings.of(options)
    for token, value in biases:
        try:
            Settings.of({"logit_bias": {int(token) if token.isdecimal() else 0: value}})
        except ValueError as error:
            raise ValueError(f"--logit-bias {token}={value:g}: {error}") from error
    if explain_plan and settings.decoding.cycle != "auto":
        raise ValueError(NOTHING_PLANNED)

    def check_one(prompt: Prompt) -> None:
        checked = checked_prompt(prompt)
        if isinstance(checked, str) and not checked.strip():
            raise ValueError("the prompt is empty")
        if isinstance(checked, list) and settings.raw:
            raise ValueError(
                "--raw skips the chat template, which messages need: drop --raw, or give the prompt as text"
            )

    map_prompts(prompts, check_one)


PASSED = (
    "max_new_tokens", "min_new_tokens", "temperature", "top_p", "top_k", "min_p", "repetition_penalty",
    "presence_penalty", "frequency_penalty", "seed", "stop", "system", "raw", "rule", "width", "tree_nodes",
    "batch_size", "regex", "tool_choice", "logprobs",
)  # fmt: skip
"""Options of `generate` that are passed on as they are."""


def options_of(given: Mapping[str, Any]) -> Options:
    """The options of `Model.generate` by those of the command line, without those that need the model.

    Raises ValueError for JSON that is invalid, OSError for a file that cannot be read.
    """
    template, schema = given["chat_template_kwargs"], given["json_schema"]
    if given["logprobs"] is not None and not given["as_json"]:
        raise ValueError("--logprobs needs --json, which prints them")
    options: Any = without_none(
        **{name: given[name] for name in PASSED},
        cycle="ar" if given["no_diffusion"] else given["cycle"],
        chat_template_kwargs=None if template is None else parse_object(template, "--chat-template-kwargs"),
        json_object=given["json_object"] or None,
        json_schema=schema
        if schema is None or schema.lstrip().startswith("{")
        else _read(Path(schema), "--json-schema"),
        grammar=None if given["grammar"] is None else _read(given["grammar"], "--grammar"),
        tools=None if given["tools"] is None else _tools(given["tools"]),
    )
    chosen: Options = options
    return chosen


def _tools(file: Path) -> Any:
    text = _read(file, "--tools")
    try:
        return json.loads(text)
    except ValueError as error:
        raise ValueError(f"--tools: {file} is not JSON: {error}") from error


def _read(file: Path, option: str) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ValueError(f"{option}: {file} cannot be read: {reason}") from error
