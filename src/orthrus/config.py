"""Configuration records shared by all packages: frozen dataclasses that validate themselves on construction.

Shape letters used everywhere: B sequences, R rows in a pass, T cached tokens, K block, V vocabulary, H query heads,
G key/value heads, E head dimension, L layers, D hidden.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from math import isfinite
from typing import Any, Literal

MAX_SEED = 2**64
GREEDY_BELOW = 1e-5
"""Temperatures below this are greedy: logits divided by them exceed the precision of float32."""
MAX_BIAS = 1e6
MAX_LOGPROBS = 20
MAX_CONSTRAINT = 2**18
"""Characters of a schema, a regular expression or a grammar."""
PAGE = 256
"""Positions per page of the cache. Attention splits its keys at multiples of it, or of a multiple of it."""
KEY_BLOCK = 512
"""Keys are allocated and attended to in chunks of this size; a fully masked chunk does not change the result."""
MAX_TREE_NODES = 64
VOCABULARY_MULTIPLE = 32


@dataclass(frozen=True)
class DiffusionConfig:
    """K, the mask token, the trained rows of a block, and their calibration without a draft head, if measured.

    draft_vocabulary: the tokens that are drafted, ascending; None for all. A pass that drafts then computes the logits
    of these alone. A kernel computes whole panels of outputs, so their number is a multiple of `VOCABULARY_MULTIPLE`.
    """

    block_size: int
    mask_token_id: int
    trained_rows: int
    inverse_temperatures: tuple[float, ...] | None = None
    draft_vocabulary: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if not 2 <= self.block_size <= PAGE:
            raise ValueError(f"block_size must lie in 2 (a root and one mask) to {PAGE}, not {self.block_size}")
        if not 1 <= self.trained_rows <= self.block_size:
            raise ValueError(f"trained_rows must lie in 1..block_size = {self.block_size}, not {self.trained_rows}")
        if self.mask_token_id < 0:
            raise ValueError(f"mask_token_id must not be negative, got {self.mask_token_id}")
        tokens = self.draft_vocabulary
        if tokens is not None:
            refuse_vocabulary_size(len(tokens))
            if tokens[0] < 0 or any(one >= other for one, other in pairwise(tokens)):
                raise ValueError("draft_vocabulary must hold different token ids in ascending order")


@dataclass(frozen=True)
class Constraint:
    """What the text of an answer must match. text: a JSON schema as JSON, a regular expression or a Lark grammar.
    tool_calls: the grammar of an answer that is nothing but calls of tools."""

    kind: Literal["json_object", "json_schema", "regex", "grammar", "tool_calls"]
    text: str = ""

    def __post_init__(self) -> None:
        if len(self.text) > MAX_CONSTRAINT:
            raise ValueError(f"{self.kind} may have {MAX_CONSTRAINT} characters, not {len(self.text)}")
        if not self.text and self.kind != "json_object":
            raise ValueError(f"{self.kind} must not be empty")


LogitsProcessor = Callable[[list[int], Any], Any]
"""Tokens of prompt and answer before a row, and its scores, a tensor [V]; gives the new scores."""


@dataclass(frozen=True)
class SamplingParams:
    """How the token of the AR view is chosen from its logits. Temperatures below 1e-5, 0 included, are greedy.

    Processing order: repetition, presence and frequency penalties, logit bias, minimum length, `logits_processors`,
    constraint; then temperature, top-k, top-p, min-p; then Gumbel noise addressed by (seed, sample index, position).
    `repetition_penalty` counts prompt and generated tokens; the other two count generated tokens only, as in vLLM and
    the OpenAI API. A constraint ends an answer that is complete, whatever `min_new_tokens` is. `logprobs` reports each
    token, `prompt_logprobs` each of the prompt, with so many alternatives; None reports nothing.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    min_new_tokens: int = 0
    seed: int | None = None
    sample_index: int = 0
    constraint: Constraint | None = None
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    logits_processors: tuple[LogitsProcessor, ...] = ()

    def __post_init__(self) -> None:
        refuse_outside("temperature", self.temperature, 0.0, 100.0)
        refuse_outside("top_p", self.top_p, 0.0, 1.0, open_low=True)
        refuse_outside("min_p", self.min_p, 0.0, 1.0)
        refuse_outside("repetition_penalty", self.repetition_penalty, 0.01, 100.0)
        refuse_outside("presence_penalty", self.presence_penalty, -2.0, 2.0)
        refuse_outside("frequency_penalty", self.frequency_penalty, -2.0, 2.0)
        if self.top_k < 0:
            raise ValueError(f"top_k must be 0 (off) or positive, not {self.top_k}")
        if self.min_new_tokens < 0:
            raise ValueError(f"min_new_tokens must not be negative, got {self.min_new_tokens}")
        if self.seed is not None and not 0 <= self.seed < MAX_SEED:
            raise ValueError(f"seed must lie in 0..2^64-1, not {self.seed}")
        refuse_outside("sample_index", self.sample_index, 0, 2**32 - 1)
        refuse_outside("logprobs", self.logprobs or 0, 0, MAX_LOGPROBS)
        refuse_outside("prompt_logprobs", self.prompt_logprobs or 0, 0, MAX_LOGPROBS)
        for token, bias in self.logit_bias:
            if token < 0:
                raise ValueError(f"logit_bias needs token ids >= 0, got {token}")
            refuse_outside(f"logit_bias of token {token}", bias, -MAX_BIAS, MAX_BIAS)

    @property
    def greedy(self) -> bool:
        """Whether the token is the argmax of the processed logits."""
        return self.temperature < GREEDY_BELOW

    @property
    def penalised(self) -> bool:
        """Whether penalties make the processed logits depend on earlier tokens."""
        return self.repetition_penalty != 1.0 or self.presence_penalty != 0.0 or self.frequency_penalty != 0.0

    @property
    def plain(self) -> bool:
        """Whether the token is the argmax of the unprocessed logits, of the tokens that a constraint allows."""
        changed = self.penalised or self.logit_bias or self.logits_processors or self.min_new_tokens
        return self.greedy and not changed


