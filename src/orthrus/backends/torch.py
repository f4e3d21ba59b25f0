"""The seam per fast kernel, with its slow twin beside it: the work between matrix products, and attention.

The fast twins of `Kernels` are in `native.py` and `gpu.py`; the products are in `linears.py`. Which attention keeps its
promise on this machine, and under which `RowRule`, is found out in `probes.py`.

Shapes: N rows (those of all sequences), F features; the rest as in `orthrus.config`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from orthrus.backends.linears import ExpandedLinear, Form, GroupedLinear, Int8Linear, Linear, PackedLinear
from orthrus.config import KEY_BLOCK
from orthrus.model.rope import rotate

LANES = 16
CACHE_LIMIT = 1e15
"""Keys and values are kept within this, NaN included: a key that a row does not see is multiplied by zero, and zero
times what is not finite is not zero. No model comes near it."""
LEAST_ATTENDED = 4
"""Rows that torch's fused attention is called with at least: fewer take another path, which rounds differently, on some
processors on few values only, so that a probe may miss it."""


@dataclass(frozen=True)
class Places:
    """Where the rows of a part stand. table_3N: for each row of its products, which row of the `attended` rectangle
    [B, A] of query rows it is, which sequence's, and at which slot of that sequence's cache its key goes.

    The slot is the position, but for blocks that share a pass with AR rows: theirs lie behind those rows. Products may
    have more rows than there are places: padding, which goes nowhere. Rows of the rectangle that nobody takes are zero.
    cos and signed sin are [N, 1, E], fp32.
    """

    table_3N: Tensor
    cos: Tensor
    sin: Tensor
    attended: tuple[int, int]
    norm_eps: float

    @property
    def full(self) -> bool:
        """Whether every row of the rectangle is taken."""
        return self.table_3N.shape[1] == self.attended[0] * self.attended[1]


@dataclass(frozen=True)
class Sight:
    """Which keys the rows of a part see, row by row: the first `seen_N` of their sequence, and the keys of their run.

    runs [runs, 5]: first row, rows, sequence, and from which slot to which all of its rows see each other; most: the
    rows of the longest.
    """

    runs: Tensor
    seen_N: Tensor
    most: int


class Kernels:
    """The work between matrix products, in plain torch: the slow twin of `native.NativeKernels`, on any device."""

    name = build = "torch"
    """build: what tells one set of kernels from another, for what was measured with them."""

    def __init__(self, notice: str | None = None, details: str = "") -> None:
        self.notice, self.details = notice, details
        """Why there are no faster kernels, in a sentence, and what a compiler said of it."""

    def packed(self, plain: Linear) -> Iterator[Form]:
        """Faster forms of a linear map to try, best first; what cannot run here raises RuntimeError when it is made or
        called."""
        if plain.weight.device.type == "cpu" and torch.backends.mkldnn.is_available():
            yield partial(PackedLinear, plain)
            if plain.weight.dtype != torch.float32:
                yield partial(ExpandedLinear, plain)

    def cheap(self, plain: Linear, *, view: bool = False) -> Linear | None:
        """A faster form for drafts, which need not be exact, of a map of the diffusion view or of a copy of another;
        None where there is none."""

    def quantised(self, plain: Linear) -> Iterator[Form]:
        """The same for its int8 form: weights that a file holds in groups of four bits stay as they are."""
        blocks = plain.blocks
        grouped = blocks is not None and blocks.four_bits
        yield partial(GroupedLinear, plain, blocks) if grouped and blocks else partial(Int8Linear, plain)

    def norm(self, x_ND: Tensor, weight_D: Tensor, eps: float) -> Tensor:
        """Root-mean-square norm over D."""
        return F.rms_norm(x_ND, x_ND.shape[-1:], weight_D, eps)

    def add_norm(self, hidden_ND: Tensor, delta_ND: Tensor, weight_D: Tensor, eps: float) -> Tensor:
        """Add `delta` to `hidden` in place and return the norm of the sum."""
        return self.norm(hidden_ND.add_(delta_ND), weight_D, eps)

    def place(
        self,
        qkv_NF: Tensor,
        norms: tuple[Tensor, Tensor] | None,
        places: Places,
        keys_BGTE: Tensor,
        values_BGTE: Tensor,
    ) -> Tensor:
        """Split qkv [N, (H + 2G) E]; norm and rotate q and k; write k and v to the cache, within `CACHE_LIMIT`.

        Returns q [B, A, H, E].
        """
        _, G, _, E = keys_BGTE.shape
        (B, A), (rows_N, sequences_N, slots_N) = places.attended, places.table_3N
        qkv = qkv_NF.view(len(qkv_NF), -1, E)[: len(rows_N)]
        q, k, v = qkv.split((qkv.shape[1] - 2 * G, G, G), dim=1)
        if norms is not None:
            q, k = self.norm(q, norms[0], places.norm_eps), self.norm(k, norms[1], places.norm_eps)
        keys_BGTE.transpose(1, 2)[sequences_N, slots_N] = _finite(rotate(k, places.cos, places.sin))
        values_BGTE.transpose(1, 2)[sequences_N, slots_N] = _finite(v)
        attended = q.new_zeros(B * A, *q.shape[1:])
        return attended.index_copy_(0, rows_N, rotate(q, places.cos, places.sin)).unflatten(0, (B, A))

    def sees(self, head_dim: int) -> bool:
        """Whether `attend` runs heads of this size."""
        del head_dim
        return False

    def attend(self, q_NHE: Tensor, keys_BGTE: Tensor, values_BGTE: Tensor, sight: Sight) -> Tensor:
        """Softmax(q k / sqrt(E)) v [N, H*E] over the keys that each row sees. No row computes anything for others."""
        raise NotImplementedError

    def sureness(self, logits_RV: Tensor) -> Tensor:
        """The largest probability of each row [R], fp32."""
        logits_RV = logits_RV.float()
        return (logits_RV.amax(dim=-1) - logits_RV.logsumexp(dim=-1)).exp()

    def gate(self, gate_up_NF: Tensor) -> Tensor:
        """silu(first half) * second half of the last dimension."""
        gate, up = gate_up_NF.chunk(2, dim=-1)
        return F.silu(gate) * up


def _finite(x: Tensor) -> Tensor:
    return x.nan_to_num(nan=-CACHE_LIMIT).clamp_(-CACHE_LIMIT, CACHE_LIMIT)


class Attend(Protocol):
    """Attention with a mask, over S keys, S a multiple of 512."""

    def __call__(self, q_BRHE: Tensor, k_BGSE: Tensor, v_BGSE: Tensor, bias_B1RS: Tensor) -> Tensor:
        """Softmax(q k / sqrt(E) + bias) v [B, R, H*E]; head h reads key/value head h // (H / G)."""
        ...


