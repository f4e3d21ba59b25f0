"""One sequence in flight: its tokens, its sampler, when it stops, and what it cost."""

from __future__ import annotations

from dataclasses import dataclass, field
from time import perf_counter
from typing import Literal

from torch import Tensor

from orthrus.config import SamplingParams, StopConditions
from orthrus.decoding.noise import AddressedNoise, draw_seed
from orthrus.decoding.sampling import Sampler
from orthrus.decoding.text import Decode, TextStream

FinishReason = Literal["stop", "length", "cancelled"]
SHAPE = ("kind", "drafts", "blocks", "width", "count")
Kind = Literal["agrees", "differs", "lookup"]


@dataclass(frozen=True)
class Request:
    """What to decode: prompt tokens, how to sample, when to stop."""

    prompt: tuple[int, ...]
    sampling: SamplingParams = field(default_factory=SamplingParams)
    stop: StopConditions = field(default_factory=StopConditions)


@dataclass(frozen=True)
class Limits:
    """What the model imposes on every sequence."""

    vocab_size: int
    max_positions: int
    end_token_ids: frozenset[int]

    def __post_init__(self) -> None:
        for token in self.end_token_ids:
            if not 0 <= token < self.vocab_size:
                raise ValueError(f"end token {token} is outside the vocabulary of {self.vocab_size}")


@dataclass(frozen=True)
class Draft:
    """Proposed tokens, and the distributions [m, V] they were drawn from where they were drawn.

    kind: where they come from: a block that foresaw the token before them or (`differs`) did not, or the text itself;
    start: the row of the block that gave the first of them; confidence: how sure each is, in 0..1, where known.
    """

    tokens: list[int] = field(default_factory=list)
    q_RV: Tensor | None = None
    kind: Kind = "agrees"
    start: int = 0
    confidence: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Verdict:
    """The outcome of one verification: `accepted` drafts and the bonus token after them."""

    tokens: list[int]
    accepted: int


@dataclass
class Statistics:
    """What a sequence cost. `passes` are full-depth forward passes, the prefill counted once. `seconds` include it.

    `shapes` counts cycles by (kind, drafts offered, blocks, width of a block).
    """

    generated: int = 0
    passes: int = 0
    rows: int = 0
    cycles: dict[str, int] = field(default_factory=dict)
    drafted: list[int] = field(default_factory=list)
    accepted: list[int] = field(default_factory=list)
    seconds: float = 0.0
    prefill_seconds: float = 0.0
    shapes: dict[tuple[str, int, int, int], int] = field(default_factory=dict)

    @property
    def acceptance_length(self) -> float:
        """A: accepted drafts per cycle, bonus excluded; 0 where no cycle ran."""
        cycles = sum(self.cycles.values())
        return sum(self.accepted) / cycles if cycles else 0.0

    @property
    def tpf(self) -> float:
        """Generated tokens per full-depth forward pass."""
        return self.generated / self.passes if self.passes else 0.0

    @property
    def rows_per_pass(self) -> float:
        """Rows of this sequence per cycle pass; the prefill's rows are its prompt and left out."""
        return self.rows / (self.passes - 1) if self.passes > 1 else 0.0

    @property
    def acceptance_by_offset(self) -> list[float]:
        """The share of drafts accepted at each offset of a block."""
        return [a / d for a, d in zip(self.accepted, self.drafted, strict=True)]

    def count_cycle(self, kind: str, drafted: int, accepted: int) -> None:
        """Enter one cycle: how many drafts were offered and how many of them kept."""
        self.cycles[kind] = self.cycles.get(kind, 0) + 1
        missing = drafted - len(self.drafted)
        self.drafted += [0] * missing
        self.accepted += [0] * missing
        for offset in range(drafted):
            self.drafted[offset] += 1
            self.accepted[offset] += offset < accepted

    def as_dict(self) -> dict[str, object]:
        """The record that `--json` prints."""
        return {
            "generated": self.generated,
            "passes": self.passes,
            "cycles": sum(self.cycles.values()),
            "acceptance_length": self.acceptance_length,
            "tokens_per_cycle": self.acceptance_length + 1 if self.cycles else 0.0,
            "tpf": self.tpf,
            "seconds": self.seconds,
            "prefill_seconds": self.prefill_seconds,
            "rows_per_pass": self.rows_per_pass,
            "acceptance_by_offset": self.acceptance_by_offset,
            "cycles_by_kind": dict(self.cycles),
            "shapes": [dict(zip(SHAPE, (*shape, n), strict=True)) for shape, n in self.shapes.items()],
        }


