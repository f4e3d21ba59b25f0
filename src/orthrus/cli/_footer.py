"""Statistics that `orthrus generate` prints below the text."""

from __future__ import annotations

from collections import Counter
from time import perf_counter
from typing import TYPE_CHECKING

from rich.console import Console

if TYPE_CHECKING:
    from orthrus.api import Model, Result


class Clock:
    """Wall time of a run since the clock was created, and the time to its first token."""

    def __init__(self) -> None:
        self._started = perf_counter()
        self.first: float | None = None
        """Seconds until the first token; None before there is one."""

    @property
    def seconds(self) -> float:
        """Seconds since the clock was created."""
        return perf_counter() - self._started

    def token(self) -> None:
        """Record that a token arrived."""
        if self.first is None:
            self.first = self.seconds


def print_footer(console: Console, results: list[Result], clock: Clock, *, sampling: str) -> None:
    """Print tokens, seconds and speed of prompt and answer. Several prompts are summed; they share passes, so there is
    no time of the prompts alone.

    sampling: the settings in words, which `orthrus.cli._defaults` gives.
    """
    alone, statistics = len(results) == 1, [result.statistics for result in results]
    prompt, prefill = sum(result.prompt_tokens for result in results), statistics[0].prefill_seconds
    first = f", first token after {clock.first:.2f} s" if clock.first is not None else ""
    line = f"prompt: {prompt} tokens read in {prefill:.2f} s ({_rate(prompt, prefill)}){first}"
    if not alone:
        line = f"{len(results)} prompts: {prompt} tokens, {statistics[0].batch_size} prompts at a time"
    console.print(line, style="dim", soft_wrap=True)
    generated, passes = sum(s.generated for s in statistics), sum(s.passes for s in statistics)
    seconds = statistics[0].seconds if alone else clock.seconds
    ended = Counter(result.finish_reason for result in results)
    how = ", ".join(reason if alone else f"{reason} {count}" for reason, count in sorted(ended.items()))
    seed = f", seed {results[0].seed}" if alone and not sampling.startswith("greedy") else ""
    console.print(
        f"{generated} tokens in {passes} passes ({generated / passes:.2f} per pass), {seconds:.2f} s,"
        f" {_rate(generated, seconds)}, ended by {how}{seed}, {sampling}",
        style="dim",
        soft_wrap=True,
    )


def print_details(console: Console, model: Model, results: list[Result], load_seconds: float) -> None:
    """Print model, kernels, threads, cycles by kind and acceptance by offset, for `--verbose`."""
    import torch

    cycles, drafted, accepted = Counter[str](), Counter[int](), Counter[int]()
    for result in results:
        cycles.update(result.statistics.cycles)
        drafted.update(dict(enumerate(result.statistics.drafted)))
        accepted.update(dict(enumerate(result.statistics.accepted)))
    kinds = ", ".join(f"{kind} {count}" for kind, count in cycles.most_common()) or "none"
    shares = " ".join(f"{accepted[offset] / count:.2f}" for offset, count in sorted(drafted.items()) if count)
    average = sum(accepted.values()) / max(1, sum(cycles.values()))
    threads = torch.get_num_threads()
    pass_threads = f"{threads} thread{'s' if threads > 1 else ''}"
    for name, value in (
        ("model", repr(model)),
        ("loaded", f"in {load_seconds:.2f} s; {pass_threads}; context {model.limits.max_positions}"),
        ("elementwise kernels", model.runner.kernels.name),
        ("cycles", kinds),
        ("accepted", f"{average:.2f} drafts per cycle; by offset {shares or '-'}"),
    ):
        console.print(f"{name}: {value}", style="dim", markup=False, soft_wrap=True)


def _rate(tokens: int, seconds: float) -> str:
    return f"{tokens / seconds:.1f} tokens/s" if seconds else "- tokens/s"
