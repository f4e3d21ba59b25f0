"""The one seam per fast kernel, with its slow twin beside it.

A kernel keeps the project's promise when an output row has the same bits whatever rows share the call, wherever in the
call it stands, and however much masked context follows. No library promises that, so it is probed: `find_row_rule`
runs the kernel itself at the shape in question and returns the weakest `RowRule` under which the bits held. The decoder
pads and splits its passes by these rules.

Shapes: N rows of a GEMM (B sequences x R rows), I inputs, O outputs; the rest as in `orthrus.config`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from orthrus.config import KEY_BLOCK

TILE = 16
MULTIPLES = (2, 4, 8)
"""Paddings to try, weakest first. Never 1: a single row takes a matrix-vector path that rounds differently, though
on some values only, so that a probe may miss it."""
PROBE_COUNTS = (2, 3, 4, 5, 6, 7, 8, 9, 12, 15, 16, 17, 20, 24, 28, 31, 32)
PROBE_LARGE_COUNTS = (33, 40, 48, 64, 72, 96, 128, 192, 256, 320, 384, 512)
PROBE_OFFSETS = (1, 3, 7, 8, 13)


@dataclass(frozen=True)
class RowRule:
    """How rows must be laid out for a kernel: pad to a `multiple`, call with at most `most` rows.

    `exact` is False where no layout was found under which the bits hold; the rule is then only the best guess.
    """

    multiple: int
    most: int
    exact: bool = True


def find_row_rule(kernel: Callable[[Tensor], Tensor], rows_NI: Tensor) -> RowRule:
    """Probe `kernel` on slices of `rows_NI` (at least 512): the weakest rule under which the bits hold."""
    length = 2 * max(PROBE_COUNTS)
    expected = torch.cat([kernel(rows_NI[i : i + TILE]) for i in range(0, length, TILE)])

    def holds(count: int, offset: int = 0) -> bool:
        shared = min(count, length - offset)
        return torch.equal(kernel(rows_NI[offset : offset + count])[:shared], expected[offset : offset + shared])

    for multiple in MULTIPLES:
        if all(holds(n) for n in PROBE_COUNTS if n % multiple == 0) and all(holds(TILE, at) for at in PROBE_OFFSETS):
            large = [n for n in PROBE_LARGE_COUNTS if n % multiple == 0]
            return RowRule(multiple, max(large) if all(holds(n) for n in large) else max(PROBE_COUNTS))
    return RowRule(TILE, TILE, exact=all(holds(TILE, at) for at in PROBE_OFFSETS))


class Linear(nn.Module):
    """y = x W^T + b in plain torch: the slow twin, and the form in which weights are trained and saved."""

    def __init__(self, inputs: int, outputs: int, *, bias: bool, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs, dtype=dtype, device=device), requires_grad=False)
        self.bias = (
            nn.Parameter(torch.empty(outputs, dtype=dtype, device=device), requires_grad=False) if bias else None
        )
        self.rule = RowRule(MULTIPLES[0], max(PROBE_LARGE_COUNTS), exact=False)

    def forward(self, x_NI: Tensor) -> Tensor:
        """y [N, O]."""
        return self._in_pieces(lambda x: F.linear(x, self.weight, self.bias), x_NI)

    def silu(self, x_NI: Tensor) -> Tensor:
        """silu(y) [N, O]."""
        return F.silu(self(x_NI))

    def mul(self, x_NI: Tensor, factor_NO: Tensor) -> Tensor:
        """y * factor [N, O]."""
        return self(x_NI) * factor_NO

    def add(self, x_NI: Tensor, residual_NO: Tensor) -> Tensor:
        """residual + y [N, O]."""
        return residual_NO + self(x_NI)

    def _in_pieces(self, kernel: Callable[..., Tensor], x_NI: Tensor, *others_NO: Tensor) -> Tensor:
        """Run `kernel` within the rule: rows padded to its multiple, at most `most` of them a call."""
        rows = len(x_NI)
        padding = -rows % self.rule.multiple
        if padding:
            x_NI, *others_NO = (F.pad(t, (0, 0, 0, padding)) for t in (x_NI, *others_NO))  # type: ignore[assignment]
        most = self.rule.most
        if len(x_NI) <= most:
            y = kernel(x_NI, *others_NO)
        else:
            pieces = zip(*(t.split(most) for t in (x_NI, *others_NO)), strict=True)
            y = torch.cat([kernel(*piece) for piece in pieces])
        return y[:rows] if padding else y


class PackedLinear(Linear):
    """The same on weights packed once for oneDNN, with the activation, product or residual fused into the GEMM."""

    def __init__(self, plain: Linear) -> None:
        nn.Module.__init__(self)
        self.register_parameter("weight", None)
        self.bias = plain.bias
        self.rule = plain.rule
        self._packed = torch.ops.mkldnn._reorder_linear_weight(plain.weight.detach())

    def forward(self, x_NI: Tensor) -> Tensor:
        """See `Linear`, as for all below."""
        return self._unary(x_NI, "none")

    def silu(self, x_NI: Tensor) -> Tensor:
        """See `Linear`."""
        return self._unary(x_NI, "swish")

    def mul(self, x_NI: Tensor, factor_NO: Tensor) -> Tensor:
        """See `Linear`."""
        return self._binary(x_NI, factor_NO, "mul")

    def add(self, x_NI: Tensor, residual_NO: Tensor) -> Tensor:
        """See `Linear`."""
        return self._binary(x_NI, residual_NO, "add")

    def _unary(self, x_NI: Tensor, name: str) -> Tensor:
        kernel = torch.ops.mkldnn._linear_pointwise
        return self._in_pieces(lambda x: kernel(x, self._packed, self.bias, name, [], ""), x_NI)

    def _binary(self, x_NI: Tensor, other_NO: Tensor, name: str) -> Tensor:
        kernel = torch.ops.mkldnn._linear_pointwise
        return self._in_pieces(lambda x, other: kernel(x, other, self._packed, self.bias, name), x_NI, other_NO)


class Attend(Protocol):
    """Attention over S keys, S a multiple of 512."""

    def __call__(self, q_BRHE: Tensor, k_BGSE: Tensor, v_BGSE: Tensor, bias_B1RS: Tensor) -> Tensor:
        """Softmax(q k / sqrt(E) + bias) v [B, R, H*E]; head h reads key/value head h // (H / G)."""
        ...


