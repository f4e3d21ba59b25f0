"""The processes of a run: one, or as many as torchrun started."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch import distributed as dist


class World:
    """Rank and size, and the few things that processes do together."""

    def __init__(self) -> None:
        self.size, self.rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
        if self.size > 1 and not dist.is_initialized():
            dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Every process gets the sum of all gradients."""
        if self.size > 1:
            for parameter in parameters:
                assert parameter.grad is not None
                dist.all_reduce(parameter.grad)

    def sum(self, values: Tensor) -> Tensor:
        """The sum of a tensor over all processes."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def any(self, *, flag: bool) -> bool:
        """Whether it is set in some process: what all of them must then do alike."""
        device = "cuda" if self.size > 1 and dist.get_backend() == "nccl" else "cpu"
        return bool(self.sum(torch.tensor(float(flag), device=device)))

    def __enter__(self) -> World:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Leave the group: together after a clean end, at once after a failure, since nobody may come to meet it."""
        if self.size > 1:
            if kind is None:
                dist.barrier()
            dist.destroy_process_group()

    def end(self, code: int) -> None:
        """End one of several processes here, everything being saved.

        Threads of gloo may still hold tensors; letting go of one while the interpreter shuts down aborts the process
        (github.com/pytorch/pytorch/pull/179291), so that it never comes to that.
        """
        if self.size > 1:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
