"""`orthrus generate`: text for a prompt, for standard input, or for every line of a file."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orthrus.cli._plan import explain, warn_of_collapse
from orthrus.cli._shared import (
    AdapterOption,
    AllowOption,
    CycleOption,
    DeviceOption,
    Dtype,
    DtypeOption,
    ModelOption,
    QuantizeOption,
    load_model,
    stderr,
    without_none,
)
from orthrus.records import decode_utf8, parse_object, prompts_in

if TYPE_CHECKING:
    from orthrus.api import Model, Options, Prompt, Result

NO_VIEW = (
    "note: this checkpoint has no diffusion view, so it decodes plainly, one token a pass."
    " To speed it up: --adapter DIR, a published Orthrus checkpoint, or a view of your own by `orthrus train`"
)


PromptOption = Annotated[str | None, typer.Argument(help="The prompt. Without it, standard input is read.")]
FileOption = Annotated[
    Path | None,
    typer.Option(help="JSONL, one object a line with `prompt`, `messages` or `conversations`; `-` is standard input."),
]
MaxNewTokensOption = Annotated[int, typer.Option(help="Stop after this many tokens.")]
TemperatureOption = Annotated[float, typer.Option(help="0 is greedy.")]
TopPOption = Annotated[float, typer.Option(help="Keep the smallest set of tokens with this probability.")]
TopKOption = Annotated[int, typer.Option(help="Keep this many tokens; 0 keeps all.")]
MinPOption = Annotated[float, typer.Option(help="Keep tokens at least this likely relative to the best.")]
RepetitionPenaltyOption = Annotated[float, typer.Option(help="Above 1 discourages tokens already in the text.")]
SeedOption = Annotated[int | None, typer.Option(help="Seed for sampling; drawn and reported where absent.")]
StopOption = Annotated[list[str] | None, typer.Option(help="Stop string, cut from the text; may be repeated.")]
StopTokenOption = Annotated[
    list[str] | None, typer.Option(help="Further end token, by text (`<|im_end|>`) or id; may be repeated.")
]
SystemOption = Annotated[str | None, typer.Option(help="System message for the chat template.")]
ChatTemplateKwargsOption = Annotated[
    str | None, typer.Option(help="JSON object for the chat template, such as '{\"enable_thinking\": false}'.")
]
RawOption = Annotated[bool, typer.Option("--raw", help="Continue the prompt as it is, without the chat template.")]
RuleOption = Annotated[
    str, typer.Option(help="exact: the tokens of plain decoding. rejection: its distribution, more drafts kept.")
]
ExplainOption = Annotated[
    bool, typer.Option("--explain-plan", help="Print the planner's costs, choices and predictions after the text.")
]
NoDiffusionOption = Annotated[bool, typer.Option("--no-diffusion", help="Alias of --cycle ar.")]
WidthOption = Annotated[int | None, typer.Option(help="Rows of a diffusion block; the block size where absent.")]
BatchSizeOption = Annotated[int, typer.Option(help="Prompts decoded side by side.")]
AsJsonOption = Annotated[
    bool, typer.Option("--json", help="One JSON line per prompt, in input order, and nothing else on stdout.")
]


def command(
    prompt: PromptOption = None,
    model: ModelOption = "smollm2-demo",
    adapter: AdapterOption = None,
    file: FileOption = None,
    max_new_tokens: MaxNewTokensOption = 256,
    temperature: TemperatureOption = 0.0,
    top_p: TopPOption = 1.0,
    top_k: TopKOption = 0,
    min_p: MinPOption = 0.0,
    repetition_penalty: RepetitionPenaltyOption = 1.0,
    seed: SeedOption = None,
    stop: StopOption = None,
    stop_token: StopTokenOption = None,
    system: SystemOption = None,
    chat_template_kwargs: ChatTemplateKwargsOption = None,
    raw: RawOption = False,
    cycle: CycleOption = None,
    rule: RuleOption = "exact",
    no_diffusion: NoDiffusionOption = False,
    width: WidthOption = None,
    batch_size: BatchSizeOption = 1,
    dtype: DtypeOption = Dtype.bfloat16,
    device: DeviceOption = "cpu",
    quantize: QuantizeOption = None,
    allow_other_backbone: AllowOption = False,
    explain_plan: ExplainOption = False,
    as_json: AsJsonOption = False,
) -> None:
    """Generate text: the same tokens as plain decoding of the base model, in fewer passes."""
    prompts = _read_prompts(prompt, file)
    template = parse_object(chat_template_kwargs, "--chat-template-kwargs") if chat_template_kwargs else None
    loaded = load_model(model, adapter, dtype, device, allow_other_backbone, quantize)
    if loaded.decoder.diffusion is None:
        stderr.print(NO_VIEW, style="yellow")
    options: Options = without_none(  # type: ignore[assignment]
        max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p, top_k=top_k, min_p=min_p,
        repetition_penalty=repetition_penalty, seed=seed, stop=stop, raw=raw, system=system,
        stop_token_ids=[_token_id(loaded, text) for text in stop_token or ()],
        cycle="ar" if no_diffusion else cycle, rule=rule, width=width, batch_size=batch_size,
        chat_template_kwargs=template,
    )  # fmt: skip
    planned = loaded.decoder.diffusion is not None and loaded.decoding_config(options).cycle == "auto"
    if explain_plan and not planned:
        raise ValueError(
            "--explain-plan explains the cycle auto, which needs a diffusion view; nothing is planned here"
        )
    show = _print_json if as_json else _print_stream if len(prompts) == 1 else _print_texts
    results = show(loaded, prompts, options)
    if planned:
        if explain_plan:
            lengths = [len(loaded.prompt_tokens(asked, options)) for asked in prompts]
            explain(stderr, loaded.costs(), [(r.statistics, n) for r, n in zip(results, lengths, strict=True)])
        warn_of_collapse(stderr, [result.statistics for result in results])


def _print_stream(model: Model, prompts: list[Prompt], options: Options) -> list[Result]:
    result: Result | None = None
    try:
        for chunk in model.stream(prompts[0], **options):
            print(chunk.text, end="", flush=True)
            result = chunk.result
    except KeyboardInterrupt:
        print(flush=True)
        stderr.print("interrupted", style="yellow")
        raise typer.Exit(130) from None
    print(flush=True)
    assert result is not None
    s = result.statistics
    sampled = f", seed {result.seed}" if options.get("temperature") else ""
    stderr.print(
        f"{s.generated} tokens in {s.passes} passes ({s.tpf:.2f} per pass), {s.seconds:.2f} s,"
        f" {s.generated / s.seconds:.1f} tokens/s, ended by {result.finish_reason}{sampled}",
        style="dim",
    )
    return [result]


def _print_texts(model: Model, prompts: list[Prompt], options: Options) -> list[Result]:
    results = []
    for number, (_, result) in enumerate(model.results(prompts, **options)):
        print(f"--- {number + 1}" if number == 0 else f"\n--- {number + 1}")
        print(result.text, flush=True)
        results.append(result)
    return results


def _print_json(model: Model, prompts: list[Prompt], options: Options) -> list[Result]:
    results = []
    try:
        for _, result in model.results(prompts, **options):
            record = {
                "text": result.text, "tokens": result.tokens, "finish_reason": result.finish_reason,
                "seed": result.seed, "statistics": result.statistics.as_dict(),
            }  # fmt: skip
            print(json.dumps(record, ensure_ascii=False), flush=True)
            results.append(result)
    except KeyboardInterrupt:
        stderr.print("interrupted; the lines above are complete", style="yellow")
        raise typer.Exit(130) from None
    return results


def _read_prompts(prompt: str | None, file: Path | None) -> list[Prompt]:
    if file is not None:
        if prompt is not None:
            raise ValueError("give a prompt or --file, not both")
        data = sys.stdin.buffer.read() if str(file) == "-" else file.read_bytes()
        return prompts_in(data, "standard input" if str(file) == "-" else str(file))
    if prompt is None:
        if sys.stdin.isatty():
            raise ValueError("no prompt: give one as an argument, through standard input, or with --file")
        prompt = decode_utf8(sys.stdin.buffer.read(), "standard input")
    if not prompt.strip():
        raise ValueError("the prompt is empty")
    return [prompt]


def _token_id(model: Model, text: str) -> int:
    if text.isdecimal():
        return int(text)
    found = model.tokenizer.get_vocab().get(text)
    if found is None:
        raise ValueError(f"stop token {text!r} is not in the vocabulary; give its exact text or its id")
    return int(found)
