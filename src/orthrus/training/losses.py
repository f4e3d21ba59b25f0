"""What losses are typical of a run, and when it fails. One text may have a tenth of the loss of another, so the loss of
a text is compared with the mean over many, and that mean with its lowest value."""

from __future__ import annotations

from dataclasses import dataclass, replace

STEPS = 20
"""The mean is that of about so many steps."""
LEAST = 0.1
"""Means below it are taken for it: where the loss is near 0, any text may have a multiple of the mean."""
EXPLOSION, RISE = 10.0, 3.0
"""A loss above the mean by the first factor, or a mean above its lowest value by the second, ends a run."""


@dataclass(frozen=True)
class Losses:
    """The mean loss of the last steps, an exponential average once there are `STEPS`; its lowest value from then on."""

    count: int = 0
    mean: float = 0.0
    lowest: float | None = None

    def and_then(self, loss: float) -> Losses:
        """With the loss of another step."""
        count = self.count + 1
        mean = self.mean + (loss - self.mean) / min(count, STEPS)
        if count < STEPS:
            return replace(self, count=count, mean=mean)
        return Losses(count, mean, min(mean, mean if self.lowest is None else self.lowest))

    def explosion(self, loss: float) -> str | None:
        """What is wrong if the loss of a text is beyond what this run can have."""
        if not self.count or loss <= EXPLOSION * max(self.mean, LEAST):
            return None
        return f"the loss exploded to {loss:.3g}, from a mean of {self.mean:.3g}"

    @property
    def divergence(self) -> str | None:
        """What is wrong if the mean rose from its lowest value to a multiple of it."""
        if self.lowest is None or self.mean <= RISE * max(self.lowest, LEAST):
            return None
        return f"the mean of the loss rose from {self.lowest:.3g} to {self.mean:.3g}"
