"""Configuration records shared by all packages: frozen dataclasses that validate themselves on construction.

Shape letters used everywhere: B sequences, R rows in a pass, T cached tokens, K block, V vocabulary, H query heads,
G key/value heads, E head dimension, L layers, D hidden.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import isfinite

MAX_SEED = 2**64
GREEDY_BELOW = 1e-5
"""Temperatures below this are greedy: logits divided by them exceed the precision of float32."""
MAX_BIAS = 1e6
KEY_BLOCK = 512
"""Keys are allocated and attended to in chunks of this size; a fully masked chunk does not change the result."""


@dataclass(frozen=True)
class RopeConfig:
    """Initialised rotary frequencies: E/2 `inverse_frequencies`; `scaling` multiplies cosine and sine."""

    inverse_frequencies: tuple[float, ...]
    scaling: float = 1.0


@dataclass(frozen=True)
class DecoderConfig:
    """The config of a decoder; a family translates its Hugging Face config into this record."""

    family: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    norm_eps: float
    rope: RopeConfig
    max_positions: int
    qk_norm: bool = False
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    tied_head: bool = False

    def __post_init__(self) -> None:
        if self.heads % self.kv_heads:
            raise ValueError(f"{self.heads} query heads are not a multiple of {self.kv_heads} key/value heads")
        if len(self.rope.inverse_frequencies) * 2 != self.head_dim:
            raise ValueError(
                f"rotary frequencies cover {2 * len(self.rope.inverse_frequencies)} dimensions,"
                f" the heads have {self.head_dim}"
            )


@dataclass(frozen=True)
class DiffusionConfig:
    """The config of a diffusion view: K, the mask token, and how many rows of a block were trained."""

    block_size: int
    mask_token_id: int
    trained_rows: int

    def __post_init__(self) -> None:
        if self.block_size < 2:
            raise ValueError(f"block_size must be at least 2 (a root and one mask), not {self.block_size}")
        if not 1 <= self.trained_rows <= self.block_size:
            raise ValueError(f"trained_rows must lie in 1..block_size = {self.block_size}, not {self.trained_rows}")
        if self.mask_token_id < 0:
            raise ValueError(f"mask_token_id must not be negative, got {self.mask_token_id}")


@dataclass(frozen=True)
class SamplingParams:
    """How the token of the AR view is chosen from its logits. Temperatures below 1e-5, 0 included, are greedy.

    Processing order: repetition, presence and frequency penalties, logit bias, minimum length; then temperature, top-k,
    top-p, min-p; then Gumbel noise addressed by (seed, sample index, position). `repetition_penalty` counts
    prompt and generated tokens; the other two count generated tokens only, as in vLLM and the OpenAI API.
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

    def __post_init__(self) -> None:
        _within("temperature", self.temperature, 0.0, 100.0)
        _within("top_p", self.top_p, 0.0, 1.0, open_low=True)
        _within("min_p", self.min_p, 0.0, 1.0)
        _within("repetition_penalty", self.repetition_penalty, 0.01, 100.0)
        _within("presence_penalty", self.presence_penalty, -2.0, 2.0)
        _within("frequency_penalty", self.frequency_penalty, -2.0, 2.0)
        if self.top_k < 0:
            raise ValueError(f"top_k must be 0 (off) or positive, not {self.top_k}")
        if self.min_new_tokens < 0:
            raise ValueError(f"min_new_tokens must not be negative, got {self.min_new_tokens}")
        if self.seed is not None and not 0 <= self.seed < MAX_SEED:
            raise ValueError(f"seed must lie in 0..2^64-1, not {self.seed}")
        if not 0 <= self.sample_index < 2**32:
            raise ValueError(f"sample_index must lie in 0..2^32-1, not {self.sample_index}")
        for token, bias in self.logit_bias:
            if token < 0:
                raise ValueError(f"logit_bias needs token ids >= 0, got {token}")
            _within(f"logit_bias of token {token}", bias, -MAX_BIAS, MAX_BIAS)

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
        """Whether the token is the argmax of the unprocessed logits."""
        return self.greedy and not self.penalised and not self.logit_bias and self.min_new_tokens == 0


