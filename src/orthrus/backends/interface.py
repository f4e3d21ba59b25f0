"""What a backend provides: the operations between linear maps, attention, and faster forms of a linear map.

`TorchKernels` is the reference implementation of every operation. `select` picks the backend of a device, and probes
which forms keep their bits under which `RowRule`.

Shapes: N rows (those of all sequences), F features, I inputs, O outputs; the rest as in `orthrus.config`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from orthrus import gumbel
from orthrus.backends.draft_tree import HeadInputs
from orthrus.batch import AttentionMetadata, SlotMapping
from orthrus.decoder_config import DecoderConfig
from orthrus.drafters.tree import DraftTree
from orthrus.gumbel import RandomBits
from orthrus.model.linear import Linear
from orthrus.ngrams import Lookup

MAX_ROWS = 512
"""The maximum rows per call of a kernel. Kernels are probed up to this many."""
CACHE_LIMIT = 1e15
"""Keys and values are clamped to this, NaN included: a key that a row does not attend to is multiplied by zero, and
zero times inf or NaN is not zero. No model comes near it."""
MIN_ATTENDED = 4
"""The minimum rows per call of torch's fused attention. Fewer rows take another code path, which rounds differently; on
some processors it does so for few values only, so that a probe may miss it."""


@dataclass(frozen=True)
class RowRule:
    """How rows must be laid out for a kernel: pad to a `multiple`, call with at most `max_rows` rows.

    `exact` is False if no layout was found under which the bits hold; the rule is then only the best guess.
    """

    multiple: int
    max_rows: int
    exact: bool = True


ATTENTION_FEATURES = ("sliding window", "attention scale", "attention soft cap", "attention sinks")
"""Those of `DecoderConfig.features` that attention kernels must have."""


class Attend(Protocol):
    """Attention with an additive mask, over S keys, S a multiple of 512."""

    def __call__(
        self,
        q_BRHE: Tensor,
        k_BGSE: Tensor,
        v_BGSE: Tensor,
        bias_B1RS: Tensor,
        scale: float | None = None,
        soft_cap: float | None = None,
        sinks_H: Tensor | None = None,
    ) -> Tensor:
        """Softmax(cap(q k scale) + bias) v [B, R, H*E]; head h reads key/value head h // (H / G).

        scale, soft_cap: see `DecoderConfig`. sinks_H: one more score of each head in the softmax, without a value.
        """
        ...


@dataclass(frozen=True)
class AttentionChoice:
    """An attention kernel, its row rule (for the rows of one sequence), and the multiple of keys it must be called
    with.

    single_row: whether one row may be passed without the padding of the rule. ragged: whether passes call
    `Kernels.attend`; then `attend` is its wrapper that takes a mask, which only probes call.
    """

    attend: Attend
    rule: RowRule
    key_multiple: int
    single_row: bool = False
    ragged: bool = False

    def padded(self, rows: int) -> int:
        """The number of rows, padding included, to call the kernel with for `rows` rows of a sequence."""
        return rows if rows == 1 and self.single_row else -(-rows // self.rule.multiple) * self.rule.multiple


class ExecutableLinear(Linear):
    """A linear map that calls its kernel within a row rule."""

    name = "torch linear"
    probed = True
    """Whether the rule must be probed. Not needed if every sum is exact in any order."""
    min_multiple = 2
    """The smallest row multiple to probe. Most libraries compute a single row as a matrix-vector product, which rounds
    differently, but for some values only, so that a probe may miss it. Multiple 1 is therefore probed only for kernels
    that declare that they sum every row independently."""

    def __init__(self, plain: Linear, stored_bytes: int) -> None:
        nn.Module.__init__(self)
        self.register_parameter("weight", None)
        self.bias, self.shape, self.group_quantized = plain.bias, plain.shape, None
        self.quantizable = plain.quantizable
        self.rule = RowRule(2, MAX_ROWS, exact=False)
        self.stored_bytes = stored_bytes
        """Bytes of weights that one call reads."""

    def forward(self, x_NI: Tensor) -> Tensor:
        """y [N, O]: rows padded to the multiple of the rule, at most `max_rows` of them per call."""
        rows, rule = len(x_NI), self.rule
        if rows == 0:
            return x_NI.new_empty(0, self.shape[0])
        padding = -rows % rule.multiple
        if padding:
            x_NI = F.pad(x_NI, (0, 0, 0, padding))
        y_NO = (
            self.run(x_NI)
            if len(x_NI) <= rule.max_rows
            else torch.cat([self.run(x) for x in x_NI.split(rule.max_rows)])
        )
        return y_NO[:rows] if padding else y_NO

    def run(self, x_NI: Tensor) -> Tensor:
        """One call of the kernel, on rows within the rule."""
        raise NotImplementedError

    def probe(self, x_NI: Tensor) -> Tensor:
        """What the probe of the rule compares: `run`, or fewer outputs where each is computed like all others."""
        return self.run(x_NI)


LinearForm = Callable[[], ExecutableLinear]
"""Makes a linear map with another kernel, or raises RuntimeError if that kernel is not available."""


class Kernels(ABC):
    """The operations of one backend for one dtype and device.

    build: identifies these kernels in cached measurements. notice: one sentence on why faster kernels are not
    available; details: the output of the compiler.
    """

    name: str
    build: str
    notice: str | None = None
    details: str = ""

    @classmethod
    @abstractmethod
    def lacking(cls, config: DecoderConfig) -> list[str]:
        """The features of a model for which these kernels have no code. The reference implementation runs instead."""

    @abstractmethod
    def packed(self, plain: Linear) -> Iterator[LinearForm]:
        """Faster forms of a linear map, best first. A form that cannot run on this machine raises RuntimeError when it
        is made or called."""

    @abstractmethod
    def quantised(self, plain: Linear) -> Iterator[LinearForm]:
        """The same for int8. Codes that a file stores may be kept; those of four bits are not quantised again."""

    def multiplies_codes(self, plain: Linear) -> bool:
        """Whether there is a fast product of the codes that the file stores for a map with int8 activations."""
        return False

    @abstractmethod
    def low_precision(self, plain: Linear, *, view: bool = False) -> ExecutableLinear | None:
        """A faster, inexact form for passes that only draft: of a map of the diffusion view (`view`), or of a copy of
        another map. None if these kernels have none."""

    @abstractmethod
    def norm(self, x_ND: Tensor, weight_D: Tensor, eps: float, offset: float = 0.0) -> Tensor:
        """Root-mean-square norm over D, times weight + offset."""

    @abstractmethod
    def add_norm(
        self, hidden_ND: Tensor, delta_ND: Tensor | None, weight_D: Tensor, eps: float, offset: float = 0.0
    ) -> tuple[Tensor, Tensor]:
        """Add `delta` to `hidden` in place; return `hidden` and the norm of the sum."""

    @abstractmethod
    def rope_and_cache_write(
        self,
        qkv_NF: Tensor,
        norms: tuple[Tensor, Tensor] | None,
        mapping: SlotMapping,
        keys_GSE: Tensor,
        values_GSE: Tensor,
    ) -> Tensor:
        """Split qkv [N, (H + 2G) E]; norm and rotate q and k; write k and v to their slots of the cache, clamped to
        `CACHE_LIMIT`.

        Returns q [B, A, H, E], the rectangle of queries.
        """

    @abstractmethod
    def supports_ragged_attention(self, head_dim: int) -> bool:
        """Whether `attend` runs heads of this size."""

    @abstractmethod
    def attend(self, q_NHE: Tensor, keys_GSE: Tensor, values_GSE: Tensor, metadata: AttentionMetadata) -> Tensor:
        """Softmax(cap(q k scale)) v [N, H*E] over the keys that each row attends to, found by block tables. Rows are
        independent of each other."""

    @abstractmethod
    def gate(self, gate_up_NF: Tensor, activation: str = "silu") -> Tensor:
        """activation(first half) * second half of the last dimension."""

    @abstractmethod
    def draft_tree(
        self,
        logits_RV: Tensor,
        temperatures: Sequence[float],
        nodes: int | None,
        inputs: HeadInputs | None = None,
        lookup: Lookup | None = None,
    ) -> DraftTree:
        """See `draft_tree.draft_tree`."""

    def largest_sum(self, logits_1V: Tensor, temperature: float, random: RandomBits, position: int) -> int | None:
        """See `gumbel.largest_sum`."""
        return gumbel.largest_sum(logits_1V, temperature, random, position)

    def noisy_rows(self, logits_RV: Tensor, temperature: float, random: RandomBits, position: int) -> Tensor:
        """See `gumbel.noisy_rows`."""
        return gumbel.noisy_rows(logits_RV, temperature, random, position)