@dataclass(frozen=True)
class StopConditions:
    """When a sequence ends. An end token is kept in the tokens; a stop string is removed from the text."""

    max_new_tokens: int = 256
    stop_token_ids: frozenset[int] = field(default_factory=frozenset)
    stop_strings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.max_new_tokens < 0:
            raise ValueError(f"max_new_tokens must not be negative, not {self.max_new_tokens}")
        if any(not text for text in self.stop_strings):
            raise ValueError("a stop string must not be empty")


@dataclass(frozen=True)
class DecodingConfig:
    """The cycle, its verification rule, and `width`, the rows per diffusion block (None: the block size).

    `candidates` limits the number of blocks of a one-pass cycle (None: one for the anchor and one per draft).
    `tree_nodes` is the most drafts of a cycle, a tree (0: a chain; None: as many as in a chain, or as `auto` plans).
    `batch_size` is the most sequences in a pass, `row_budget` the most rows while prompts are prefilled beside others.
    """

    cycle: str = "auto"
    rule: str = "exact"
    width: int | None = None
    candidates: int | None = None
    tree_nodes: int | None = None
    batch_size: int = 1
    row_budget: int = 256

    def __post_init__(self) -> None:
        for name, low in (("batch_size", 1), ("row_budget", 1), ("width", 2)):  # a root and one mask
            if (value := getattr(self, name)) is not None and value < low:
                raise ValueError(f"{name} must be at least {low}, not {value}")
        refuse_outside("tree_nodes", self.tree_nodes or 0, 0, MAX_TREE_NODES)
        if self.candidates is not None and (self.candidates < 1 or self.cycle != "one-pass"):
            raise ValueError(f"candidates must be at least 1, and only with cycle one-pass, not {self.candidates}")


def refuse_vocabulary_size(size: int) -> None:
    """Raise ValueError where no kernel computes the logits of so many drafted tokens."""
    if size < 1 or size % VOCABULARY_MULTIPLE:
        raise ValueError(f"a draft vocabulary has a multiple of {VOCABULARY_MULTIPLE} tokens, not {size}")


def refuse_outside(name: str, value: float, low: float, high: float, *, open_low: bool = False) -> None:
    """Raise ValueError where a setting is not finite or lies outside its range."""
    if not isfinite(value) or value > high or value < low or (open_low and value == low):
        raise ValueError(f"{name} must lie in {'(' if open_low else '['}{low:g}, {high:g}], not {value!r}")
