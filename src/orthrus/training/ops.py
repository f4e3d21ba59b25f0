"""The elementwise operations and reductions of a training step, forward and backward: in torch and in C.

On processors with AMX the GEMMs are so fast that these operations, as a dozen small torch kernels each, would dominate.
"""

from __future__ import annotations

import ctypes
import logging
import math
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from orthrus.backends.native import build, compiler, structs
from orthrus.file_cache import cache_directory
from orthrus.model.draft_head import CANDIDATES
from orthrus.model.norms import rms_norm
from orthrus.model.ops import gate
from orthrus.model.rope import rotate

LANES = 16
LEAST_REST = 1e-7
"""The least share of the tokens that are no candidates in the sum over all: differences below it are rounding."""

log = logging.getLogger(__name__)


class Ops:
    """The reference implementation in torch, for any device. Shapes as in `orthrus.training.step`."""

    def norm(self, x_ND: Tensor, weight_D: Tensor, eps: float, offset: float = 0.0) -> Tensor:
        """Root-mean-square norm over D, times weight + offset, with a frozen weight."""
        return rms_norm(x_ND, weight_D, eps, offset)

    def add_norm(
        self, hidden_ND: Tensor, delta_ND: Tensor | None, weight_D: Tensor, eps: float, offset: float = 0.0
    ) -> tuple[Tensor, Tensor]:
        """hidden + delta (hidden alone where delta is None), and its norm."""
        if delta_ND is not None:
            hidden_ND = hidden_ND + delta_ND
        return hidden_ND, self.norm(hidden_ND, weight_D, eps, offset)

    def gate(self, gate_up_NF: Tensor, activation: str = "silu") -> Tensor:
        """activation(first half) * second half."""
        return gate(gate_up_NF, activation)

    def rotate(self, x_NHE: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
        """RoPE: rotate each head by the position of its row; `rope` is the cosine and the signed sine [N, 1, E]."""
        return rotate(x_NHE, *rope)

    def block_softmax(
        self,
        past: Tensor,
        own: Tensor,
        kv_lens_S: Tensor,
        scale: float,
        window: int | None = None,
        sinks_GR: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """One softmax over the scores of the text [G, S, R, T] and of the block [G, S, R, K], and over one more per row
        where there are sinks.

        Scores of the text from position `kv_lens_S` [S] on are masked, and those before the window of the root.
        """
        text = past.shape[-1]
        scores = torch.cat((past, own), dim=-1).mul_(scale)
        slots_T = torch.arange(text, device=past.device)
        masked_ST = slots_T >= kv_lens_S[:, None]
        if window is not None:
            masked_ST |= slots_T < kv_lens_S[:, None] + 1 - window
        scores[..., :text].masked_fill_(masked_ST[None, :, None], float("-inf"))
        if sinks_GR is not None:
            sinks_GSR1 = sinks_GR.to(scores.dtype)[:, None, :, None].expand(*scores.shape[:3], 1)
            scores = torch.cat((scores, sinks_GSR1), dim=-1)
        weights = scores.softmax(-1)
        return weights[..., :text], weights[..., text : text + own.shape[-1]]

    def block_softmax_backward(
        self, weights: tuple[Tensor, Tensor], grads: tuple[Tensor, Tensor], scale: float
    ) -> tuple[Tensor, Tensor]:
        """Gradients with respect to both tensors of scores, given those with respect to the weights."""
        dot = sum((w * g).sum(-1, keepdim=True) for w, g in zip(weights, grads, strict=True))
        past, own = (w * (g - dot) * scale for w, g in zip(weights, grads, strict=True))
        return past, own

    def largest(self, logits_NV: Tensor) -> tuple[Tensor, Tensor]:
        """The largest logit of each row [N], and a token that has it [N]."""
        largest_N, tokens_N = logits_NV.max(-1)
        return largest_N, tokens_N

    def forward_kl(self, student_NV: Tensor, teacher_NV: Tensor) -> tuple[Tensor, Tensor]:
        """KL(teacher || student) of each row [N], and its gradient with respect to the student logits [N, V]."""
        log_q, log_p = student_NV.float().log_softmax(-1), teacher_NV.float().log_softmax(-1)
        p = log_p.exp()
        losses_N = (p * (log_p - log_q)).sum(-1)
        return losses_N, log_q.exp_().sub_(p)

    def candidates(self, logits_NV: Tensor, inverses: Sequence[float]) -> tuple[Tensor, Tensor, Tensor]:
        """The tokens of the largest logits of each row [N, C], these logits [N, C], and, for each inverse temperature,
        the log of the sum of exp(inverse * logit) over all other tokens [N, I]. Its share of the sum over all tokens is
        at least `LEAST_REST`. fp32."""
        others_NV = logits_NV.float()
        top_NC, tokens_NC = others_NV.topk(CANDIDATES)
        others_NV = others_NV.scatter(1, tokens_NC, -torch.inf)
        rests = []
        for inverse in inverses:
            rest_N, own_N = ((inverse * part).logsumexp(-1) for part in (others_NV, top_NC))
            rests.append(rest_N.maximum(rest_N.logaddexp(own_N) + math.log(LEAST_REST)))
        return tokens_NC, top_NC, torch.stack(rests, dim=-1)


class NativeOps(Ops):
    """The same operations in C; what they do not support goes to the reference implementation."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self.library = library

    def norm(self, x_ND: Tensor, weight_D: Tensor, eps: float, offset: float = 0.0) -> Tensor:
        """See `Ops`."""
        if offset:
            return super().norm(x_ND, weight_D, eps, offset)
        return _Norm.apply(x_ND, weight_D, eps, self.library)  # type: ignore[no-untyped-call]

    def gate(self, gate_up_NF: Tensor, activation: str = "silu") -> Tensor:
        """See `Ops`."""
        if activation != "silu":
            return super().gate(gate_up_NF, activation)
        return _Gate.apply(gate_up_NF, self.library)  # type: ignore[no-untyped-call]

    def rotate(self, x_NHE: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
        """See `Ops`."""
        return _Rotate.apply(x_NHE, *rope, self.library)  # type: ignore[no-untyped-call]

    def block_softmax(
        self,
        past: Tensor,
        own: Tensor,
        kv_lens_S: Tensor,
        scale: float,
        window: int | None = None,
        sinks_GR: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """See `Ops`; in place."""
        if window is not None or sinks_GR is not None:
            past, own = super().block_softmax(past, own, kv_lens_S, scale, window, sinks_GR)
            return past.contiguous(), own.contiguous()
        past, own, kv_lens_S = past.contiguous(), own.contiguous(), kv_lens_S.contiguous()
        shape = structs.BlockScores(*past.shape, own.shape[-1])
        _call(self.library.block_softmax, past, own, kv_lens_S, ctypes.byref(shape), scale)
        return past, own

    def block_softmax_backward(
        self, weights: tuple[Tensor, Tensor], grads: tuple[Tensor, Tensor], scale: float
    ) -> tuple[Tensor, Tensor]:
        """See `Ops`; in place."""
        past, own = (grad.contiguous() for grad in grads)
        shape = structs.BlockScores(*past.shape, own.shape[-1])
        _call(self.library.block_softmax_backward, *weights, past, own, ctypes.byref(shape), scale)
        return past, own

    def largest(self, logits_NV: Tensor) -> tuple[Tensor, Tensor]:
        """See `Ops`; the logits in fp32, and the first token."""
        if logits_NV.shape[1] % LANES or not logits_NV.is_contiguous():
            return super().largest(logits_NV)
        rows = len(logits_NV)
        largest_N, tokens_N = torch.empty(rows, dtype=torch.float32), torch.empty(rows, dtype=torch.int64)
        _call(self.library.largest_logits, logits_NV, largest_N, tokens_N, *logits_NV.shape)
        return largest_N, tokens_N

    def forward_kl(self, student_NV: Tensor, teacher_NV: Tensor) -> tuple[Tensor, Tensor]:
        """See `Ops`; in place."""
        if student_NV.shape[1] % LANES or not student_NV.is_contiguous():
            return super().forward_kl(student_NV, teacher_NV)
        losses_N = student_NV.new_empty(len(student_NV), dtype=torch.float32)
        _call(self.library.forward_kl, student_NV, teacher_NV.contiguous(), losses_N, *student_NV.shape)
        return losses_N, student_NV

    def candidates(self, logits_NV: Tensor, inverses: Sequence[float]) -> tuple[Tensor, Tensor, Tensor]:
        """See `Ops`."""
        logits_NV, rows = logits_NV.contiguous(), len(logits_NV)
        over = torch.tensor(inverses, dtype=torch.float32)
        tokens_NC = torch.empty(rows, CANDIDATES, dtype=torch.int64)
        top_NC, rests_NI = torch.empty(rows, CANDIDATES), torch.empty(rows, len(over))
        fp32 = logits_NV.dtype == torch.float32
        block = structs.DraftBlock(logits_NV.data_ptr(), None, None, rows, logits_NV.shape[1], fp32)
        _call(self.library.row_candidates, ctypes.byref(block), over, len(over), tokens_NC, top_NC, rests_NI)
        return tokens_NC, top_NC, rests_NI


@cache
def load(dtype: torch.dtype, device: torch.device) -> Ops:
    """The fastest implementation for this dtype and device."""
    if device.type == "cpu":
        try:
            return NativeOps(build.library(dtype, cache_directory()))
        except compiler.UnavailableError as error:
            log.warning("%s. Training runs on torch's kernels, which are slower", error)
    return Ops()


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_ND: Tensor, weight_D: Tensor, eps: float, library: ctypes.CDLL) -> Tensor:
        out = torch.empty_like(x_ND)
        _call(library.rms_norm, x_ND, None, weight_D, out, *x_ND.shape, eps, 0.0, threads=False)
        ctx.save_for_backward(x_ND, weight_D)
        ctx.eps, ctx.library = eps, library
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_ND: Tensor) -> tuple[Tensor | None, ...]:
        x_ND, weight_D = ctx.saved_tensors
        out = torch.empty_like(x_ND)
        _call(ctx.library.rms_norm_backward, x_ND, weight_D, grad_ND.contiguous(), out, *x_ND.shape, ctx.eps)
        return out, None, None, None


class _Gate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate_up_NF: Tensor, library: ctypes.CDLL) -> Tensor:
        rows, size = len(gate_up_NF), gate_up_NF.shape[1] // 2
        out = gate_up_NF.new_empty(rows, size)
        _call(library.silu_mul, gate_up_NF, out, rows, size, threads=False)
        ctx.save_for_backward(gate_up_NF)
        ctx.library = library
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_NI: Tensor) -> tuple[Tensor | None, ...]:
        (gate_up_NF,) = ctx.saved_tensors
        out = torch.empty_like(gate_up_NF)
        _call(ctx.library.silu_mul_backward, gate_up_NF, grad_NI.contiguous(), out, *grad_NI.shape)
        return out, None


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_NHE: Tensor, cos: Tensor, sin: Tensor, library: ctypes.CDLL) -> Tensor:
        ctx.save_for_backward(cos, sin)
        ctx.library = library
        return _rotated(x_NHE, cos, sin, 1.0, library)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_NHE: Tensor) -> tuple[Tensor | None, ...]:
        cos, sin = ctx.saved_tensors
        return _rotated(grad_NHE, cos, sin, -1.0, ctx.library), None, None, None


def _rotated(x_NHE: Tensor, cos: Tensor, sin: Tensor, direction: float, library: ctypes.CDLL) -> Tensor:
    if x_NHE.stride()[1:] != (x_NHE.shape[2], 1):
        x_NHE = x_NHE.contiguous()
    out = x_NHE.new_empty(x_NHE.shape)
    shape = structs.RopeShape(*x_NHE.shape, x_NHE.stride(0))
    _call(library.rope, x_NHE, cos, sin, out, ctypes.byref(shape), direction)
    return out


def _call(function: Any, *arguments: Any, threads: bool = True) -> None:
    """Call a C function: tensors by address, integers as int64, floats as float; the number of threads comes last."""
    kinds = {int: ctypes.c_int64, float: ctypes.c_float}
    values = [
        ctypes.c_void_p(a.data_ptr()) if isinstance(a, Tensor) else kinds.get(type(a), lambda other: other)(a)
        for a in arguments
    ]
    function(*values, *([ctypes.c_int64(torch.get_num_threads())] if threads else []))
