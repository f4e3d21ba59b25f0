"""`orthrus distill`: training data for a diffusion view, answered (and asked) by the backbone itself."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from orthrus import prompt_files
from orthrus.cli._progress import DistillProgress
from orthrus.cli._shared import DeviceOption, Dtype, DtypeOption, ModelOption, load_model, stderr

if TYPE_CHECKING:
    from orthrus.api import Model
    from orthrus.training.distill import Question, Reply, Shard

SHARD = 64
"""A minute or two of work on a laptop."""

OutputOption = Annotated[Path, typer.Option("--output", "-o", help="Directory for the shards and their manifest.")]
DataOption = Annotated[
    list[Path] | None,
    typer.Option(
        help="JSONL with `prompt`, `messages` or ShareGPT `conversations`; may be repeated. Without it the"
        " model writes the user's turns too."
    ),
]
CountOption = Annotated[int | None, typer.Option(help="Prompts; all of the data, or 1000 self-written ones.", min=1)]
TopicsOption = Annotated[
    Path | None, typer.Option(help="Text file, a line each: words that self-written user turns begin with.")
]
ExcludeOption = Annotated[
    list[str] | None,
    typer.Option(help="Benchmark task or JSONL file; prompts that share 13 words in a row with it are dropped."),
]
SystemOption = Annotated[str | None, typer.Option(help="System message for self-written prompts.")]
TemperatureOption = Annotated[float, typer.Option(help="Of the answers; 0 is greedy.")]
PromptTemperatureOption = Annotated[float, typer.Option(help="Of self-written user turns.")]
TopPOption = Annotated[float, typer.Option(help="Of both.")]
MaxNewTokensOption = Annotated[int, typer.Option(help="Tokens of an answer, at most.")]
MaxPromptTokensOption = Annotated[int, typer.Option(help="Longer prompts are dropped.")]
ShardSizeOption = Annotated[
    int | None,
    typer.Option(
        help="Prompts per shard; what is lost at most when the run is killed.",
        show_default=f"{SHARD}, or the run's own",
    ),
]
SeedOption = Annotated[int, typer.Option(help="Seed of the run; every record's own follows from it and its id.")]
BatchSizeOption = Annotated[int, typer.Option(help="Prompts decoded side by side; changes no record.", min=1)]


def command(
    output: OutputOption,
    data: DataOption = None,
    count: CountOption = None,
    topics: TopicsOption = None,
    exclude: ExcludeOption = None,
    model: ModelOption = "smollm2-demo",
    system: SystemOption = None,
    temperature: TemperatureOption = 0.0,
    prompt_temperature: PromptTemperatureOption = 1.0,
    top_p: TopPOption = 1.0,
    max_new_tokens: MaxNewTokensOption = 256,
    max_prompt_tokens: MaxPromptTokensOption = 512,
    shard_size: ShardSizeOption = None,
    seed: SeedOption = 0,
    batch_size: BatchSizeOption = 32,
    dtype: DtypeOption = Dtype.bfloat16,
    device: DeviceOption = "cpu",
) -> None:
    """Write conversations in which the backbone itself answers: what a diffusion view is trained on.

    Run it again after an interruption: complete shards are kept, and the files come out the same.
    """
    from orthrus.config import DistillConfig
    from orthrus.training.distill import Distillation
    from orthrus.training.prompts import conversations_in

    words = tuple(line for line in topics.read_text(encoding="utf-8").splitlines() if line.strip()) if topics else ()
    if data and (words or system is not None):
        raise ValueError("--topics and --system are for self-written prompts; leave them or --data out")
    config = DistillConfig(
        temperature, prompt_temperature, top_p, max_new_tokens, max_prompt_tokens, seed,
        _begun_with(output) if shard_size is None else shard_size, system, words,
    )  # fmt: skip
    several = len(data or ()) > 1
    given = [
        replace(item, id=f"{file.stem}/{item.id}") if several else item
        for file in data or ()
        for item in conversations_in(file.read_bytes(), str(file))
    ]
    excluded = frozenset(_excluded(exclude or []))
    loaded = load_model(model, None, dtype, device)
    total = min(count or len(given), len(given)) if data else count or 1000
    done = DistillProgress(total)
    run = Distillation(
        output, config, loaded.tokenizer, loaded.checkpoint.end_token_ids, _backbone(loaded, dtype),
        lambda questions: done.replies(_respond(loaded, questions, batch_size)), excluded, done.prompts,
    )  # fmt: skip
    _follow(run.run(given if data else None, total), done, output)


def _begun_with(output: Path) -> int:
    """The shard size that a run in this directory was begun with."""
    from orthrus.training.shards import MANIFEST, read_manifest

    begun = read_manifest(output)["settings"].get("shard_size") if (output / MANIFEST).exists() else None
    return begun if isinstance(begun, int) else SHARD


def _follow(shards: Iterator[Shard], done: DistillProgress, output: Path) -> None:
    kept = tokens = 0
    try:
        with done:
            for shard in shards:
                entry = shard.entry
                kept, tokens = kept + entry["records"], tokens + entry["answer_tokens"]
                lost = ", ".join(f"{n} {reason}" for reason, n in entry["dropped"].items())
                done.shard(
                    shard,
                    f"{entry['file']}: {entry['records']} records, {entry['answer_tokens']} answer tokens"
                    + (f"; left out: {lost}" if lost else ""),
                )
    except KeyboardInterrupt:
        stderr.print(
            f"interrupted: {done.kept} of {done.total} prompts are in complete shards; the same command goes on",
            style="yellow",
        )
        raise typer.Exit(130) from None
    print(f"{kept} records with {tokens} answer tokens in {output} ({done.seconds:.0f} s)")


def _respond(model: Model, questions: list[Question], batch_size: int) -> Iterator[tuple[int, Reply]]:
    """Plain batched decoding of questions, each with its own seed."""
    from orthrus.config import DecodingConfig, SamplingParams, StopConditions
    from orthrus.decoding.engine import generate
    from orthrus.decoding.sequence import Request
    from orthrus.training.distill import Reply

    requests = [
        Request(
            q.prompt,
            SamplingParams(temperature=q.temperature, top_p=q.top_p, seed=q.seed),
            StopConditions(q.max_new_tokens, frozenset(q.stop_token_ids)),
        )
        for q in questions
    ]
    config = DecodingConfig(cycle="ar", batch_size=batch_size)
    for step in generate(model.runner, requests, config, model.limits):
        sequence = step.sequence
        if sequence.finish_reason is not None:
            tokens = list(sequence.tokens)
            yield sequence.index, Reply(tokens, model.decode(tokens), sequence.finish_reason)


def _backbone(model: Model, dtype: Dtype) -> dict[str, Any]:
    identity = model.checkpoint.backbone
    return {"id": identity.id, "revision": identity.revision, "sha256": identity.sha256, "dtype": dtype.value}


def _excluded(names: list[str]) -> Iterator[tuple[str, ...]]:
    """The runs of words of benchmarks: of all strings of a file, or of the prompts of a task."""
    from orthrus.bench import tasks
    from orthrus.training.prompts import texts_of, word_ngrams

    for name in names:
        if Path(name).is_file():
            values: list[Any] = [record for _, record in prompt_files.lines(Path(name).read_bytes(), name)]
        else:
            values = [prompt.prompt for prompt in tasks.load(name)]
        for text in texts_of(json.loads(json.dumps(values))):
            yield from word_ngrams(text)
