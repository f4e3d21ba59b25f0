"""The processes of a training run: a single one, or those that torchrun started."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch import distributed as dist


def device_of_process(device: str) -> str:
    """The device of this process, where torchrun started several: `cuda` alone names the first GPU to each of them."""
    return f"cuda:{os.environ['LOCAL_RANK']}" if device == "cuda" and "LOCAL_RANK" in os.environ else device


class World:
    """Rank, world size, and the collective operations of a run, whose tensors are on `device`."""

    def __init__(self, device: torch.device | None = None) -> None:
        self._device = device or torch.device("cpu")
        self.size, self.rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
        if self.size > 1 and not dist.is_initialized():
            if self._device.type == "cuda":
                torch.cuda.set_device(self._device)
            dist.init_process_group("nccl" if self._device.type == "cuda" else "gloo")

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """All-reduce the gradients: every process gets their sum."""
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
        """Whether the flag is set in any process; the answer is the same in all of them."""
        return bool(self.sum(torch.tensor(float(flag), device=self._device)))

    def __enter__(self) -> World:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Leave the process group, after a barrier if all went well; after a failure a barrier might never return."""
        if self.size > 1:
            if kind is None:
                dist.barrier()
            dist.destroy_process_group()

    def end(self, code: int) -> None:
        """Exit a process of a multi-process run without shutting down the interpreter; call it once all is saved.

        Threads of gloo may still hold tensors, and releasing one during interpreter shutdown aborts the process
        (github.com/pytorch/pytorch/pull/179291).
        """
        if self.size > 1:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
