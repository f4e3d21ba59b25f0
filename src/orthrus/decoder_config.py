"""The config of a decoder: the features of a transformer block, as frozen records that validate themselves.

A family translates its Hugging Face config into a `DecoderConfig`. Shape letters are those of `orthrus.config`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import isfinite

ACTIVATIONS = ("silu", "gelu_tanh")


@dataclass(frozen=True)
class RopeConfig:
    """Initialised rotary frequencies: E/2 `inverse_frequencies`; `scaling` multiplies cosine and sine.

    A frequency of zero leaves its pair of dimensions as it is. Partial rotary embeddings have zeros after the others,
    and a layer without positions has only zeros, so kernels need no case for either.
    """

    inverse_frequencies: tuple[float, ...]
    scaling: float = 1.0


@dataclass(frozen=True)
class LayerConfig:
    """What may differ between the layers of a decoder.

    window: a row attends to this many newest keys, its own included (None: to all). rope: the place of its frequencies
    in `DecoderConfig.ropes`. experts: whether its MLP is a mixture of experts.
    """

    window: int | None = None
    rope: int = 0
    experts: bool = False

    def __post_init__(self) -> None:
        if self.window is not None and self.window < 1:
            raise ValueError(f"a sliding window must hold at least 1 key, not {self.window}")


@dataclass(frozen=True)
class ExpertsConfig:
    """A mixture of experts: `count` MLPs of size `intermediate_size`, of which a router chooses `active` per row.

    normalised: whether the weights of the chosen experts are scaled to a sum of 1.
    """

    count: int
    active: int
    intermediate_size: int
    normalised: bool

    def __post_init__(self) -> None:
        if not 1 <= self.active <= self.count:
            raise ValueError(
                f"experts per token must lie in 1..{self.count} (the number of experts), not {self.active}"
            )


@dataclass(frozen=True)
class DecoderConfig:
    """The config of a decoder; a family translates its Hugging Face config into this record.

    per_layer: one `LayerConfig` per layer, or none where all layers are alike. rotary_dim: how many of the first
    dimensions of a head are rotated (None: all). fused_sources: whether files hold q, k and v as one tensor, and gate
    and up as another. Norms multiply by their weight plus `norm_offset`; with `post_norms` the outputs of attention and
    MLP are normed too. Attention scores are multiplied by `attention_scale` (None: 1 / sqrt(E)). A soft cap c maps x to
    c tanh(x / c).
    """

    family: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    norm_eps: float
    ropes: tuple[RopeConfig, ...]
    max_positions: int
    qk_norm: bool = False
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    tied_head: bool = False
    per_layer: tuple[LayerConfig, ...] = ()
    experts: ExpertsConfig | None = None
    activation: str = "silu"
    norm_offset: float = 0.0
    post_norms: bool = False
    embedding_scale: float = 1.0
    attention_scale: float | None = None
    attention_soft_cap: float | None = None
    logit_soft_cap: float | None = None
    rotary_dim: int | None = None
    fused_sources: bool = False

    def __post_init__(self) -> None:
        if self.heads % self.kv_heads:
            raise ValueError(f"{self.heads} query heads are not a multiple of {self.kv_heads} key/value heads")
        for rope in self.ropes:
            covered = 2 * len(rope.inverse_frequencies)
            if covered != self.head_dim:
                raise ValueError(f"rotary frequencies cover {covered} dimensions, the heads have {self.head_dim}")
        if self.per_layer and len(self.per_layer) != self.layers:
            raise ValueError(f"{len(self.per_layer)} layers are described, the decoder has {self.layers}")
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"activation {self.activation!r} is not supported, only {', '.join(ACTIVATIONS)}")
        for name in ("attention_soft_cap", "logit_soft_cap"):
            cap = getattr(self, name)
            if cap is not None and not (isfinite(cap) and cap > 0):
                raise ValueError(f"{name} must be positive, not {cap}")

    def layer(self, index: int) -> LayerConfig:
        """What layer `index` may have of its own."""
        return self.per_layer[index] if self.per_layer else LayerConfig()

    @cached_property
    def windows(self) -> tuple[int | None, ...]:
        """The distinct windows of the layers."""
        return tuple(dict.fromkeys(self.layer(index).window for index in range(self.layers)))

    @property
    def features(self) -> tuple[str, ...]:
        """The features that a backend may lack, by name. Models without any run on every kernel."""
        present = {
            "sliding window": any(window is not None for window in self.windows),
            "attention scale": self.attention_scale is not None,
            "attention soft cap": self.attention_soft_cap is not None,
            "logit soft cap": self.logit_soft_cap is not None,
            "several rotary tables": len(self.ropes) > 1,
            "norm offset": self.norm_offset != 0.0,
            "norms after attention and MLP": self.post_norms,
            "embedding scale": self.embedding_scale != 1.0,
            "GELU": self.activation == "gelu_tanh",
            "experts": self.experts is not None,
        }
        return tuple(name for name, has in present.items() if has)