@dataclass(frozen=True)
class StopConditions:
    """When a sequence ends. An end token is kept in the tokens; a stop string is removed from the text."""

    max_new_tokens: int = 256
    stop_token_ids: frozenset[int] = field(default_factory=frozenset)
    stop_strings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens must be at least 1, not {self.max_new_tokens}")
        if any(not text for text in self.stop_strings):
            raise ValueError("a stop string must not be empty")


@dataclass(frozen=True)
class DecodingConfig:
    """The cycle, its verification rule, and `width`, the rows per diffusion block (None: the block size).

    `candidates` limits the number of blocks of a one-pass cycle (None: one per possible accept count).
    """

    cycle: str = "auto"
    rule: str = "exact"
    width: int | None = None
    candidates: int | None = None
    batch_size: int = 1

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, not {self.batch_size}")
        if self.width is not None and self.width < 2:
            raise ValueError(f"width must be at least 2 (a root and one mask), not {self.width}")
        if self.candidates is not None and (self.candidates < 1 or self.cycle != "one-pass"):
            raise ValueError(f"candidates must be at least 1, and only with cycle one-pass, not {self.candidates}")


@dataclass(frozen=True)
class DistillConfig:
    """How the backbone generates answers and user turns. Temperature 0 is greedy; lengths are in tokens.

    `topics` are the first words of self-written user turns, used round-robin.
    """

    temperature: float = 0.0
    prompt_temperature: float = 1.0
    top_p: float = 1.0
    max_new_tokens: int = 256
    max_prompt_tokens: int = 512
    seed: int = 0
    shard_size: int = 64
    system: str | None = None
    topics: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _within("temperature", self.temperature, 0.0, 100.0)
        _within("prompt_temperature", self.prompt_temperature, 0.0, 100.0)
        _within("top_p", self.top_p, 0.0, 1.0, open_low=True)
        for name in ("max_new_tokens", "max_prompt_tokens", "shard_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if not 0 <= self.seed < MAX_SEED:
            raise ValueError(f"seed must lie in 0..2^64-1, not {self.seed}")


@dataclass(frozen=True)
class TrainConfig:
    """How a diffusion view is trained.

    block_size: K; if `trained_rows` equals it, the last row of a block is trained too. sequence_length: tokens of a
    packed text. roots: blocks per packed text. sequences: packed texts per optimiser step, over all processes. The
    learning rate rises over `warmup` (a fraction of all steps) and decays by a cosine to `final_rate` times its peak.
    The loss weight of a row is `offset_decay` times that of the row before it, since a draft is used only if all drafts
    before it are accepted. Every `validate_every` steps the view decodes the prompts of `held_out` records, which are
    excluded from training.
    """

    block_size: int = 32
    trained_rows: int = 32
    mask_token_id: int = 0
    objective: str = "kl"
    offset_decay: float = 1.0
    sequence_length: int = 2048
    roots: int = 256
    sequences: int = 4
    steps: int = 1000
    learning_rate: float = 2e-4
    warmup: float = 0.05
    final_rate: float = 0.0
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.0
    clip: float = 1.0
    seed: int = 0
    held_out: int = 32
    validate_every: int = 500
    save_every: int = 100

    def __post_init__(self) -> None:
        DiffusionConfig(self.block_size, self.mask_token_id, self.trained_rows)
        for name in ("sequence_length", "roots", "sequences", "steps", "held_out", "validate_every", "save_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.block_size >= self.sequence_length:
            raise ValueError(
                f"block_size {self.block_size} does not fit a sequence of {self.sequence_length} tokens: a block needs"
                " its root and targets inside the text"
            )
        _within("offset_decay", self.offset_decay, 0.0, 1.0, open_low=True)
        _within("learning_rate", self.learning_rate, 0.0, 1.0, open_low=True)
        _within("warmup", self.warmup, 0.0, 1.0)
        _within("final_rate", self.final_rate, 0.0, 1.0)
        _within("weight_decay", self.weight_decay, 0.0, 1.0)
        _within("clip", self.clip, 0.0, 1e6, open_low=True)
        if not 0 <= self.seed < MAX_SEED:
            raise ValueError(f"seed must lie in 0..2^64-1, not {self.seed}")


def _within(name: str, value: float, low: float, high: float, *, open_low: bool = False) -> None:
    if not isfinite(value) or value > high or value < low or (open_low and value == low):
        raise ValueError(f"{name} must lie in {'(' if open_low else '['}{low:g}, {high:g}], not {value!r}")
