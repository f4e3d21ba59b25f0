"""Probes which kernels keep their bits on this machine.

A kernel keeps its bits if an output row does not depend on the other rows of the call, on its own offset in the call,
or on the length of masked context after it. No library promises that, so each kernel is run at the shapes of the model.
The weakest layout under which the bits hold becomes the row rule, by which passes are padded and split.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from orthrus.backends.interface import MAX_ROWS, Attend, RowRule
from orthrus.config import KEY_BLOCK
from orthrus.decoder_config import DecoderConfig

TILE = 16
"""Rows per call of the reference result."""
MULTIPLES = (1, 2, 4, 8)
"""Row multiples to try, weakest first."""
PROBE_COUNTS = (1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 15, 16, 17, 20, 24, 28, 31, 32)
PROBE_LARGE_COUNTS = (33, 40, 48, 64, 72, 96, 128, 192, 256, 320, 384, 512)
PROBE_OFFSETS = (1, 3, 7, 8, 13)
VISIBLE_KEYS = (7, 60, 130, 200, 300, 400, 500, 530, 700, 1000)
WINDOWED = ((300, 140), (1200, 700))
"""Visible keys, and the first of them, for models with a sliding window."""
KEY_MULTIPLES = (64, 128, 256, KEY_BLOCK)


def find_row_rule(kernel: Callable[[Tensor], Tensor], rows_NI: Tensor, min_multiple: int = 2) -> RowRule:
    """Probe `kernel` on slices of `rows_NI` (512 rows): the weakest rule under which every row keeps its bits.

    No multiple below `min_multiple` is tried: see `ExecutableLinear.min_multiple`.
    """
    tiles = rows_NI.split(TILE)
    first = kernel(tiles[0])
    expected = first.new_empty(len(rows_NI), *first.shape[1:])  # filled in place: a head has many outputs
    for index, tile in enumerate(tiles):
        expected[index * TILE : index * TILE + len(tile)] = kernel(tile)

    def holds(count: int, offset: int = 0) -> bool:
        part = slice(offset, offset + count)
        return torch.equal(kernel(rows_NI[part]), expected[part])

    for multiple in (m for m in MULTIPLES if m >= min_multiple):
        if all(holds(n) for n in PROBE_COUNTS if n % multiple == 0) and all(holds(TILE, at) for at in PROBE_OFFSETS):
            large = [n for n in PROBE_LARGE_COUNTS if n % multiple == 0]
            return RowRule(multiple, MAX_ROWS if all(holds(n) for n in large) else max(PROBE_COUNTS))
    return RowRule(TILE, TILE, exact=all(holds(TILE, at) for at in PROBE_OFFSETS))


class AttentionProbe:
    """Probes attention kernels with random queries, keys and values of a model's shape."""

    def __init__(self, config: DecoderConfig, dtype: torch.dtype, device: torch.device) -> None:
        generator = torch.Generator().manual_seed(0)

        def values(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator).to(device, dtype)

        self._shape = (config.heads, config.head_dim)
        self._scale, self._soft_cap = config.attention_scale, config.attention_soft_cap
        self._has_windows = config.windows != (None,)
        self._queries = values(MAX_ROWS, config.heads * config.head_dim)
        self._keys = values(2, config.kv_heads, 3 * KEY_BLOCK, config.head_dim)
        self._values = values(2, config.kv_heads, 3 * KEY_BLOCK, config.head_dim)

    def row_rule(self, attend: Attend, min_multiple: int = 2) -> RowRule:
        """The row rule. It is exact only if masked blocks and other sequences of the batch change no bit."""
        rules = [
            find_row_rule(partial(self._call, attend, visible=n, start=start), self._queries, min_multiple)
            for n, start in ((7, 0), (300, 0), (1200, 0), *WINDOWED * self._has_windows)
        ]
        part = self._queries[:TILE]
        alone = self._call(attend, part, 300)
        others = [self._call(attend, part, 300, span=3 * KEY_BLOCK), self._call(attend, part, 300, sequences=2)]
        exact = all(rule.exact for rule in rules) and all(torch.equal(alone, other) for other in others)
        return RowRule(max(rule.multiple for rule in rules), min(rule.max_rows for rule in rules), exact)

    def single_row(self, attend: Attend) -> bool:
        """Whether one row alone has the bits that it has among others. Tries many rows, because few values may
        differ."""
        return all(
            torch.equal(self._call(attend, self._queries[row : row + 1], n), self._call(attend, tile, n)[row : row + 1])
            for n in VISIBLE_KEYS
            for tile in [self._queries[:TILE]]
            for row in range(TILE)
        )

    def key_multiple(self, attend: Attend) -> int:
        """The smallest multiple, instead of 512, to which the number of keys can be rounded with the same bits."""
        for multiple in KEY_MULTIPLES:
            if all(
                torch.equal(self._call(attend, q, n, span=-(-n // multiple) * multiple), self._call(attend, q, n))
                for n in VISIBLE_KEYS
                for q in (self._queries[:8], self._queries[:32])
            ):
                return multiple
        return KEY_BLOCK

    def _call(
        self, attend: Attend, q_RF: Tensor, visible: int, *, start: int = 0, span: int = 0, sequences: int = 1
    ) -> Tensor:
        span = span or -(-visible // KEY_BLOCK) * KEY_BLOCK
        q_BRHE = q_RF.view(1, len(q_RF), *self._shape).expand(sequences, -1, -1, -1)
        slots = torch.arange(span, device=q_RF.device)
        attended = (slots >= start) & (slots < visible)
        bias = torch.zeros(span, dtype=q_RF.dtype, device=q_RF.device).masked_fill(~attended, float("-inf"))
        keys, values = self._keys[:sequences, :, :span], self._values[:sequences, :, :span]
        bias_B1RS = bias.expand(sequences, 1, len(q_RF), span)
        return attend(q_BRHE, keys, values, bias_B1RS, self._scale, self._soft_cap)[0]
