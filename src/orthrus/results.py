"""What decoding returns: the result of a prompt, and the chunks of its text as they become certain."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

from orthrus.decoding.cycle import Step
from orthrus.decoding.logprobs import TokenLogprobs
from orthrus.decoding.sequence import Sequence
from orthrus.decoding.statistics import Statistics
from orthrus.decoding.text import Piece
from orthrus.progress import AnswerProgress
from orthrus.token_texts import TokenTexts
from orthrus.tool_calls import ToolCall, parse_tool_calls


@dataclass(frozen=True)
class ScoredToken:
    """A token, its text and its log-probability, with the most likely tokens in its place, likeliest first.

    Special tokens are shown as they are named, a part of a character as `bytes:\\xe2\\x82`. Natural logarithms of the
    model's own distribution: before temperature, penalties and constraints.
    """

    token: int
    text: str
    logprob: float
    top: tuple[ScoredToken, ...] = ()

    @staticmethod
    def of(scored: TokenLogprobs, texts: TokenTexts) -> ScoredToken:
        """The log-probabilities of a token, with texts."""
        top = tuple(ScoredToken(token, texts.text(token), logprob) for token, logprob in scored.top)
        return ScoredToken(scored.token, texts.text(scored.token), scored.logprob, top)

    def to_dict(self) -> dict[str, Any]:
        """Plain values; those of the likeliest tokens have no `top` of their own."""
        plain = {"token": self.token, "text": self.text, "logprob": self.logprob}
        return {**plain, "top": [{k: v for k, v in one.to_dict().items() if k != "top"} for one in self.top]}


@dataclass(frozen=True)
class Result:
    """One finished prompt. `tokens` holds the generated ids, end token included; `seed` is the one that was used, and
    `sample_index` the number of the sample among those of one prompt."""

    text: str
    tokens: list[int]
    finish_reason: str
    statistics: Statistics
    seed: int
    prompt_tokens: int = 0
    logprobs: list[ScoredToken] = field(default_factory=list)
    prompt_logprobs: list[ScoredToken | None] = field(default_factory=list)
    sample_index: int = 0

    @cached_property
    def tool_calls(self) -> list[ToolCall]:
        """The tool calls in the text, where they are in the format of Hermes and Qwen models."""
        return parse_tool_calls(self.text)[1]

    def _records(self) -> Iterator[tuple[str, list[Any]]]:
        yield "tool_calls", [asdict(call) for call in self.tool_calls]
        yield "logprobs", [one.to_dict() for one in self.logprobs]
        yield "prompt_logprobs", [None if one is None else one.to_dict() for one in self.prompt_logprobs]

    def to_dict(self) -> dict[str, Any]:
        """Plain values that `json.dumps` takes: what `orthrus generate --json` prints."""
        return {
            "text": self.text, "tokens": self.tokens, "finish_reason": self.finish_reason, "seed": self.seed,
            "prompt_tokens": self.prompt_tokens, "statistics": self.statistics.as_dict(),
            **({"sample_index": self.sample_index} if self.sample_index else {}),
            **{name: records for name, records in self._records() if records},
        }  # fmt: skip


@dataclass(frozen=True)
class Chunk:
    """What a cycle added to the text. `result` is set on the last chunk."""

    pieces: list[Piece]
    result: Result | None = None

    @property
    def text(self) -> str:
        """The new text."""
        return "".join(piece.text for piece in self.pieces)


def result_of(sequence: Sequence, texts: TokenTexts) -> Result:
    """The result of a finished sequence."""
    assert sequence.finish_reason is not None and sequence.text is not None
    return Result(
        sequence.text.text, list(sequence.tokens), sequence.finish_reason, sequence.statistics, sequence.seed,
        len(sequence.request.prompt),
        [ScoredToken.of(one, texts) for one in sequence.logprobs],
        [None if one is None else ScoredToken.of(one, texts) for one in sequence.prompt_logprobs],
        sequence.request.sampling.sample_index,
    )  # fmt: skip


def in_order(steps: Iterator[Step], texts: TokenTexts, progress: AnswerProgress) -> Iterator[tuple[int, Result]]:
    """Finished sequences with their indices, in order. The progress is hidden while the caller has a result."""
    ready: dict[int, Result] = {}
    following = 0
    try:
        for step in steps:
            progress.count(step)
            if step.finish_reason is not None:
                ready[step.sequence.index] = result_of(step.sequence, texts)
            while following in ready:
                progress.hide()
                yield following, ready.pop(following)
                following += 1
    finally:
        progress.hide()


def chunks(steps: Iterator[Step], texts: TokenTexts) -> Iterator[Chunk]:
    """The text of one sequence as it becomes certain."""
    for step in steps:
        done = step.finish_reason is not None
        yield Chunk(list(step.pieces), result_of(step.sequence, texts) if done else None)


def grouped(results: Iterator[tuple[int, Result]], n: int) -> Iterator[tuple[int, list[Result]]]:
    """The results of `n` samples of each prompt, with the index of the prompt."""
    group: list[Result] = []
    for index, result in results:
        group.append(result)
        if len(group) == n:
            yield index // n, group
            group = []
