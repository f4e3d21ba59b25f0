"""Orthrus: lossless parallel token generation for frozen language models.

>>> import orthrus
>>> model = orthrus.load("smollm2-demo")
>>> print(model.generate("There are 5 shelves with 9 books each. How many books are there in total?").text)
"""

from __future__ import annotations

from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from orthrus.api import Model, load
    from orthrus.config import SamplingParams, StopConditions
    from orthrus.decoding.async_engine import AsyncEngine
    from orthrus.decoding.engine import Engine
    from orthrus.results import Chunk, Result

__version__ = "0.1.0"
__all__ = [
    "AsyncEngine", "Chunk", "Engine", "Model", "Result", "SamplingParams", "StopConditions", "__version__", "load",
]  # fmt: skip

_HOMES = {
    "Model": "orthrus.api", "load": "orthrus.api", "Chunk": "orthrus.results", "Result": "orthrus.results",
    "SamplingParams": "orthrus.config", "StopConditions": "orthrus.config",
    "Engine": "orthrus.decoding.engine", "AsyncEngine": "orthrus.decoding.async_engine",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    """Import public names on first use, so that `import orthrus` is fast."""
    if name not in _HOMES:
        raise AttributeError(f"module 'orthrus' has no attribute {name!r}")
    import importlib

    from orthrus import torch_threads

    torch_threads.wait_briefly()
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    """All public names, including those that are not imported yet, and the modules that are."""
    modules = {name for name, value in globals().items() if isinstance(value, ModuleType)}
    return sorted({*__all__, *modules, *(name for name in globals() if name.startswith("__"))})
