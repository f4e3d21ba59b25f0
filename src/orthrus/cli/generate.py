"""`orthrus generate`: text for a prompt, for standard input, or for every line of a file."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import typer

from orthrus.cli import _sampling as sampling
from orthrus.cli import _tokens as tokens
from orthrus.cli._chat.wrapping import lines_for
from orthrus.cli._costs import measure_costs, measure_costs_after_answer
from orthrus.cli._defaults import described, starting_options
from orthrus.cli._footer import Clock, print_details, print_footer
from orthrus.cli._limits import apply_limits, check_length
from orthrus.cli._plan import explain, print_tree, warn_of_collapse
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
    compile_ahead,
    load_model,
    print_notice,
    print_warning,
    stderr,
    table_console,
)
from orthrus.prompt_files import decode_utf8, prompts_in

if TYPE_CHECKING:
    from orthrus.api import Model, Options, Prompt, Result

NO_VIEW = (
    "note: this checkpoint has no diffusion view, so it uses plain decoding, one token per pass."
    " To speed it up: --adapter DIR, a published Orthrus checkpoint, or a view of your own by `orthrus train`"
)
NO_TEMPLATE = (
    "note: this tokenizer has no chat template, so the prompt is continued as it is, as with --raw: a checkpoint of an"
    " instruct model has one in tokenizer_config.json or chat_template.jinja"
)


def command(
    prompt: sampling.PromptArgument = None,
    prompt_option: sampling.PromptOption = None,
    model: ModelOption = "smollm2-demo",
    adapter: AdapterOption = None,
    file: sampling.FileOption = None,
    max_new_tokens: sampling.MaxNewTokensOption = None,
    min_new_tokens: sampling.MinNewTokensOption = 0,
    temperature: sampling.TemperatureOption = None,
    top_p: sampling.TopPOption = None,
    top_k: sampling.TopKOption = None,
    min_p: sampling.MinPOption = None,
    repetition_penalty: sampling.RepetitionPenaltyOption = None,
    presence_penalty: sampling.PresencePenaltyOption = 0.0,
    frequency_penalty: sampling.FrequencyPenaltyOption = 0.0,
    logit_bias: sampling.LogitBiasOption = None,
    seed: sampling.SeedOption = None,
    stop: sampling.StopOption = None,
    stop_token: sampling.StopTokenOption = None,
    system: sampling.SystemOption = None,
    chat_template_kwargs: sampling.ChatTemplateKwargsOption = None,
    raw: sampling.RawOption = False,
    json_schema: sampling.JsonSchemaOption = None,
    json_object: sampling.JsonObjectOption = False,
    regex: sampling.RegexOption = None,
    grammar: sampling.GrammarOption = None,
    tools: sampling.ToolsOption = None,
    tool_choice: sampling.ToolChoiceOption = None,
    logprobs: sampling.LogprobsOption = None,
    cycle: CycleOption = None,
    rule: sampling.RuleOption = "exact",
    no_diffusion: sampling.NoDiffusionOption = False,
    width: sampling.WidthOption = None,
    tree_nodes: sampling.TreeNodesOption = None,
    batch_size: sampling.BatchSizeOption = None,
    threads: sampling.ThreadsOption = None,
    ctx_size: sampling.ContextOption = None,
    dtype: DtypeOption = Dtype.bfloat16,
    device: DeviceOption = "cpu",
    quantize: QuantizeOption = None,
    cache: CacheOption = True,
    allow_other_backbone: AllowOption = False,
    explain_plan: sampling.ExplainOption = False,
    verbose: sampling.VerboseOption = False,
    as_json: sampling.AsJsonOption = False,
) -> None:
    """Generate text: the same tokens as plain decoding of the base model, in fewer passes."""
    options: Options = sampling.options_of(locals())
    prompts = _read_prompts(prompt, prompt_option, file)
    compile_ahead(dtype, device)
    biases = tokens.biases(logit_bias)
    sampling.check(options, prompts, biases, explain_plan=explain_plan)
    apply_limits(ctx_size, threads)
    started = perf_counter()
    loaded = load_model(model, adapter, dtype, device, allow_other_backbone, quantize, cache, ctx_size)
    load_seconds = perf_counter() - started
    options = _completed(loaded, options, tokens.named_tokens(loaded, stop_token, biases))
    results = _generate(loaded, prompts, options, explain_plan=explain_plan, as_json=as_json)
    if verbose:
        print_details(stderr, loaded, results, load_seconds)


def _completed(model: Model, given: Options, named: Options) -> Options:
    """The options given, those that name tokens, and the checkpoint's own sampling for the rest. Raises ValueError for
    an answer that is longer than the context."""
    check_length(model, given.get("max_new_tokens"))
    options: Any = {**starting_options(model.checkpoint.default_sampling, given), **named}
    chosen: Options = options
    return chosen


def _generate(
    model: Model, prompts: list[Prompt], options: Options, *, explain_plan: bool, as_json: bool
) -> list[Result]:
    """Print the answers and their statistics."""
    print_notice(model)
    if not model.checkpoint.text.chat_template and not options.get("raw"):
        print_warning(NO_TEMPLATE)
    if model.decoder.diffusion is None:
        print_warning(NO_VIEW)
    planned = model.decoder.diffusion is not None and model.decoding_config(options).cycle == "auto"
    if explain_plan and not planned:
        raise ValueError(sampling.NOTHING_PLANNED)
    assumed = planned and not explain_plan and model.assume_costs()
    if planned and not assumed:
        measure_costs(model)
    clock = Clock()
    if as_json:
        results = _print_json(model, prompts, options)
    else:
        alone = len(prompts) == 1
        results = [_print_stream(model, prompts[0], options, clock)] if alone else _print_texts(model, prompts, options)
        print_footer(stderr, results, clock, sampling=described(options))
    if planned:
        if explain_plan:
            explain(stderr, model.costs(), [(result.statistics, result.prompt_tokens) for result in results])
            again = model.request(
                prompts[0], {**options, "seed": results[0].seed}
            )  # the same passes, with their drafts
            print_tree(stderr, model.run([again], model.decoding_config(options)), model.decode)
        warn_of_collapse(stderr, [result.statistics for result in results])
    if assumed:  # after the first answer, which need not wait for it
        measure_costs_after_answer(model)
    return results


def _print_stream(model: Model, prompt: Prompt, options: Options, clock: Clock) -> Result:
    result: Result | None = None
    lines = lines_for(table_console())
    try:
        for chunk in model.stream(prompt, **options):
            clock.token()
            print("".join(text for text, _ in lines.take(chunk.text)), end="", flush=True)
            result = chunk.result
    except KeyboardInterrupt:
        print("".join(text for text, _ in lines.finish()), flush=True)
        stderr.print("interrupted", style="yellow")
        raise typer.Exit(130) from None
    print("".join(text for text, _ in lines.finish()), flush=True)
    assert result is not None
    return result


def _print_texts(model: Model, prompts: list[Prompt], options: Options) -> list[Result]:
    results = []
    for number, (_, result) in enumerate(model.results(prompts, **options), 1):
        print(f"--- {number}" if number == 1 else f"\n--- {number}")
        print(result.text, flush=True)
        results.append(result)
    return results


def _print_json(model: Model, prompts: list[Prompt], options: Options) -> list[Result]:
    results = []
    try:
        for _, result in model.results(prompts, **options):
            print(json.dumps(result.to_dict(), ensure_ascii=False), flush=True)
            results.append(result)
    except KeyboardInterrupt:
        stderr.print("interrupted; the lines above are complete", style="yellow")
        raise typer.Exit(130) from None
    return results


def _read_prompts(argument: str | None, option: str | None, file: Path | None) -> list[Prompt]:
    if argument is not None and option is not None:
        raise ValueError("give the prompt once, as an argument or with --prompt")
    prompt = argument if option is None else option
    if file is not None:
        if prompt is not None:
            raise ValueError("give a prompt or --file, not both")
        data = sys.stdin.buffer.read() if str(file) == "-" else file.read_bytes()
        where = "standard input" if str(file) == "-" else str(file)
        text = decode_utf8(data, where).lstrip()
        if text and not text.startswith("{"):
            raise ValueError(
                f"{where}: --file takes JSONL, lines with `prompt`, `messages` or `conversations`; a prompt"
                " in plain text is read from standard input: orthrus generate < FILE"
            )
        return prompts_in(data, where)
    if prompt is None or argument == "-":
        if prompt is None and sys.stdin.isatty():
            raise ValueError("no prompt: give one as an argument, through standard input, or with --file")
        prompt = decode_utf8(sys.stdin.buffer.read(), "standard input")
    if not prompt.strip():
        raise ValueError("the prompt is empty: give one as an argument, on standard input or by --file")
    return [prompt]
