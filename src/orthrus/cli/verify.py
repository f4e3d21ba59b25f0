"""`orthrus verify`: check on this machine that every cycle generates the tokens of plain decoding."""

from __future__ import annotations

import json
from dataclasses import asdict
from functools import partial
from itertools import product
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from orthrus.cli._costs import timed
from orthrus.cli._distribution import compare_distributions
from orthrus.cli._help import LOADING, OUTPUT
from orthrus.cli._shared import (
    TASK,
    AdapterOption,
    AllowOption,
    CacheOption,
    DeviceOption,
    Dtype,
    ModelOption,
    QuantizeOption,
    load_model,
    print_warning,
    progress,
    table_console,
)

if TYPE_CHECKING:
    from orthrus.api import Model, Options
    from orthrus.bench.exactness import Bits, Comparison
    from orthrus.bench.tasks import TaskPrompt


TaskOption = Annotated[list[str] | None, typer.Option(help=TASK, show_default="three tasks")]
TemperatureOption = Annotated[
    list[float] | None, typer.Option(help="0 is greedy; may be repeated.", show_default="0 and 0.8")
]
DtypesOption = Annotated[
    list[Dtype] | None,
    typer.Option(help="Dtype to verify; may be repeated.", show_default="bfloat16", rich_help_panel=LOADING),
]
CyclesOption = Annotated[
    list[str] | None,
    typer.Option(
        help="Cycle to verify, with settings as for `bench speed`; may be repeated.",
        show_default="every cycle, and two with trees",
    ),
]
AgainstOption = Annotated[
    str | None, typer.Option(help="`transformers`: compare our plain greedy decoding with its generate() instead.")
]
SamplesOption = Annotated[
    int | None,
    typer.Option(
        help="Compare distributions instead: draw this many samples by rejection and by plain decoding.", min=2
    ),
]
PromptOption = Annotated[str, typer.Option(help="The prompt for --samples.")]


TREES = ("two-pass+16", "one-pass:4+16")
"""Settings with trees of drafts, in the notation of `bench speed`."""


def command(
    model: ModelOption = "smollm2-demo",
    adapter: AdapterOption = None,
    task: TaskOption = None,
    limit: Annotated[int, typer.Option(help="Prompts per task.", min=1)] = 5,
    max_new_tokens: Annotated[int, typer.Option(help="Maximum tokens per prompt.", min=1)] = 64,
    temperature: TemperatureOption = None,
    dtype: DtypesOption = None,
    cycle: CyclesOption = None,
    seed: Annotated[int, typer.Option(help="Seed of the first prompt; each further prompt adds 1.")] = 0,
    batch_size: Annotated[int, typer.Option(help="Prompts decoded together in one batch by the cycles.", min=1)] = 4,
    against: AgainstOption = None,
    samples: SamplesOption = None,
    prompt: PromptOption = "What is the capital of France?",
    device: DeviceOption = "cpu",
    quantize: QuantizeOption = None,
    cache: CacheOption = True,
    allow_other_backbone: AllowOption = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.", rich_help_panel=OUTPUT)] = False,
) -> None:
    """Compare every cycle with plain decoding, token for token; exit code 1 if anything differs.

    With --against transformers, tokens must agree in float32. In bfloat16 two implementations round differently, so the
    rate of agreement is reported and the exit code is 0. With --samples, the first four tokens of a prompt are sampled
    by the rule `rejection` and by plain decoding, and the distance between the two distributions is compared with the
    distance expected by chance. A backbone without a diffusion view has one cycle to compare: `ar`.
    """
    from orthrus.bench import speed, tasks
    from orthrus.options import Settings

    if against not in (None, "transformers"):
        raise ValueError(f"--against takes transformers, not {against!r}")
    for value, name in product(temperature or [0.0], cycle or ["ar"]):
        Settings.of({**speed.options_of(name), "temperature": value, "seed": seed})
    precisions = dtype or [Dtype.bfloat16]
    if samples is not None:
        loaded = load_model(model, adapter, precisions[0], device, allow_other_backbone, quantize, cache=cache)
        if loaded.decoder.diffusion is None:
            raise ValueError("--samples compares the rule `rejection`, which needs a diffusion view: there is none")
        sampling: Options = {"max_new_tokens": min(max_new_tokens, 4), "seed": seed, "batch_size": 32}
        sampling["temperature"] = (temperature or [0.7])[0]
        if not compare_distributions(loaded, prompt, samples, sampling, as_json=as_json):
            raise typer.Exit(1)
        return
    prompts = [p for name in task or ("gsm8k", "humaneval", "spec_bench") for p in tasks.load(name, limit)]
    console, outcomes = table_console(silent=as_json), []
    for precision in precisions:
        loaded = load_model(model, adapter, precision, device, allow_other_backbone, quantize, cache=cache)
        options: Options = {"max_new_tokens": max_new_tokens, "seed": seed}
        if against:
            outcomes.append(_against_transformers(console, loaded, prompts, options))
            continue
        names = _cycles(loaded, cycle)
        for value in temperature or [0.0, 0.8]:
            options["temperature"] = value
            outcomes.append(_against_oracle(console, loaded, prompts, options, (names, batch_size)))
    if as_json:
        print(json.dumps([record for record, _ in outcomes], indent=2))
    if not all(passed for _, passed in outcomes):
        raise typer.Exit(1)


