"""Counters of one decoded sequence: passes, rows, cycles, accepted drafts, seconds."""

from __future__ import annotations

from dataclasses import dataclass, field

from orthrus.decoding.plan import PassPlan

SHAPE = ("kind", "drafts", "blocks", "width", "count")
"""The fields of an entry of `shapes` in JSON."""


@dataclass
class Statistics:
    """Counters of a sequence. `passes` are full-depth forward passes, the prefill counted once. `seconds` include it.

    `drafted` and `accepted` count, by offset, the cycles whose drafts reached so far, and those that accepted so many.
    `shapes` counts cycles by (kind, drafts offered, blocks, width of a block). `cached_tokens` of the prompt were not
    computed, because an earlier sequence starts with them. `batch_size` is the most sequences that shared its passes.
    """

    generated: int = 0
    passes: int = 0
    rows: int = 0
    cycles: dict[str, int] = field(default_factory=dict)
    drafted: list[int] = field(default_factory=list)
    accepted: list[int] = field(default_factory=list)
    seconds: float = 0.0
    prefill_seconds: float = 0.0
    shapes: dict[tuple[str, int, int, int], int] = field(default_factory=dict)
    cached_tokens: int = 0
    batch_size: int = 1

    @property
    def acceptance_length(self) -> float:
        """A: accepted drafts per cycle, bonus excluded; 0 where no cycle ran."""
        cycles = sum(self.cycles.values())
        return sum(self.accepted) / cycles if cycles else 0.0

    @property
    def tpf(self) -> float:
        """Generated tokens per full-depth forward pass."""
        return self.generated / self.passes if self.passes else 0.0

    @property
    def rows_per_pass(self) -> float:
        """Rows of this sequence per pass, without the prefill, whose rows are the prompt."""
        return self.rows / (self.passes - 1) if self.passes > 1 else 0.0

    @property
    def acceptance_by_offset(self) -> list[float]:
        """The fraction of drafts that were accepted, by offset."""
        return [a / d for a, d in zip(self.accepted, self.drafted, strict=True)]

    def count_passes(self, plan: PassPlan) -> None:
        """Count the passes of one cycle in which this sequence took part, and their shape."""
        if plan.drafting_rows:
            self.passes += 1
            self.rows += plan.drafting_rows
        self.passes += 1
        self.rows += 1 + plan.offered + plan.blocks * plan.width
        shape = plan.kind, plan.offered, plan.blocks, plan.width
        self.shapes[shape] = self.shapes.get(shape, 0) + 1

    def count_cycle(self, kind: str, drafted: int, accepted: int) -> None:
        """Count one cycle: how deep its tree of drafts was, and how many it accepted."""
        self.cycles[kind] = self.cycles.get(kind, 0) + 1
        missing = drafted - len(self.drafted)
        self.drafted += [0] * missing
        self.accepted += [0] * missing
        for offset in range(drafted):
            self.drafted[offset] += 1
            self.accepted[offset] += offset < accepted

    def as_dict(self) -> dict[str, object]:
        """The record that `--json` prints."""
        return {
            "generated": self.generated,
            "passes": self.passes,
            "cycles": sum(self.cycles.values()),
            "acceptance_length": self.acceptance_length,
            "tokens_per_cycle": self.acceptance_length + 1 if self.cycles else 0.0,
            "tpf": self.tpf,
            "seconds": self.seconds,
            "prefill_seconds": self.prefill_seconds,
            "cached_tokens": self.cached_tokens,
            "batch_size": self.batch_size,
            "rows_per_pass": self.rows_per_pass,
            "acceptance_by_offset": self.acceptance_by_offset,
            "cycles_by_kind": dict(self.cycles),
            "shapes": [dict(zip(SHAPE, (*shape, n), strict=True)) for shape, n in self.shapes.items()],
        }
