"""The settings of the two steps of training: distillation and the training of a diffusion view."""

from __future__ import annotations

from dataclasses import dataclass

from orthrus.config import MAX_SEED, MAX_TREE_NODES, DiffusionConfig, refuse_outside, refuse_vocabulary_size
from orthrus.model.draft_head import UNIT_MULTIPLE

COSINE, WSD = "cosine", "wsd"
SCHEDULES = (COSINE, WSD)
"""See `orthrus.training.schedule`."""


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
        refuse_outside("temperature", self.temperature, 0.0, 100.0)
        refuse_outside("prompt_temperature", self.prompt_temperature, 0.0, 100.0)
        refuse_outside("top_p", self.top_p, 0.0, 1.0, open_low=True)
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
    loss weight of a row is `offset_decay` times that of the row before it, since a draft is used only if all drafts
    before it are accepted. Every `validate_every` steps the view decodes the prompts of `held_out` records, which are
    excluded from training.

    The learning rate rises over `warmup` (a fraction of `steps`) and decays to `final_rate` times its peak: by a cosine
    over all other steps, or, with the schedule `wsd`, over the last `decay_share` of all steps alone. extend: steps
    that are added to `steps`, with `wsd`, in a run that was started without them. ema: the share of the average of the
    weights that a step keeps; 0 for no average.

    head_units: the size of the draft head, which is trained with the view; 0 for none. head_only: train the head alone,
    on a view that stays as it is. The head has an objective of its own, and its learning rate follows the same schedule
    to a peak of its own. head_gradient: the weight of the head's loss in the gradient of the view. draft_vocabulary:
    how many tokens are drafted; 0 for all. validation_nodes: the drafts of the trees by which held-out records are
    decoded; 0 for chains. rank: that of the projections of the view, whose factors are trained; 0 for full ones.
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
    head_units: int = 0
    head_only: bool = False
    head_learning_rate: float = 3e-3
    head_objective: str = "kl"
    head_gradient: float = 0.0
    schedule: str = COSINE
    decay_share: float = 0.2
    extend: int = 0
    ema: float = 0.0
    draft_vocabulary: int = 0
    validation_nodes: int = 8
    rank: int = 0

    @property
    def total_steps(self) -> int:
        """All steps of the run, those that extend it included."""
        return self.steps + self.extend

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
        refuse_outside("offset_decay", self.offset_decay, 0.0, 1.0, open_low=True)
        refuse_outside("learning_rate", self.learning_rate, 0.0, 1.0, open_low=True)
        refuse_outside("head_learning_rate", self.head_learning_rate, 0.0, 1.0, open_low=True)
        refuse_outside("warmup", self.warmup, 0.0, 1.0)
        refuse_outside("final_rate", self.final_rate, 0.0, 1.0)
        if self.schedule not in SCHEDULES:
            raise ValueError(f"there is no schedule {self.schedule!r}; schedules: {', '.join(SCHEDULES)}")
        refuse_outside("decay_share", self.decay_share, 0.0, 1.0)
        if self.schedule != WSD and self.decay_share != TrainConfig.decay_share:
            raise ValueError(
                f"decay_share {self.decay_share:g} is for --schedule {WSD} alone: a cosine decays from the warm-up on"
            )
        if self.schedule == WSD and self.warmup + self.decay_share > 1:
            raise ValueError(
                f"warmup {self.warmup:g} and decay_share {self.decay_share:g} exceed all steps: lower one of them"
            )
        if self.extend < 0 or (self.extend and self.schedule != WSD):
            raise ValueError(
                f"extend {self.extend}: a run is extended by at least one step, and only with --schedule {WSD}; the"
                " rate of a cosine depends on its end, so start another run from its adapter with --warm-start"
            )
        refuse_outside("ema", self.ema, 0.0, 1.0)
        if self.ema == 1:
            raise ValueError("ema must lie in [0, 1): with 1 the average stays at the weights of the start; try 0.999")
        if self.draft_vocabulary:
            refuse_vocabulary_size(self.draft_vocabulary)
        refuse_outside("weight_decay", self.weight_decay, 0.0, 1.0)
        refuse_outside("clip", self.clip, 0.0, 1e6, open_low=True)
        if self.head_units < 0 or self.head_units % UNIT_MULTIPLE:
            raise ValueError(f"head_units must be a multiple of {UNIT_MULTIPLE} (0: no head), not {self.head_units}")
        if self.head_units and self.trained_rows < 2:
            raise ValueError("a draft head corrects the rows after the first of a block, and only one row is trained")
        refuse_outside("validation_nodes", self.validation_nodes, 1 if self.head_only else 0, MAX_TREE_NODES)
        refuse_outside("head_gradient", self.head_gradient, 0.0, 100.0)
        if self.head_gradient and (self.head_only or not self.head_units):
            raise ValueError("head_gradient is for a view and a draft head that are trained together")
        if self.head_only and self.objective != "kl":
            raise ValueError(
                f"head_only does not train the view, whose objective is {self.objective}: set head_objective"
            )
        if self.head_only and not self.head_units:
            raise ValueError("head_only trains the draft head alone, and head_units is 0: nothing is left to train")
        if not 0 <= self.seed < MAX_SEED:
            raise ValueError(f"seed must lie in 0..2^64-1, not {self.seed}")
