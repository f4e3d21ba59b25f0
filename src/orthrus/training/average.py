"""An exponential average of the trained weights (EMA), which decodes better than the weights of the last step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class WeightAverage:
    """The average of some parameters over the steps of a run, in fp32. With `decay` 0 there is none.

    A step keeps `decay` of the average, and less at first, so that the weights at the start do not stay in it:
    (1 + steps) / (10 + steps) if that is smaller.
    """

    def __init__(self, parameters: dict[str, nn.Parameter], decay: float) -> None:
        self._parameters, self._decay = parameters, decay
        self.tensors: dict[str, Tensor] = {n: p.detach().clone() for n, p in parameters.items()} if decay else {}

    def update(self, steps: int) -> None:
        """Add the weights after so many steps."""
        if self.tensors:
            keep = min(self._decay, (1 + steps) / (10 + steps))
            averages, weights = list(self.tensors.values()), [self._parameters[name].detach() for name in self.tensors]
            torch._foreach_lerp_(averages, weights, 1 - keep)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Replace the parameters by their average, to decode with it and to save it; by themselves again at the end."""
        weights = {name: self._parameters[name].data for name in self.tensors}
        for name, average in self.tensors.items():
            self._parameters[name].data = average
        try:
            yield
        finally:
            for name, weight in weights.items():
                self._parameters[name].data = weight
