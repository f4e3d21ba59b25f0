"""`orthrus bench compare`: speed against transformers, llama.cpp, Ollama and vLLM."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from orthrus.cli._costs import measure_costs_for_benchmark, timed
from orthrus.cli._help import OUTPUT
from orthrus.cli._shared import (
    TASK,
    AdapterOption,
    CacheOption,
    DeviceOption,
    Dtype,
    DtypeOption,
    ModelOption,
    QuantizeOption,
    ended_by_sigterm,
    load_model,
    print_warning,
    progress,
    stderr,
    table_console,
)

if TYPE_CHECKING:
    from orthrus.api import Model, Options
    from orthrus.bench.compare import System
    from orthrus.bench.first_tokens import FirstToken
    from orthrus.bench.tasks import TaskPrompt


PeerOption = Annotated[
    list[str] | None,
    typer.Option(help="Peer variant, or the beginning of its name; may be repeated.", show_default="all"),
]
DraftModelOption = Annotated[
    Path | None,
    typer.Option(help="GGUF file of a smaller model with the same vocabulary, with which llama.cpp drafts."),
]
PromptTokensOption = Annotated[
    str | None,
    typer.Option(
        metavar="N,N,...",
        help="Also time the first token of prompts of these lengths, such as 50,500,4000, cut from those of the tasks.",
    ),
]


def command(
    task: Annotated[list[str] | None, typer.Option(help=TASK)] = None,
    model: ModelOption = "smollm2-demo",
    adapter: AdapterOption = None,
    limit: Annotated[int, typer.Option(help="Prompts per task.", min=1)] = 20,
    max_new_tokens: Annotated[int, typer.Option(help="Maximum tokens per prompt.", min=1)] = 128,
    peer: PeerOption = None,
    draft_model: DraftModelOption = None,
    prompt_tokens: PromptTokensOption = None,
    install: Annotated[bool, typer.Option("--install", help="First create the peers' virtual environments.")] = False,
    dtype: DtypeOption = Dtype.bfloat16,
    device: DeviceOption = "cpu",
    quantize: QuantizeOption = None,
    cache: CacheOption = True,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print figures and provenance as JSON.", rich_help_panel=OUTPUT)
    ] = False,
) -> None:
    """Measure tokens per second of plain decoding, `auto` and peers with the same prompts, weights and threads, and
    print a table in Markdown.

    Decoding is greedy at batch 1, prefill included; systems are interleaved per prompt. Each peer runs in its own
    process; a peer that is not installed, or that cannot read the backbone, is reported as absent. Without a diffusion
    view plain decoding alone is compared with the peers.
    """
    from orthrus.bench import tasks

    chosen = _chosen(peer, draft_model)
    if install:
        _install(chosen)
        if task is None:
            return
    lengths = _lengths(prompt_tokens)
    prompts = {name: tasks.load(name, limit) for name in task or ()}
    if not prompts:
        raise ValueError("no prompts: name at least one task, such as --task gsm8k")
    loaded = load_model(model, adapter, dtype, device, quantize=quantize, cache=cache)
    options: Options = {"max_new_tokens": max_new_tokens, "temperature": 0.0, "seed": 0}
    compared = _measured(loaded, prompts, options, chosen, draft_model, lengths)
    if as_json:
        print(json.dumps(compared.record(), indent=2))
    else:
        _print(compared, f"up to {max_new_tokens} tokens")


@dataclass(frozen=True)
class _Compared:
    """Speeds by task, times to the first token by length of prompt, and the provenance of both."""

    sides: list[System]
    times: list[FirstToken]
    origin: dict[str, Any]

    def record(self) -> dict[str, Any]:
        """As JSON; times to the first token where any were asked for."""
        times = {"first_tokens": [asdict(time) for time in self.times]} if self.times else {}
        return {"sides": [asdict(side) for side in self.sides], **times, "provenance": self.origin}


def _measured(
    loaded: Model, prompts: dict[str, list[TaskPrompt]], options: Options, chosen: list[str], draft_model: Path | None,
    lengths: list[int],
) -> _Compared:  # fmt: skip
    from orthrus.bench import compare, exactness, first_tokens, provenance

    everything = [prompt for asked in prompts.values() for prompt in asked]
    requests = exactness.requests(loaded, [prompt.prompt for prompt in everything], options)
    longest, room = max(lengths, default=0), loaded.limits.max_positions
    if longest >= room:
        raise ValueError(f"--prompt-tokens {longest}: the context of this model has {room} tokens, answer included")
    context = max(longest + 1, *(len(each.prompt) + each.stop.max_new_tokens for each in requests))
    measure_costs_for_benchmark(loaded)
    if loaded.decoder.diffusion is None:
        print_warning("note: this checkpoint has no diffusion view, so its plain decoding is compared")
    tell = partial(stderr.print, style="dim", markup=False)
    peers = compare.Peers(chosen, draft_model, context)
    sides: list[System] = []
    times: list[FirstToken] = []
    with ended_by_sigterm(), timed() as load, compare.started(loaded, options, peers, requests[0], tell) as systems:
        for name, asked in prompts.items():
            sides += compare.measure(systems, name, asked, partial(progress, label=f"{name}: answers"))
        if lengths:
            times = first_tokens.measure(systems, everything, lengths, partial(progress, label="first tokens"))
    return _Compared(sides, times, provenance.of_run(loaded) | load.as_dict() | {"peers": systems.versions})


def _lengths(asked: str | None) -> list[int]:
    """The lengths of prompts of `--prompt-tokens`. Raises ValueError where it is no list of numbers."""
    numbers = [number.strip() for number in asked.split(",")] if asked else []
    if not all(number.isdecimal() and int(number) > 0 for number in numbers):
        raise ValueError(f"--prompt-tokens {asked}: give numbers of tokens, such as 50,500,4000")
    return [int(number) for number in numbers]


def _chosen(peers: list[str] | None, draft_model: Path | None) -> list[str]:
    """The variants that these names, or beginnings of names, mean; without names all, those with a draft model if there
    is one. Raises ValueError for none, and where a draft model is needed and missing."""
    from orthrus.bench import compare
    from orthrus.bench.peers import processes

    known = processes.variants()
    if draft_model is not None and not draft_model.is_file():
        raise ValueError(f"--draft-model {draft_model}: no such file")
    lacking = [name for name in known if draft_model is None and compare.needs_draft_model(name)]
    if peers is not None and (named := [name for name in lacking if name in peers]):
        raise ValueError(f"{named[0]}: needs --draft-model FILE.gguf")
    chosen = [
        name for name in known
        if name not in lacking
        and (peers is None or any(name == asked or (asked not in known and name.startswith(asked)) for asked in peers))
    ]  # fmt: skip
    if not chosen:
        raise ValueError(f"no such peer; peers: {'; '.join(known)}")
    return chosen


def _install(chosen: list[str]) -> None:
    from orthrus.bench.peers import processes

    known = processes.variants()
    for name in sorted({known[variant] for variant in chosen}):
        with ended_by_sigterm(), stderr.status(f"installing {name}: takes some minutes if it must be compiled"):
            processes.install(name)


def _print(compared: _Compared, length: str) -> None:
    """Plain lines: markup and wrapping would damage the tables."""
    from orthrus.bench import comparison_table

    console, origin = table_console(), compared.origin
    machine, width = origin["machine"], console.width
    threads = "1 thread" if machine["threads"] == 1 else f"{machine['threads']} threads"
    device = machine["accelerator"] or f"{threads} of {machine['cpu']}"
    versions = {"Orthrus": machine["orthrus"], "torch": machine["torch"], **origin["peers"]}
    model = f"{origin['model']} (diffusion view: {origin['view']}), {origin['dtype']}, {origin['kernels']}"
    conditions = (
        f"Greedy, batch 1, {length}, prefill included; systems interleaved per prompt; medians (quartiles).",
        f"{model}, on {device}.",
        ", ".join(f"{name} {version}" for name, version in versions.items()) + ".",
    )
    called = comparison_table.called(compared.sides, width)
    lines = [*comparison_table.speed_table(compared.sides, called), "", *comparison_table.caption(conditions, width)]
    if compared.times:
        table = comparison_table.first_token_table(compared.times, called)
        lines += ["", "Time to the first token, ms:", "", *table]
    absent = {side.name: side.absent for side in compared.sides if side.absent is not None}
    lines += [f"\nabsent: {name}: {why.splitlines()[-1]}" for name, why in absent.items()]
    for line in lines:
        console.print(line, markup=False, soft_wrap=True)