class Sequence:
    """A request being decoded. n committed tokens; the cache holds the first n - 1; the newest is the anchor.

    `ahead` are drafts that an earlier pass made for the next cycle.
    """

    def __init__(self, index: int, request: Request, limits: Limits, decode: Decode | None = None) -> None:
        check_request(request, limits, has_text=decode is not None)
        self.index, self.request = index, request
        seed = request.sampling.seed
        self.seed = draw_seed() if seed is None else seed
        self.ends = limits.end_token_ids | request.stop.stop_token_ids
        noise = AddressedNoise(self.seed, request.sampling.sample_index)
        self.sampler = Sampler(request.sampling, noise, request.prompt, self.ends, limits.vocab_size)
        self.text = TextStream(decode, request.stop.stop_strings) if decode else None
        self.tokens: list[int] = []
        self.ahead = Draft()
        self.finish_reason: FinishReason | None = None
        self.statistics = Statistics()
        self._room = min(request.stop.max_new_tokens, limits.max_positions - len(request.prompt))
        self._started = 0.0

    @property
    def anchor(self) -> int:
        """The newest committed token; its K/V is not yet in the cache."""
        return self.tokens[-1]

    @property
    def length(self) -> int:
        """n, the number of committed tokens, prompt included."""
        return len(self.request.prompt) + len(self.tokens)

    def begin(self) -> None:
        """Start this sequence's clock, at its prefill."""
        self._started = perf_counter()

    def start(self, token: int) -> None:
        """Commit the token that the prefill gave."""
        self.statistics.passes += 1
        self.statistics.prefill_seconds = perf_counter() - self._started
        self._commit([token])

    def commit(self, verdict: Verdict, kind: str, drafted: int) -> Verdict:
        """Append a verdict's tokens up to where the sequence stops; count the cycle. Returns what was kept."""
        kept = self._commit(verdict.tokens)
        accepted = min(verdict.accepted, kept)
        stopped_early = kept < len(verdict.tokens)
        self.statistics.count_cycle(kind, min(drafted, kept) if stopped_early else drafted, accepted)
        return Verdict(verdict.tokens[:kept], accepted)

    def count_pass(self, rows: int) -> None:
        """Enter one full-depth forward pass in which this sequence took part with `rows` rows."""
        self.statistics.passes += 1
        self.statistics.rows += rows

    def count_shape(self, shape: tuple[str, int, int, int]) -> None:
        """Enter the shape of a cycle."""
        self.statistics.shapes[shape] = self.statistics.shapes.get(shape, 0) + 1

    def finish(self, reason: FinishReason) -> None:
        """End the sequence."""
        self.finish_reason = reason
        self.statistics.seconds = perf_counter() - self._started
        if self.text is not None:
            self.text.finish()

    def _commit(self, tokens: list[int]) -> int:
        """Append tokens until the sequence stops; returns how many were kept."""
        for kept, token in enumerate(tokens, start=1):
            self.tokens.append(token)
            self.statistics.generated += 1
            if self.text is not None and token not in self.ends:
                self.text.push(token)
            if token in self.ends or (self.text is not None and self.text.stopped):
                self.finish("stop")
            elif len(self.tokens) >= self._room:
                self.finish("length")
            if self.finish_reason is not None:
                return kept
        return len(tokens)


def check_request(request: Request, limits: Limits, *, has_text: bool) -> None:
    """Raises ValueError where a request cannot be decoded, saying what would help."""
    prompt = request.prompt
    if not prompt:
        raise ValueError("the prompt is empty: there is no token to continue from")
    if len(prompt) >= limits.max_positions:
        raise ValueError(
            f"the prompt has {len(prompt)} tokens, the model's context {limits.max_positions}: shorten the prompt"
        )
    if not 0 <= min(prompt) <= max(prompt) < limits.vocab_size:
        raise ValueError(f"the prompt holds token ids outside the vocabulary of {limits.vocab_size}")
    for token in request.stop.stop_token_ids:
        if not 0 <= token < limits.vocab_size:
            raise ValueError(f"stop token {token} is outside the vocabulary of {limits.vocab_size}")
    if request.stop.stop_strings and not has_text:
        raise ValueError("stop strings need a tokenizer")
