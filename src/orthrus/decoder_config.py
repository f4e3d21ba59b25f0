"""The config of a decoder: the features of a transformer block, as frozen records that validate themselves.

A family translates its Hugging Face config into a `DecoderConfig`. Shape letters are those of `orthrus.config`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import isfinite

ACTIVATIONS = ("silu", "gelu_tanh", "relu2", "clamped_swiglu")
QK_NORMS = ("head", "heads", "row")
"""Norms of q and k: one for every head with weights that all share, one with weights of its own, one over all heads."""


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

    normalised: whether the weights of the chosen experts are scaled to a sum of 1. router_bias: whether the router has
    a bias. shared_size: the size of an MLP that every row runs through, times a gate of its own (None: there is none).
    """

    count: int
    active: int
    intermediate_size: int
    normalised: bool
    router_bias: bool = False
    shared_size: int | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.active <= self.count:
            raise ValueError(
                f"experts per token must lie in 1..{self.count} (the number of experts), not {self.active}"
            )


@dataclass(frozen=True)
class DecoderConfig:
    """The config of a decoder; a family translates its Hugging Face config into this record.

    per_layer: one `LayerConfig` per layer, or none where all layers are alike. rotary_dim: how many of the first
    dimensions of a head are rotated (None: all). rotary_pairs: whether files pair neighbouring dimensions for rotation,
    not those of two halves. fused_sources: what files hold as one tensor, of "qkv" and "gate_up".

    Norms multiply by their weight plus `norm_offset`; `norm_centred` ones take the mean off first and may have biases.
    `pre_norms` stand before attention and MLP, `post_norms` after them. qk_norm: one of `QK_NORMS`, or None; it stands
    before the rotary embeddings, or after them (`qk_norm_last`). `parallel` layers run attention and MLP on the same
    normed rows. Updates of the residual stream are multiplied by `residual_scale`, attention scores by
    `attention_scale` (None: 1 / sqrt(E)), logits by `logit_scale`. A soft cap c maps x to c tanh(x / c). An MLP that is
    not `gated` is down(activation(up)). With `attention_sinks` the softmax of each head has one score more, whose share
    is lost.
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
    qk_norm: str | None = None
    qk_norm_last: bool = False
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    tied_head: bool = False
    per_layer: tuple[LayerConfig, ...] = ()
    experts: ExpertsConfig | None = None
    activation: str = "silu"
    gated: bool = True
    norm_offset: float = 0.0
    norm_centred: bool = False
    norm_bias: bool = False
    pre_norms: bool = True
    post_norms: bool = False
    parallel: bool = False
    embedding_scale: float = 1.0
    residual_scale: float = 1.0
    logit_scale: float = 1.0
    attention_scale: float | None = None
    attention_soft_cap: float | None = None
    attention_sinks: bool = False
    logit_soft_cap: float | None = None
    rotary_dim: int | None = None
    rotary_pairs: bool = False
    fused_sources: tuple[str, ...] = ()

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
        if self.qk_norm is not None and self.qk_norm not in QK_NORMS:
            raise ValueError(f"qk_norm {self.qk_norm!r} is not supported, only {', '.join(QK_NORMS)}")
        if self.qk_norm_last and self.qk_norm != "head":
            raise ValueError(f"norms after rotary embeddings must be those that all heads share, not {self.qk_norm!r}")
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
            "attention sinks": self.attention_sinks,
            "logit soft cap": self.logit_soft_cap is not None,
            "several rotary tables": len(self.ropes) > 1,
            "norm offset": self.norm_offset != 0.0,
            "norms after attention and MLP": self.post_norms,
            "no norms before attention and MLP": not self.pre_norms,
            "LayerNorm": self.norm_centred,
            "q and k norms of whole rows": self.qk_norm == "row",
            "q and k norms that differ by head": self.qk_norm == "heads",
            "q and k norms after rotary embeddings": self.qk_norm_last,
            "attention and MLP in parallel": self.parallel,
            "embedding scale": self.embedding_scale != 1.0,
            "residual scale": self.residual_scale != 1.0,
            "logit scale": self.logit_scale != 1.0,
            "GELU": self.activation == "gelu_tanh",
            "squared ReLU": self.activation == "relu2",
            "clamped SwiGLU": self.activation == "clamped_swiglu",
            "MLP without gates": not self.gated,
            "experts": self.experts is not None,
        }
        return tuple(name for name, has in present.items() if has)