def attend_flash(q_BRHE: Tensor, k_BGSE: Tensor, v_BGSE: Tensor, bias_B1RS: Tensor) -> Tensor:
    """One fused call of torch's CPU flash kernel, which reads grouped heads and the cache in place."""
    out_BHRE, _ = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        q_BRHE.transpose(1, 2), k_BGSE, v_BGSE, 0.0, False, attn_mask=bias_B1RS, scale=q_BRHE.shape[-1] ** -0.5
    )
    return out_BHRE.transpose(1, 2).reshape(*q_BRHE.shape[:2], -1)


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
        weights = _exp(scores - new_top)
        keep = _exp((top - new_top).repeat(1, 1, 1, TILE))[..., :1]
        total = total * keep + weights.sum(-1, keepdim=True)
        out = out * keep + torch.matmul(weights.to(v_BGSE.dtype), v_BGSE[:, :, keys]).float()
        top = new_top
    out_BGNE = (out / total).to(q_BRHE.dtype)
    return out_BGNE.view(B, H, R, E).transpose(1, 2).reshape(B, R, H * E)


def _exp(x: Tensor) -> Tensor:
    """exp over a last dimension that is a multiple of the vector length, so that no element meets the scalar tail."""
    return torch.exp(x)


def pack_linears(module: nn.Module) -> None:
    """Give every `Linear` its probed row rule and replace it by its packed form where that runs here.

    Each distinct shape is probed once, on random values of its own dtype and device.
    """
    rules: dict[tuple[object, ...], tuple[bool, RowRule]] = {}
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is Linear:
                key = (child.weight.dtype, child.weight.device, *child.weight.shape, child.bias is None)
                if key not in rules:
                    rules[key] = _choose(child)
                packed, child.rule = rules[key]
                if packed:
                    setattr(parent, name, PackedLinear(child))


def _choose(linear: Linear) -> tuple[bool, RowRule]:
    generator = torch.Generator().manual_seed(0)
    shape = (max(PROBE_LARGE_COUNTS), linear.weight.shape[1])
    rows_NI = torch.randn(shape, generator=generator).to(linear.weight)
    if linear.weight.device.type == "cpu" and torch.backends.mkldnn.is_available():
        try:
            rule = find_row_rule(PackedLinear(linear), rows_NI)
        except RuntimeError:  # this build of oneDNN has no such kernel
            rule = RowRule(MULTIPLES[0], TILE, exact=False)
        if rule.exact:
            return True, rule
    return False, find_row_rule(linear, rows_NI)


def choose_attention(
    heads: int, kv_heads: int, head_dim: int, dtype: torch.dtype, device: torch.device
) -> tuple[Attend, RowRule]:
    """The fastest attention whose bits hold here, with its row rule (rows are those of one sequence)."""
    generator = torch.Generator().manual_seed(0)

    def values(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(device, dtype)

    rows, spans = values(max(PROBE_LARGE_COUNTS), heads * head_dim), (KEY_BLOCK, 2 * KEY_BLOCK, 6 * KEY_BLOCK)
    k, v = values(2, kv_heads, spans[-1], head_dim), values(2, kv_heads, spans[-1], head_dim)

    def call(attend: Attend, x: Tensor, visible: int = 300, span: int = KEY_BLOCK, sequences: int = 1) -> Tensor:
        q = x.view(1, len(x), heads, head_dim).expand(sequences, -1, -1, -1)
        bias = torch.where(torch.arange(span, device=device) < visible, 0.0, float("-inf")).to(dtype)
        return attend(q, k[:sequences, :, :span], v[:sequences, :, :span], bias.expand(sequences, 1, len(x), span))[0]

    def rule_of(attend: Attend) -> RowRule:
        found = [find_row_rule(lambda x, n=n: call(attend, x, n), rows) for n in (7, 300)]  # type: ignore[misc]
        found.append(find_row_rule(lambda x: call(attend, x, 1200, spans[-1]), rows))
        part = rows[:TILE]
        same = all(torch.equal(call(attend, part), call(attend, part, span=span)) for span in spans[1:])
        same = same and torch.equal(call(attend, part), call(attend, part, sequences=2))
        exact = same and all(rule.exact for rule in found)
        return RowRule(max(rule.multiple for rule in found), min(rule.most for rule in found), exact)

    if device.type == "cpu":
        try:
            rule = rule_of(attend_flash)
        except (AttributeError, RuntimeError):  # this torch has no such kernel, or not for these heads
            rule = RowRule(MULTIPLES[0], TILE, exact=False)
        if rule.exact:
            return attend_flash, rule
    return attend_in_blocks, rule_of(attend_in_blocks)