def attend_flash(q_BRHE: Tensor, k_BGSE: Tensor, v_BGSE: Tensor, bias_B1RS: Tensor) -> Tensor:
    """One fused call of torch's CPU flash kernel, which reads grouped heads and the cache in place.

    A single row goes with the query heads of a group, and zeros, as its rows: a few rows would take another path.
    """
    B, R, H, E = q_BRHE.shape
    if R == 1:
        q_BGNE = q_BRHE.view(B, k_BGSE.shape[1], -1, E)
        heads = q_BGNE.shape[2]
        padded = F.pad(q_BGNE, (0, 0, 0, -heads % LEAST_ATTENDED))
        out_BGNE = _flash(padded, k_BGSE, v_BGSE, bias_B1RS.expand(-1, -1, padded.shape[2], -1))
        return out_BGNE[:, :, :heads].reshape(B, 1, H * E)
    return attend_flash_ungrouped(q_BRHE, k_BGSE, v_BGSE, bias_B1RS)


def attend_flash_ungrouped(q_BRHE: Tensor, k_BGSE: Tensor, v_BGSE: Tensor, bias_B1RS: Tensor) -> Tensor:
    """The same for any number of rows as they are: what decoding would use that did not care about bits."""
    out_BHRE = _flash(q_BRHE.transpose(1, 2), k_BGSE, v_BGSE, bias_B1RS)
    return out_BHRE.transpose(1, 2).reshape(*q_BRHE.shape[:2], -1)


def _flash(q_BHRE: Tensor, k_BGSE: Tensor, v_BGSE: Tensor, bias_B1RS: Tensor) -> Tensor:
    out_BHRE, _ = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default(
        q_BHRE, k_BGSE, v_BGSE, 0.0, False, attn_mask=bias_B1RS, scale=q_BHRE.shape[-1] ** -0.5
    )
    return out_BHRE


def attend_in_blocks(q_BRHE: Tensor, k_BGSE: Tensor, v_BGSE: Tensor, bias_B1RS: Tensor) -> Tensor:
    """The slow twin: blocks of 512 keys merged in order by online softmax, on any device.

    A block that is masked whole multiplies by exactly 1 and adds exactly 0.
    """
    B, R, H, E = q_BRHE.shape
    G = k_BGSE.shape[1]
    q_BGNE = q_BRHE.view(B, R, G, H // G, E).permute(0, 2, 3, 1, 4).reshape(B, G, -1, E)
    top = torch.full((B, G, q_BGNE.shape[2], 1), float("-inf"), device=q_BRHE.device)
    total, out = torch.zeros_like(top), torch.zeros(q_BGNE.shape, device=q_BRHE.device)
    for start in range(0, k_BGSE.shape[2], KEY_BLOCK):
        keys = slice(start, start + KEY_BLOCK)
        bias = bias_B1RS[..., keys].float().expand(B, H // G, R, KEY_BLOCK).reshape(B, 1, -1, KEY_BLOCK)
        scores = torch.matmul(q_BGNE, k_BGSE[:, :, keys].transpose(-1, -2)).float() * E**-0.5 + bias
        new_top = torch.maximum(top, scores.amax(-1, keepdim=True))
        weights = torch.exp(scores - new_top)
        # as many copies as a vector has lanes: the scalar tail of a vector loop may round an exponential differently
        keep = torch.exp((top - new_top).repeat(1, 1, 1, LANES))[..., :1]
        total = total * keep + weights.sum(-1, keepdim=True)
        out = out * keep + torch.matmul(weights.to(v_BGSE.dtype), v_BGSE[:, :, keys]).float()
        top = new_top
    out_BGNE = (out / total).to(q_BRHE.dtype)
    return out_BGNE.view(B, H, R, E).transpose(1, 2).reshape(B, R, H * E)
