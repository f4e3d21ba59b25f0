"""The reference implementation of every kernel, in plain torch, on any device.

Tests compare the other backends with it. `invariance` probes which attention keeps its bits on this machine, and under
which `RowRule`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from orthrus.backends.draft_tree import HeadInputs, draft_tree
from orthrus.backends.interface import CACHE_LIMIT, MIN_ATTENDED, ExecutableLinear, Kernels, LinearForm
from orthrus.backends.linears import ExpandedLinear, GroupedLinear, Int8Linear, PackedLinear
from orthrus.batch import AttentionMetadata, SlotMapping
from orthrus.config import KEY_BLOCK
from orthrus.decoder_config import DecoderConfig
from orthrus.drafters.tree import DraftTree
from orthrus.model.linear import Linear
from orthrus.model.norms import rms_norm
from orthrus.model.ops import gate
from orthrus.model.rope import rotate
from orthrus.ngrams import Lookup
from orthrus.quantization import stored_matrices

LANES = 16
"""The fp32 lanes of the widest vector registers."""
LOWEST = torch.finfo(torch.float32).min
"""The largest score before the first key. Minus infinity would give NaN where the first block is fully masked."""


class TorchKernels(Kernels):
    """See `Kernels`, also for the methods below."""

    name = build = "torch"

    def __init__(self, notice: str | None = None, details: str = "") -> None:
        self.notice, self.details = notice, details

    @classmethod
    def lacking(cls, config: DecoderConfig) -> list[str]:
        """None: these are the reference."""
        del config
        return []

    def packed(self, plain: Linear) -> Iterator[LinearForm]:
        """oneDNN's packed weights on CPUs: as they are, then expanded to fp32, for processors without bf16
        arithmetic."""
        if plain.device.type == "cpu" and torch.backends.mkldnn.is_available():
            yield partial(PackedLinear, plain)
            if plain.dtype != torch.float32:
                yield partial(ExpandedLinear, plain)

    def quantised(self, plain: Linear) -> Iterator[LinearForm]:
        """The reference implementations."""
        matrices = stored_matrices(plain.group_quantized)
        yield partial(GroupedLinear, plain, matrices) if matrices else partial(Int8Linear, plain)

    def low_precision(self, plain: Linear, *, view: bool = False) -> ExecutableLinear | None:
        """None."""

    def norm(self, x_ND: Tensor, weight_D: Tensor, eps: float, offset: float = 0.0) -> Tensor:
        """By torch's own operation."""
        return rms_norm(x_ND, weight_D, eps, offset)

    def add_norm(
        self, hidden_ND: Tensor, delta_ND: Tensor | None, weight_D: Tensor, eps: float, offset: float = 0.0
    ) -> tuple[Tensor, Tensor]:
        """In two operations."""
        if delta_ND is not None:
            hidden_ND.add_(delta_ND)
        return hidden_ND, self.norm(hidden_ND, weight_D, eps, offset)

    def rope_and_cache_write(
        self,
        qkv_NF: Tensor,
        norms: tuple[Tensor, Tensor] | None,
        mapping: SlotMapping,
        keys_GSE: Tensor,
        values_GSE: Tensor,
    ) -> Tensor:
        """By indexed assignment."""
        G, _, E = keys_GSE.shape
        (B, A), (query_rows_N, slots_N) = mapping.query_shape, mapping.table_2N
        qkv = qkv_NF.view(len(qkv_NF), -1, E)[: len(query_rows_N)]
        q, k, v = qkv.split((qkv.shape[1] - 2 * G, G, G), dim=1)
        q, k = (
            _normed_and_rotated(x_NHE, weight, mapping)
            for x_NHE, weight in zip((q, k), norms or (None, None), strict=True)
        )
        keys_GSE.transpose(0, 1)[slots_N] = _clamped(k)
        values_GSE.transpose(0, 1)[slots_N] = _clamped(v)
        queries = q.new_zeros(B * A, *q.shape[1:])
        return queries.index_copy_(0, query_rows_N, q).unflatten(0, (B, A))

    def supports_ragged_attention(self, head_dim: int) -> bool:
        """No: attention takes a mask."""
        del head_dim
        return False

    def attend(self, q_NHE: Tensor, keys_GSE: Tensor, values_GSE: Tensor, metadata: AttentionMetadata) -> Tensor:
        """Not available: see `supports_ragged_attention`."""
        raise NotImplementedError

    def gate(self, gate_up_NF: Tensor, activation: str = "silu") -> Tensor:
        """In two operations."""
        return gate(gate_up_NF, activation)

    def draft_tree(
        self,
        logits_RV: Tensor,
        temperatures: Sequence[float],
        nodes: int | None,
        inputs: HeadInputs | None = None,
        lookup: Lookup | None = None,
    ) -> DraftTree:
        """The reference implementation."""
        return draft_tree(logits_RV, temperatures, nodes, inputs, lookup)


def _normed_and_rotated(x_NHE: Tensor, weight_E: Tensor | None, mapping: SlotMapping) -> Tensor:
    """q or k after their norm, if there is one, and the rotation, in the order of the model."""
    norm = (
        None
        if weight_E is None
        else partial(rms_norm, weight_D=weight_E, eps=mapping.norm_eps, offset=mapping.norm_offset)
    )
    if norm is not None and not mapping.norm_last:
        x_NHE = norm(x_NHE)
    x_NHE = rotate(x_NHE, mapping.cos, mapping.sin)
    return norm(x_NHE) if norm is not None and mapping.norm_last else x_NHE


