"""Which kernels keep their bits on this machine.

A kernel keeps the project's promise when an output row has the same bits whatever rows share the call, wherever in the
call it stands, and however much masked context follows. No library promises that, so the kernel itself is run, at the
shapes in question, and the weakest layout under which the bits held becomes its rule. The decoder pads and splits its
passes by these rules.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from orthrus.backends.linears import MOST_ROWS, Form, Linear, RowRule
from orthrus.backends.torch import LEAST_ATTENDED, Attend, Kernels, Sight, attend_flash, attend_in_blocks
from orthrus.config import KEY_BLOCK, DecoderConfig

TILE = 16
MULTIPLES = (1, 2, 4, 8)
"""Paddings to try, weakest first."""
PROBE_COUNTS = (1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 15, 16, 17, 20, 24, 28, 31, 32)
PROBE_LARGE_COUNTS = (33, 40, 48, 64, 72, 96, 128, 192, 256, 320, 384, 512)
PROBE_OFFSETS = (1, 3, 7, 8, 13)
VISIBLE_KEYS = (7, 60, 130, 200, 300, 400, 500, 530, 700, 1000)
KEY_MULTIPLES = (64, 128, 256, KEY_BLOCK)


Forms = Callable[[Linear], Iterator[Form]]
"""Forms of a linear map to try, best first."""


@dataclass(frozen=True)
class AttentionChoice:
    """An attention kernel, its row rule (rows are those of one sequence), and the multiple of keys it must be given.

    `single_row` tells whether one row may go alone, whatever the rule pads to; `sees`, that `Kernels.attend` is used,
    of which `attend` is then only a form that takes a mask.
    """

    attend: Attend
    rule: RowRule
    key_multiple: int
    single_row: bool = False
    sees: bool = False

    def padded(self, rows: int) -> int:
        """How many rows to give it for `rows` rows of a sequence."""
        return rows if rows == 1 and self.single_row else -(-rows // self.rule.multiple) * self.rule.multiple


def find_row_rule(kernel: Callable[[Tensor], Tensor], rows_NI: Tensor, least: int = 2) -> RowRule:
    """Probe `kernel` on slices of `rows_NI` (512 rows): the weakest rule under which every row has its bits.

    No multiple below `least` is tried: see `Linear.least_multiple`.
    """
    expected = torch.cat([kernel(tile) for tile in rows_NI.split(TILE)])

    def holds(count: int, offset: int = 0) -> bool:
        part = slice(offset, offset + count)
        return torch.equal(kernel(rows_NI[part]), expected[part])

    for multiple in (m for m in MULTIPLES if m >= least):
        if all(holds(n) for n in PROBE_COUNTS if n % multiple == 0) and all(holds(TILE, at) for at in PROBE_OFFSETS):
            large = [n for n in PROBE_LARGE_COUNTS if n % multiple == 0]
            return RowRule(multiple, MOST_ROWS if all(holds(n) for n in large) else max(PROBE_COUNTS))
    return RowRule(TILE, TILE, exact=all(holds(TILE, at) for at in PROBE_OFFSETS))


def pack_linears(module: nn.Module, kernels: Kernels, *, int8: bool = False) -> None:
    """Replace every `Linear` by the fastest form that keeps its bits here, with its row rule; or by that in int8.

    Each distinct shape is probed once, on random values of its own dtype and device.
    """
    forms: Forms = kernels.quantised if int8 else kernels.packed
    chosen: dict[tuple[object, ...], tuple[type[Linear], RowRule]] = {}
    for parent in list(module.modules()):
        for name, plain in list(parent.named_children()):
            if type(plain) is not Linear:
                continue
            stored = plain.blocks and plain.blocks.type
            key = (plain.weight.dtype, plain.weight.device, *plain.weight.shape, plain.bias is None, stored)
            if key in chosen:
                form, plain.rule = chosen[key]
                found = next((made for made in _made(plain, forms) if type(made) is form), plain)
                found.rule = plain.rule
            else:
                found = _choose(plain, forms)
                chosen[key] = type(found), found.rule
            setattr(parent, name, found)


def _made(plain: Linear, forms: Forms) -> Iterator[Linear]:
    """The forms of a map that can be made here, one after another."""
    for form in forms(plain):
        try:
            made = form()
        except RuntimeError:  # this processor, or this build of torch, has no such kernel
            continue
        made.rule = RowRule(1, MOST_ROWS, exact=False)
        yield made


def _choose(plain: Linear, forms: Forms) -> Linear:
    """The first form whose bits hold, with its rule, else the plain one with what was found of it."""
    generator = torch.Generator().manual_seed(0)
    rows_NI = torch.randn(MOST_ROWS, plain.weight.shape[1], generator=generator).to(plain.weight)
    for made in _made(plain, forms):
        if not made.probed:
            made.rule = RowRule(1, MOST_ROWS)
            return made
        try:
            made.rule = find_row_rule(made, rows_NI, made.least_multiple)
        except RuntimeError:  # it can be made, but not be called
            continue
        if made.rule.exact:
            return made
    plain.rule = find_row_rule(plain, rows_NI)
    return plain


def choose_attention(
    config: DecoderConfig, dtype: torch.dtype, device: torch.device, kernels: Kernels
) -> AttentionChoice:
    """The fastest attention whose bits hold here, else the slow twin with what was found of it."""
    probe = _AttentionProbe(config, dtype, device)
    if kernels.sees(config.head_dim):
        attend = masked(kernels)
        rule = probe.row_rule(attend, 1)
        if rule.exact and rule.multiple == 1:
            return AttentionChoice(attend, rule, probe.key_multiple(attend), single_row=True, sees=True)
    if device.type == "cpu":
        try:
            choice = AttentionChoice(
                attend_flash,
                probe.row_rule(attend_flash, LEAST_ATTENDED),
                probe.key_multiple(attend_flash),
                probe.single_row(attend_flash),
            )
        except (AttributeError, RuntimeError):  # this torch has no such kernel, or not for these heads
            return AttentionChoice(attend_in_blocks, probe.row_rule(attend_in_blocks), KEY_BLOCK)
        if choice.rule.exact:
            return choice
    return AttentionChoice(attend_in_blocks, probe.row_rule(attend_in_blocks), KEY_BLOCK)


def masked(kernels: Kernels) -> Attend:
    """`Kernels.attend` in the form that takes a mask, of rows that see a number of keys from the first on."""

    def native_attention(q_BRHE: Tensor, k_BGSE: Tensor, v_BGSE: Tensor, bias_B1RS: Tensor) -> Tensor:
        B, R, H, E = q_BRHE.shape
        seen = (bias_B1RS == 0).sum(dim=-1).expand(B, 1, R).reshape(-1)
        runs = torch.tensor([[b * R, R, b, 0, 0] for b in range(B)], device=seen.device)
        out = kernels.attend(q_BRHE.reshape(B * R, H, E), k_BGSE, v_BGSE, Sight(runs, seen, R))
        return out.view(B, R, H * E)

    return native_attention


class _AttentionProbe:
    """Random queries, keys and values at the shape of a model."""

    def __init__(self, config: DecoderConfig, dtype: torch.dtype, device: torch.device) -> None:
        generator = torch.Generator().manual_seed(0)

        def values(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator).to(device, dtype)

        self._shape = (config.heads, config.head_dim)
        self._queries = values(MOST_ROWS, config.heads * config.head_dim)
        self._keys = values(2, config.kv_heads, 3 * KEY_BLOCK, config.head_dim)
        self._values = values(2, config.kv_heads, 3 * KEY_BLOCK, config.head_dim)

    def row_rule(self, attend: Attend, least: int = 2) -> RowRule:
        """The rule over rows; exact only if neither masked blocks nor neighbours in the batch change a bit."""
        found = [
            find_row_rule(lambda q, n=n: self._call(attend, q, n), self._queries, least)  # type: ignore[misc]
            for n in (7, 300, 1200)
        ]
        part = self._queries[:TILE]
        alone = self._call(attend, part, 300)
        others = [self._call(attend, part, 300, span=3 * KEY_BLOCK), self._call(attend, part, 300, sequences=2)]
        exact = all(rule.exact for rule in found) and all(torch.equal(alone, other) for other in others)
        return RowRule(max(rule.multiple for rule in found), min(rule.most for rule in found), exact)

    def single_row(self, attend: Attend) -> bool:
        """Whether one row alone has the bits it has among others: tried on many rows, as few values may differ."""
        return all(
            torch.equal(self._call(attend, self._queries[row : row + 1], n), self._call(attend, tile, n)[row : row + 1])
            for n in VISIBLE_KEYS
            for tile in [self._queries[:TILE]]
            for row in range(TILE)
        )

    def key_multiple(self, attend: Attend) -> int:
        """The smallest multiple to which the number of keys can be rounded instead of 512 with the same bits."""
        for multiple in KEY_MULTIPLES:
            if all(
                torch.equal(self._call(attend, q, n, span=-(-n // multiple) * multiple), self._call(attend, q, n))
                for n in VISIBLE_KEYS
                for q in (self._queries[:8], self._queries[:32])
            ):
                return multiple
        return KEY_BLOCK

    def _call(self, attend: Attend, q_RF: Tensor, visible: int, *, span: int = 0, sequences: int = 1) -> Tensor:
        span = span or -(-visible // KEY_BLOCK) * KEY_BLOCK
        q_BRHE = q_RF.view(1, len(q_RF), *self._shape).expand(sequences, -1, -1, -1)
        seen = torch.arange(span, device=q_RF.device) < visible
        bias = torch.zeros(span, dtype=q_RF.dtype, device=q_RF.device).masked_fill(~seen, float("-inf"))
        keys, values = self._keys[:sequences, :, :span], self._values[:sequences, :, :span]
        return attend(q_BRHE, keys, values, bias.expand(sequences, 1, len(q_RF), span))[0]
