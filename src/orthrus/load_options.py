"""The options of `orthrus.load`: names, types, and the record built from them."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from types import NoneType
from typing import Any, TypedDict

import torch

from orthrus.options import as_integer, check_type, wrong

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
QUANTIZE = {"int8": True, "none": False}
"""Which linear maps are multiplied by int8 activations: all or none."""


class LoadOptions(TypedDict, total=False):
    """The options of `load`; see its docstring."""

    adapter: str | Path | None
    dtype: str | torch.dtype | None
    device: str | torch.device
    quantize: str | None
    low_precision_drafts: bool
    revision: str | None
    allow_other_backbone: bool
    cache: bool
    ctx_size: int | None


@dataclass(frozen=True)
class LoadSettings:
    """Checked options. dtype: None stands for bfloat16; quantize: for int8 where a file stores codes."""

    adapter: str | Path | None = None
    dtype: Any = None
    device: str | torch.device = "cpu"
    quantize: str | None = None
    low_precision_drafts: bool = True
    revision: str | None = None
    allow_other_backbone: bool = False
    cache: bool = True
    ctx_size: int | None = None

    @staticmethod
    def of(options: Mapping[str, Any]) -> LoadSettings:
        """Check options. Raises ValueError naming the one that is wrong."""
        names = [field.name for field in fields(LoadSettings)]
        for name in options:
            if name not in names:
                near = difflib.get_close_matches(name, names, 1)
                hint = f"did you mean {near[0]!r}?" if near else f"options: {', '.join(names)}"
                raise ValueError(f"unknown option {name!r}; {hint}")
        given = LoadSettings(**options)
        check_type("adapter", given.adapter, (str, Path, NoneType), "a directory")
        check_type("device", given.device, (str, torch.device), 'a device such as "cpu" or "cuda:1"')
        check_type("revision", given.revision, (str, NoneType), "a string")
        for name in ("low_precision_drafts", "allow_other_backbone", "cache"):
            check_type(name, getattr(given, name), bool, "True or False")
        if given.ctx_size is not None and (as_integer(given.ctx_size) or 0) < 1:
            raise wrong("ctx_size", given.ctx_size, "a number of tokens")
        dtype = DTYPES.get(given.dtype, given.dtype) if isinstance(given.dtype, str) else given.dtype
        if dtype not in (None, *DTYPES.values()):
            raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, not {given.dtype!r}")
        if given.quantize not in (None, *QUANTIZE):
            raise ValueError(f"quantize must be one of {', '.join(QUANTIZE)}, not {given.quantize!r}")
        _check_device(given.device)
        return LoadSettings(**{**options, "dtype": dtype})

    @property
    def int8(self) -> bool | None:
        """Which linear maps are multiplied by int8 activations; see `orthrus.backends.select.by_int8`."""
        if self.quantize is None:
            return False if self.dtype is torch.float32 else None
        return QUANTIZE[self.quantize]


def _check_device(device: str | torch.device) -> None:
    """Raise ValueError where the device does not exist, or is one for which there are no kernels."""
    name = str(device)
    if name.split(":", maxsplit=1)[0] not in ("cpu", "cuda"):
        raise ValueError(f"device {name!r} cannot be used here: give cpu, which is the default, or cuda (cuda:1, ...)")
    try:
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"device {name!r} cannot be used here: {reason}") from error