def _cycles(model: Model, asked: list[str] | None) -> list[str]:
    """The cycles to compare. Raises ValueError if one needs a diffusion view and there is none."""
    from orthrus.decoding import cycles

    if model.decoder.diffusion is not None:
        return asked or [*cycles.names(), *TREES]
    for name in asked or ():
        if name != "ar":
            _need_view(model, f"cycle {name!r}")
    print_warning("note: this checkpoint has no diffusion view: plain decoding alone is verified")
    return ["ar"]


def _need_view(model: Model, what: str) -> None:
    if model.decoder.diffusion is None:
        raise ValueError(
            f"{what} needs a diffusion view; this checkpoint has none: verify --cycle ar, or give it one (--adapter, or"
            " a published Orthrus checkpoint)"
        )


def _against_oracle(
    console: Console, model: Model, prompts: list[TaskPrompt], options: Options, how: tuple[list[str], int]
) -> tuple[dict[str, Any], bool]:
    """Compare every cycle with the oracle. Returns the record, and whether nothing differed."""
    from orthrus.bench import provenance

    temperature = options["temperature"]
    label = f"{_dtype(model)}, {'greedy' if temperature == 0 else f'T = {temperature:g}'}"
    comparisons, bits = _run(model, prompts, options, how, label)
    _print(console, label, comparisons, prompts)
    console.print(
        f"rows of verification blocks with logits bit-identical to plain decoding: {bits.equal} of {bits.rows}\n"
    )
    record = {
        "setting": label, "comparisons": [_record(c) for c in comparisons], "bits": asdict(bits),
        "provenance": provenance.of_run(model),
    }  # fmt: skip
    return record, not any(c.divergences for c in comparisons) and bits.equal == bits.rows


def _against_transformers(
    console: Console, model: Model, prompts: list[TaskPrompt], options: Options
) -> tuple[dict[str, Any], bool]:
    """Compare our plain greedy decoding with transformers. Returns the record, and whether float32 tokens agreed."""
    from orthrus.bench import provenance
    from orthrus.bench.peers import transformers as peer

    label = f"{_dtype(model)}, greedy, against transformers"
    with timed():
        comparison, speed = peer.compare(model, prompts, options, partial(progress, label=label))
    _print(console, label, [comparison], prompts)
    low, high = speed.ratio_quartiles
    console.print(
        f"plain decoding, batch 1, interleaved: {speed.ours:.1f} tokens/s by Orthrus, {speed.peer:.1f} by transformers,"
        f" {speed.ratio:.2f} x (medians of n = {speed.n}, quartiles {low:.2f} to {high:.2f})\n"
    )
    record = {
        "setting": label, "comparisons": [_record(comparison)], "speed": asdict(speed),
        "provenance": provenance.of_run(model),
    }  # fmt: skip
    return record, _dtype(model) != "float32" or not comparison.divergences


def _run(
    model: Model, prompts: list[TaskPrompt], options: Options, how: tuple[list[str], int], label: str
) -> tuple[list[Comparison], Bits]:
    """Run the oracle on all prompts, compare its logits with those of blocks, then run each cycle in batches."""
    from orthrus.bench import exactness
    from orthrus.bench.speed import options_of
    from orthrus.options import Settings

    names, batch_size = how
    requests = exactness.requests(model, [p.prompt for p in prompts], options)
    comparisons, bits = [exactness.Comparison(name) for name in names], exactness.Bits()
    truths = []
    for request in progress(requests, f"{label}: plain decoding"):
        truth = exactness.oracle(model, request)
        exactness.compare_bits(model, request, truth, bits)
        truths.append(truth.tokens)
    for comparison in comparisons:
        config = Settings.of({**options_of(comparison.name), "batch_size": batch_size}).decoding
        steps = model.run(requests, config)
        finished = (step.sequence for step in steps if step.sequence.finish_reason is not None)
        for sequence in progress(finished, f"{label}: {comparison.name}", len(requests)):
            again = partial(exactness.oracle, model, sequence.request)
            comparison.add(sequence.index, truths[sequence.index], sequence.tokens, again)
    return comparisons, bits


def _print(console: Console, label: str, comparisons: list[Comparison], prompts: list[TaskPrompt]) -> None:
    table = Table(title=label)
    for column in ("cycle", "prompts", "identical", "tokens compared", "first divergence", "logit gap there"):
        named = column == "cycle"
        table.add_column(column, justify="left" if named else "right", overflow="fold", no_wrap=named)
    for c in comparisons:
        first = min(c.divergences, key=lambda d: d.index, default=None)
        where = f"token {first.index} of {prompts[first.prompt].id}" if first else "none"
        gap = f"{first.logit_gap:.4g}" if first and first.logit_gap is not None else "-"
        share = f"{c.identical} ({c.identical / c.prompts:.0%})"
        table.add_row(c.name, str(c.prompts), share, str(c.tokens), where, gap)
    console.print(table)


def _record(comparison: Comparison) -> dict[str, Any]:
    return {**asdict(comparison), "identical": comparison.identical}


def _dtype(model: Model) -> str:
    return str(model.decoder.dtype).removeprefix("torch.")
