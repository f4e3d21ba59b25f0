"""One sequence in flight: its tokens, its sampler, and when it stops."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from time import perf_counter
from typing import Literal

from torch import Tensor

from orthrus.cache import BlockTable
from orthrus.config import Constraint, SamplingParams, StopConditions
from orthrus.decoding.constraints import Compiled, Grammar, Grammars
from orthrus.decoding.logprobs import TokenLogprobs, token_logprobs
from orthrus.decoding.noise import AddressedNoise, draw_seed
from orthrus.decoding.plan import PassPlan
from orthrus.decoding.sampling import Sampler
from orthrus.decoding.statistics import Statistics
from orthrus.decoding.text import Decode, Source, TextStream
from orthrus.decoding.verdict import Verdict
from orthrus.drafters.tree import DraftTree
from orthrus.ngrams import Context

FinishReason = Literal["stop", "length", "cancelled", "timeout"]


@dataclass(frozen=True)
class Request:
    """What to decode: prompt tokens, how to sample, when to stop.

    priority: of the requests that wait, those with the lowest number run first. timeout: seconds from `add` after which
    the request ends, whatever it has by then; None for no limit. drafts: False decodes it plainly, one token per pass.
    cache_salt: it shares the cached prefix of its prompt with requests of the same salt alone.
    """

    prompt: tuple[int, ...]
    sampling: SamplingParams = field(default_factory=SamplingParams)
    stop: StopConditions = field(default_factory=StopConditions)
    priority: int = 0
    timeout: float | None = None
    drafts: bool = True
    cache_salt: str = ""

    def __post_init__(self) -> None:
        check_length(self.sampling, self.stop)


@dataclass(frozen=True)
class Limits:
    """The limits that the model sets for every sequence. grammars: compiles constraints; None where there are none."""

    vocab_size: int
    max_positions: int
    end_token_ids: frozenset[int]
    grammars: Grammars | None = None

    def __post_init__(self) -> None:
        for token in self.end_token_ids:
            if not 0 <= token < self.vocab_size:
                raise ValueError(f"end token {token} is outside the vocabulary of {self.vocab_size}")

    def compile(self, constraint: Constraint) -> Compiled:
        """Compile a constraint, which takes up to seconds. Raises ValueError where it cannot be used."""
        if self.grammars is None:
            raise ValueError(f"{constraint.kind} needs a tokenizer")
        return self.grammars.compile(constraint)

    def grammar(
        self, constraint: Constraint | None, end_token_ids: frozenset[int], compiled: Compiled | None = None
    ) -> Grammar | None:
        """The state of a constraint before the first token. It is compiled where it is not given `compiled`.

        Raises ValueError where it cannot be used.
        """
        if constraint is None:
            return None
        compiled = compiled or self.compile(constraint)
        assert self.grammars is not None, "it has been compiled"
        return self.grammars.start(constraint, end_token_ids, compiled)


class Sequence:
    """A request being decoded. It has n committed tokens, of which the newest is the anchor. While it decodes, the
    cache holds the first n - 1.

    `ahead` holds the drafts that an earlier pass made for the next cycle, `block_table` its pages (None while it
    waits). compiled: the constraint of the request, which is compiled here where it is None.
    """

    def __init__(
        self,
        index: int,
        request: Request,
        limits: Limits,
        decode: Decode | None = None,
        compiled: Compiled | None = None,
    ) -> None:
        check_request(request, limits, has_text=decode is not None)
        self.index, self.request = index, request
        seed = request.sampling.seed
        self.seed = draw_seed() if seed is None else seed
        self.ends = limits.end_token_ids | request.stop.stop_token_ids
        grammar = limits.grammar(request.sampling.constraint, self.ends, compiled)
        noise = AddressedNoise(self.seed, request.sampling.sample_index)
        self.sampler = Sampler(request.sampling, noise, request.prompt, self.ends, limits.vocab_size, grammar)
        self.text = TextStream(decode, request.stop.stop_strings) if decode else None
        self.tokens: list[int] = []
        self.logprobs: list[TokenLogprobs] = []
        self.prompt_logprobs: list[TokenLogprobs | None] = []
        self.ahead = DraftTree()
        self.block_table: BlockTable | None = None
        self.finish_reason: FinishReason | None = None
        self.statistics = Statistics()
        self._context = Context()
        self._max_tokens = min(request.stop.max_new_tokens, limits.max_positions - len(request.prompt))
        self._started = 0.0
        self._deadline = None if request.timeout is None else perf_counter() + request.timeout

    @property
    def order(self) -> tuple[int, int]:
        """Sequences run in this order: by priority, then as they came. Pages are taken from the last ones first."""
        return self.request.priority, self.index

    @property
    def overdue(self) -> bool:
        """Whether its time is up."""
        return self._deadline is not None and perf_counter() > self._deadline

    @property
    def table(self) -> BlockTable:
        """The pages of a sequence that does not wait."""
        assert self.block_table is not None
        return self.block_table

    @property
    def anchor(self) -> int:
        """The newest committed token; its K/V is not yet in the cache."""
        return self.tokens[-1] if self.tokens else self.request.prompt[-1]

    @property
    def committed(self) -> list[int]:
        """All n committed tokens."""
        return [*self.request.prompt, *self.tokens]

    @property
    def context(self) -> Context:
        """All committed tokens, in which drafts are looked up."""
        prompt, known = self.request.prompt, len(self._context)
        if known < len(prompt):
            self._context.extend(prompt[known:])
        self._context.extend(self.tokens[len(self._context) - len(prompt) :])
        return self._context

    @property
    def decodes(self) -> bool:
        """Whether it has a token and the cache holds all tokens before it."""
        return bool(self.tokens) and self.table.length == self.length - 1

    @property
    def ready(self) -> bool:
        """Whether a pass may take it: its constraint, if any, has a spare matcher."""
        return self.sampler.grammar is None or self.sampler.grammar.ready

    def wait(self, seconds: float) -> None:
        """Wait until it is ready, or so long."""
        if self.sampler.grammar is not None:
            self.sampler.grammar.wait(seconds)

    @property
    def uncached(self) -> list[int]:
        """The tokens before the anchor that the cache lacks."""
        return self.committed[self.table.length : -1]

    @property
    def scores_prompt(self) -> bool:
        """Whether log-probabilities of its prompt are missing, so that the logits of all prompt rows are needed."""
        asked = self.request.sampling.prompt_logprobs is not None
        return asked and len(self.prompt_logprobs) < len(self.request.prompt)

    @property
    def length(self) -> int:
        """n, the number of committed tokens, prompt included."""
        return len(self.request.prompt) + len(self.tokens)

    @property
    def begun(self) -> bool:
        """Whether the sequence has ever had pages."""
        return self._started > 0

    def begin(self, table: BlockTable) -> None:
        """Give a sequence its pages. The first time, this starts its clock."""
        self.block_table = table
        self._started = self._started or perf_counter()

    def start(self, token: int) -> Verdict:
        """Append the first token, which the prefill predicted. Returns what was kept: nothing if none was asked for."""
        self.statistics.passes += 1
        self.statistics.prefill_seconds = perf_counter() - self._started
        if self._max_tokens:
            self._append([token], ["plain"])
        else:
            self.finish("length")
        return Verdict(list(self.tokens))

    def score_prompt(self, position: int, logits_RV: Tensor) -> None:
        """Record the log-probabilities of prompt tokens, by the logits of the rows from `position` on. A row that was
        computed before, until its sequence was preempted, is skipped."""
        prompt, count = self.request.prompt, self.request.sampling.prompt_logprobs or 0
        if not self.prompt_logprobs:
            self.prompt_logprobs.append(None)
        known = len(self.prompt_logprobs) - 1 - position
        tokens = prompt[position + 1 + known : position + 1 + len(logits_RV)]
        self.prompt_logprobs += token_logprobs(logits_RV[known : known + len(tokens)], tokens, count)

    def score(self, logits_RV: Tensor, kept: Verdict) -> tuple[TokenLogprobs, ...]:
        """Record and return the log-probabilities of the tokens just kept, if they are asked for."""
        count = self.request.sampling.logprobs
        if count is None:
            return ()
        rows = [0, *(1 + node for node in kept.path)][: len(kept.tokens)]
        found = token_logprobs(logits_RV[rows], kept.tokens, count)
        self.logprobs += found
        return tuple(found)

    def append(self, verdict: Verdict, plan: PassPlan) -> Verdict:
        """Append a verdict's tokens until the sequence stops, and count the cycle. Returns the part that was kept."""
        drafted: list[Source] = ["lookup" if plan.draft.kinds[n] == "lookup" else "draft" for n in verdict.path]
        last: Source = "bonus" if plan.offered else "plain"
        kept = self._append(verdict.tokens, [*drafted, last])
        path, depth = verdict.path[:kept], plan.tree.depth
        stopped_early = kept < len(verdict.tokens)
        self.statistics.count_passes(plan)
        self.statistics.count_cycle(plan.kind, min(depth, kept) if stopped_early else depth, len(path))
        return Verdict(verdict.tokens[:kept], path)

    def finish(self, reason: FinishReason) -> None:
        """End the sequence. Its reason is "stop" too where a stop string stood before an incomplete character."""
        self.finish_reason = reason
        self.statistics.seconds = perf_counter() - self._started if self._started else 0.0
        if self.text is not None:
            self.text.finish()
            if self.text.stopped and reason == "length":
                self.finish_reason = "stop"

    def _append(self, tokens: list[int], sources: list[Source]) -> int:
        """Append tokens until the sequence stops. Returns how many were kept."""
        for kept, (token, source) in enumerate(zip(tokens, sources, strict=True), start=1):
            self.tokens.append(token)
            self.statistics.generated += 1
            if self.text is not None and token not in self.ends:
                self.text.push(token, source)
            ending = self.sampler.grammar.ending if self.sampler.grammar else None
            if ending is not None and ending.tokens == len(self.tokens):
                self.finish(ending.reason)
            elif token in self.ends or (self.text is not None and self.text.stopped):
                self.finish("stop")
            elif len(self.tokens) >= self._max_tokens:
                self.finish("length")
            if self.finish_reason is not None:
                return kept
        return len(tokens)


def check_but_constraint(request: Request, limits: Limits, decode: Decode | None) -> None:
    """Raise ValueError if a request cannot be decoded. Its constraint, which takes time to compile, is not checked."""
    free = replace(request, sampling=replace(request.sampling, constraint=None))
    Sequence(0, free, limits, decode)


def check_length(sampling: SamplingParams, stop: StopConditions) -> None:
    """Raise ValueError where a request would have no answer and ask for no log-probabilities of its prompt."""
    if stop.max_new_tokens == 0 and sampling.prompt_logprobs is None:
        raise ValueError("max_new_tokens must be at least 1, not 0, unless prompt_logprobs are asked for")


def check_request(request: Request, limits: Limits, *, has_text: bool) -> None:
    """Raise ValueError with a remedy if a request cannot be decoded."""
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
