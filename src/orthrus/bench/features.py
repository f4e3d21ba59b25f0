"""What each backend lacks of the features of a model."""

from __future__ import annotations

from contextlib import suppress

from orthrus.backends.interface import Kernels
from orthrus.backends.native.kernels import NativeKernels
from orthrus.decoder_config import DecoderConfig


def lacking(config: DecoderConfig) -> dict[str, list[str]]:
    """The features of a model that each backend leaves to the reference implementation, by the name of its kernels."""
    backends: list[type[Kernels]] = [NativeKernels]
    with suppress(ImportError):
        from orthrus.backends.triton.kernels import TritonKernels

        backends.append(TritonKernels)
    return {backend.name: backend.lacking(config) for backend in backends}
