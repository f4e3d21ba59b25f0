"""`orthrus distill`: training data for a diffusion view.

The backbone generates the answers and, without `--data`, the prompts too.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from orthrus import prompt_files
from orthrus.cli._progress import DistillProgress
from orthrus.cli._shared import CacheOption, DeviceOption, Dtype, DtypeOption, ModelOption, load_model, stderr

if TYPE_CHECKING:
    from orthrus.api import Model
    from orthrus.training.distill import Question, Reply, Shard
    from orthrus.training.prompts import RawText

SHARD_SIZE = 64
"""Prompts per shard by default: a minute or two of work on a laptop."""

OutputOption = Annotated[Path, typer.Option("--output", "-o", help="Directory for the shards and their manifest.")]
DataOption = Annotated[
    list[Path] | None,
    typer.Option(
        help="JSONL with `prompt`, `messages` or ShareGPT `conversations`, with `prompt` and `suffix` for the text of a"
        " gap, or with `prompt` and `raw` to leave the chat template out; may be repeated. Without it the model writes"
        " the user's turns too."
    ),
]
CountOption = Annotated[
    int | None,
    typer.Option(help="Maximum number of prompts.", show_default="all of --data, or 1000 self-written", min=1),
]
TopicsOption = Annotated[
    Path | None, typer.Option(help="Text file, one opening per line: the first words of self-written user turns.")
]
ExcludeOption = Annotated[
    list[str] | None,
    typer.Option(
        help="Benchmark task or JSONL file; prompts that share 13 consecutive words with it, or are shorter"
        " and equal a prompt of it or how one begins, are dropped; may be repeated."
    ),
]
SystemOption = Annotated[str | None, typer.Option(help="System message for self-written prompts.")]
TemperatureOption = Annotated[float, typer.Option(help="Sampling temperature of the answers; 0 is greedy.")]
PromptTemperatureOption = Annotated[float, typer.Option(help="Sampling temperature of self-written user turns.")]
TopPOption = Annotated[float, typer.Option(help="Top-p of answers and self-written user turns.")]
MaxNewTokensOption = Annotated[int, typer.Option(help="Maximum tokens per answer.")]
MaxPromptTokensOption = Annotated[int, typer.Option(help="Drop prompts with more tokens.")]
ShardSizeOption = Annotated[
    int | None,
    typer.Option(
        help="Prompts per shard. A killed run loses at most one shard.",
        show_default=f"{SHARD_SIZE}, or that of the run to resume",
    ),
]
SeedOption = Annotated[
    int, typer.Option(help="Seed of the run; the seed of a record is derived from it and the id of the record.")
]
BatchSizeOption = Annotated[
    int, typer.Option(help="Prompts decoded together in one batch; does not change the records.", min=1)
]


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
    cache: CacheOption = True,
) -> None:
    """Write conversations to train a diffusion view on; the backbone generates the answers.

    After an interruption, run the same command again: complete shards are kept, and the files are the same as those of
    an uninterrupted run.
    """
    from orthrus.training.config import DistillConfig
    from orthrus.training.distill import Distillation
    from orthrus.training.prompts import conversations_in

    words = tuple(line for line in topics.read_text(encoding="utf-8").splitlines() if line.strip()) if topics else ()
    if data and (words or system is not None):
        raise ValueError("--topics and --system are for self-written prompts; leave them or --data out")
    config = DistillConfig(
        temperature, prompt_temperature, top_p, max_new_tokens, max_prompt_tokens, seed,
        _resumed_shard_size(output) if shard_size is None else shard_size, system, words,
    )  # fmt: skip
    several = len(data or ()) > 1
    given = [
        replace(item, id=f"{file.stem}/{item.id}") if several else item
        for file in data or ()
        for item in conversations_in(file.read_bytes(), str(file))
    ]
    excluded = frozenset(_excluded(exclude or []))
    loaded = load_model(model, None, dtype, device, cache=cache)
    total = min(count or len(given), len(given)) if data else count or 1000
    progress = DistillProgress(total)
    run = Distillation(
        output, config, loaded.tokenizer, loaded.checkpoint.end_token_ids, _backbone(loaded, dtype),
        lambda questions: progress.replies(_respond(loaded, questions, batch_size)), excluded, progress.prompts,
        lambda text: _encode_raw(loaded, text),
    )  # fmt: skip
    _follow(run.run(given if data else None, total), progress, output)


def _resumed_shard_size(output: Path) -> int:
    """The shard size of the run in this directory, or the default if there is none."""
    from orthrus.training.shards import MANIFEST, read_manifest

    size = read_manifest(output)["settings"].get("shard_size") if (output / MANIFEST).exists() else None
    return size if isinstance(size, int) else SHARD_SIZE


def _follow(shards: Iterator[Shard], progress: DistillProgress, output: Path) -> None:
    kept = tokens = 0
    try:
        with progress:
            for shard in shards:
                entry = shard.entry
                kept, tokens = kept + entry["records"], tokens + entry["answer_tokens"]
                dropped = ", ".join(f"{n} {reason}" for reason, n in entry["dropped"].items())
                progress.shard(
                    shard,
                    f"{entry['file']}: {entry['records']} records, {entry['answer_tokens']} answer tokens"
                    + (f"; dropped: {dropped}" if dropped else ""),
                )
    except KeyboardInterrupt:
        stderr.print(
            f"interrupted: {progress.kept} of {progress.total} prompts are in complete shards; run the same command to"
            " resume",
            style="yellow",
        )
        raise typer.Exit(130) from None
    print(f"{kept} records with {tokens} answer tokens in {output} ({progress.seconds:.0f} s)")


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


def _encode_raw(model: Model, text: RawText) -> tuple[Sequence[int], frozenset[int]]:
    """A text without a chat template, or a gap by the model's FIM tokens. Raises ValueError where it has none."""
    tokens: Sequence[int] = (
        model.encode(text.prefix) if text.suffix is None else model.fill_in_middle.prompt(text.prefix, text.suffix)
    )
    fim = model.checkpoint.fim
    return tokens, fim.ends if fim is not None and tokens and tokens[-1] == fim.middle else frozenset()


def _backbone(model: Model, dtype: Dtype) -> dict[str, Any]:
    return {**asdict(model.checkpoint.backbone), "dtype": dtype.value}


def _excluded(names: list[str]) -> Iterator[tuple[str, ...]]:
    """Word n-grams to exclude: from all strings of a file, or from the prompts of a benchmark task."""
    from orthrus.bench import tasks
    from orthrus.training.prompts import excluded_ngrams, texts_of

    for name in names:
        if Path(name).is_file():
            values: list[Any] = [record for _, record in prompt_files.lines(Path(name).read_bytes(), name)]
        else:
            values = [prompt.prompt for prompt in tasks.load(name)]
        for text in texts_of(json.loads(json.dumps(values, default=vars))):
            yield from excluded_ngrams(text)
