"""The tokens of the largest logits. N rows, V vocabulary."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def best(logits_NV: Tensor) -> list[int]:
    """The token of each row's largest logit, the first of equals. No row's answer depends on the others."""
    return [*map(best_of(logits_NV), range(len(logits_NV)))]


def best_of(logits_NV: Tensor) -> Callable[[int], int]:
    """The function `best` of one row."""
    if not logits_NV.is_cpu or logits_NV.dtype not in (torch.float32, torch.bfloat16):
        tokens: list[int] = torch.argmax(logits_NV, dim=-1).tolist()
        return tokens.__getitem__
    if logits_NV.dtype == torch.float32:
        floats_NV = logits_NV.numpy()
        return lambda row: int(floats_NV[row].argmax())
    bits_NV = logits_NV.view(torch.int16).numpy()  # ordered like the numbers, as long as the largest is positive

    def best_of_row(row: int) -> int:
        bits_V = bits_NV[row]
        token = int(bits_V.argmax())
        return token if bits_V[token] > 0 else int(logits_NV[row].float().numpy().argmax())

    return best_of_row
