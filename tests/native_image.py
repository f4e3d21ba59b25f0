"""Calls of kernels as a memory image, to run them where Python is not: on another processor, or in an emulator of one.

An image holds tensors and structs, whose pointers are places in it. `native_driver.c` runs its calls and writes it
back. Two machines agree if their images do.
"""

from __future__ import annotations

import ctypes
import struct
import subprocess
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from orthrus.backends.native import compiler

DRIVER = Path(__file__).with_name("native_driver.c")
POINTER = ctypes.c_void_p


class Place(int):
    """A place in the image; -1 is null."""


NULL = Place(-1)


class Image:
    """Memory and calls. `outputs` names the places and sizes of results."""

    def __init__(self) -> None:
        self._bytes = bytearray()
        self._pointers: list[int] = []
        self._calls: list[bytes] = []
        self.outputs: dict[str, tuple[int, Tensor]] = {}
        self.names: set[str] = set()

    def put(self, tensor: Tensor, result: str = "") -> Place:
        """The place of a copy; a result by its name."""
        place = self._add(bytes(tensor.contiguous().view(torch.uint8).flatten().tolist()))
        if result:
            self.outputs[result] = place, tensor
        return place

    def empty(self, shape: Sequence[int], dtype: torch.dtype, result: str = "") -> Place:
        """The place of zeros."""
        return self.put(torch.zeros(*shape, dtype=dtype), result)

    def struct(self, made: ctypes.Structure) -> Place:
        """The place of a struct whose pointers are places, 0 for null."""
        place = self._add(bytes(made))
        for name, kind in made._fields_:
            if kind is POINTER:
                at = place + getattr(type(made), name).offset
                self._pointers.append(at)
                if getattr(made, name) is None:
                    self._bytes[at : at + 8] = struct.pack("<q", -1)
        return place

    def call(self, name: str, *arguments: Place | int | float) -> None:
        """Call a kernel; floats go to registers of their own."""
        integers = [value for value in arguments if not isinstance(value, float)]
        floats = [value for value in arguments if isinstance(value, float)]
        pointers = sum(1 << i for i, value in enumerate(integers) if isinstance(value, Place))
        packed = struct.pack("<40s9q2f", name.encode(), *integers, *[0] * (8 - len(integers)), pointers,
                             *floats, *[0.0] * (2 - len(floats)))  # fmt: skip
        self._calls.append(packed)
        self.names.add(name)

    def _add(self, content: bytes) -> Place:
        self._bytes += bytes(64 - len(self._bytes) % 64)  # place 0 is never used
        place = len(self._bytes)
        self._bytes += content
        return Place(place)

    def write(self, path: Path) -> None:
        """The file that the driver reads."""
        sizes = struct.pack("<3q", len(self._calls), len(self._pointers), len(self._bytes))
        places = struct.pack(f"<{len(self._pointers)}q", *self._pointers)
        path.write_bytes(sizes + places + b"".join(self._calls) + bytes(self._bytes))

    def results(self, path: Path) -> dict[str, Tensor]:
        """The outputs in a file that the driver wrote."""
        content = path.read_bytes()
        return {
            name: torch.frombuffer(bytearray(content[place : place + tensor.nbytes]), dtype=tensor.dtype).view(
                tensor.shape
            )
            for name, (place, tensor) in self.outputs.items()
        }


def compile_kernels(words: Sequence[str], define: str, directory: Path) -> list[str]:
    """The object files of the kernels. Raises CalledProcessError."""
    made = []
    for unit in compiler.UNITS:
        made.append(str(directory / f"{unit}.o"))
        _run([*words, *compiler.FLAGS, "-O1", f"-D{define}", "-c", str(compiler.SOURCES / unit), "-o", made[-1]])
    return made


def link(words: Sequence[str], image: Image, kernels: Sequence[str], program: Path) -> Path:
    """The driver with the kernels of an image, in object files or in a library. Raises CalledProcessError."""
    names = " ".join(f"KERNEL({name})" for name in sorted(image.names))
    _run([*words, "-O1", "-pthread", f"-DKERNELS={names}", str(DRIVER), *kernels, "-o", str(program), "-lm"])
    return program


def run(image: Image, command: Sequence[str], directory: Path) -> dict[str, Tensor]:
    """The outputs of an image, by a program of `link` and what it is run with. Raises CalledProcessError."""
    before, after = directory / "image", directory / "image-after"
    image.write(before)
    _run([*command, str(before), str(after)])
    return image.results(after)


def _run(words: Sequence[str]) -> None:
    subprocess.run(words, check=True, capture_output=True, text=True)