def _clamped(x: Tensor) -> Tensor:
    return x.nan_to_num(nan=-CACHE_LIMIT).clamp_(-CACHE_LIMIT, CACHE_LIMIT)


def attend_flash(
    q_BRHE: Tensor,
    k_BGSE: Tensor,
    v_BGSE: Tensor,
    bias_B1RS: Tensor,
    scale: float | None = None,
    soft_cap: float | None = None,
    sinks_H: Tensor | None = None,
) -> Tensor:
    """One fused call of torch's CPU flash kernel, which reads grouped heads and the cache in place. It has no soft cap
    and no sinks.

    A single row is passed as one row per query head of a group, padded with zero rows, because fewer than
    `MIN_ATTENDED` rows would take another code path.
    """
    B, R, H, E = q_BRHE.shape
    if R == 1:
        assert soft_cap is None and sinks_H is None
        q_BGNE = q_BRHE.view(B, k_BGSE.shape[1], -1, E)
        heads = q_BGNE.shape[2]
        padded = F.pad(q_BGNE, (0, 0, 0, -heads % MIN_ATTENDED))
        out_BGNE = _flash(padded, k_BGSE, v_BGSE, bias_B1RS.expand(-1, -1, padded.shape[2], -1), scale)
        return out_BGNE[:, :, :heads].reshape(B, 1, H * E)
    return attend_flash_ungrouped(q_BRHE, k_BGSE, v_BGSE, bias_B1RS, scale, soft_cap, sinks_H)


def attend_flash_ungrouped(
    q_BRHE: Tensor,
    k_BGSE: Tensor,
    v_BGSE: Tensor,
    bias_B1RS: Tensor,
    scale: float | None = None,
    soft_cap: float | None = None,
    sinks_H: Tensor | None = None,
) -> Tensor:
    """The same for any number of rows, without that padding: what decoding without bitwise guarantees would use."""
    assert soft_cap is None and sinks_H is None
    out_BHRE = _flash(q_BRHE.transpose(1, 2), k_BGSE, v_BGSE, bias_B1RS, scale)
    return out_BHRE.transpose(1, 2).reshape(*q_BRHE.shape[:2], -1)


def _flash(q_BHRE: Tensor, k_BGSE: Tensor, v_BGSE: Tensor, bias_B1RS: Tensor, scale: float | None) -> Tensor:
    scale = q_BHRE.shape[-1] ** -0.5 if scale is None else scale
    out_BHRE, _ = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default(
        q_BHRE, k_BGSE, v_BGSE, 0.0, False, attn_mask=bias_B1RS, scale=scale
    )
    return out_BHRE


def attend_in_blocks(
    q_BRHE: Tensor,
    k_BGSE: Tensor,
    v_BGSE: Tensor,
    bias_B1RS: Tensor,
    scale: float | None = None,
    soft_cap: float | None = None,
    sinks_H: Tensor | None = None,
) -> Tensor:
    """The reference implementation: blocks of 512 keys merged in order by online softmax, on any device.

    A fully masked block multiplies by exactly 1 and adds exactly 0, also before the first key of a sliding window. A
    sink is as a first key whose value is zero.
    """
    B, R, H, E = q_BRHE.shape
    G, scale = k_BGSE.shape[1], E**-0.5 if scale is None else scale
    q_BGNE = q_BRHE.view(B, R, G, H // G, E).permute(0, 2, 3, 1, 4).reshape(B, G, -1, E)
    top = torch.full((B, G, q_BGNE.shape[2], 1), LOWEST, device=q_BRHE.device)
    if sinks_H is not None:
        top = sinks_H.float().view(G, H // G).repeat_interleave(R, 1)[None, :, :, None].expand_as(top)
    total, out = torch.full_like(top, 0.0 if sinks_H is None else 1.0), torch.zeros(q_BGNE.shape, device=q_BRHE.device)
    for start in range(0, k_BGSE.shape[2], KEY_BLOCK):
        keys = slice(start, start + KEY_BLOCK)
        bias = bias_B1RS[..., keys].float().expand(B, H // G, R, KEY_BLOCK).reshape(B, 1, -1, KEY_BLOCK)
        scores = torch.matmul(q_BGNE, k_BGSE[:, :, keys].transpose(-1, -2)).float() * scale
        scores = (scores if soft_cap is None else torch.tanh(scores / soft_cap) * soft_cap) + bias
        new_top = torch.maximum(top, scores.amax(-1, keepdim=True))
        weights = torch.exp(scores - new_top)
        # as many copies as a vector has lanes: the scalar tail of a vector loop may round an exponential differently
        keep = torch.exp((top - new_top).repeat(1, 1, 1, LANES))[..., :1]
        total = total * keep + weights.sum(-1, keepdim=True)
        out = out * keep + torch.matmul(weights.to(v_BGSE.dtype), v_BGSE[:, :, keys]).float()
        top = new_top
    out_BGNE = (out / total).to(q_BRHE.dtype)
    return out_BGNE.view(B, H, R, E).transpose(1, 2).reshape(B, R, H * E)
