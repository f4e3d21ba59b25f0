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
from typing import Any

import torch
from torch import Tensor

from orthrus.backends.native import compiler

DRIVER = Path(__file__).with_name("native_driver.c")
OF_DRIVER = {"copy_slots", "order_int8", "order_codes"}
"""What the driver itself can be asked to do."""
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
        place = self._add(tensor.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        if result:
            self.outputs[result] = place, tensor
        return place

    def empty(self, shape: Sequence[int], dtype: torch.dtype, result: str = "") -> Place:
        """The place of zeros."""
        return self.put(torch.zeros(*shape, dtype=dtype), result)

    def struct(self, made: ctypes.Structure) -> Place:
        """The place of a struct whose pointers are places, 0 for null."""
        place = self._add(bytes(made))
        self._note_pointers(made, place)
        return place

    def structs(self, made: ctypes.Array[Any]) -> Place:
        """The place of an array of them."""
        place = self._add(bytes(made))
        for number, own in enumerate(made):
            self._note_pointers(own, place + number * ctypes.sizeof(own))
        return place

    def pointers(self, places: Sequence[Place]) -> Place:
        """The place of an array of pointers."""
        place = self._add(struct.pack(f"<{len(places)}q", *places))
        self._pointers += range(place, place + 8 * len(places), 8)
        return place

    def _note_pointers(self, made: ctypes.Structure, place: int) -> None:
        for name, kind in made._fields_:
            at, value = place + getattr(type(made), name).offset, getattr(made, name)
            if kind is POINTER:
                self._pointers.append(at)
                if value is None:
                    self._bytes[at : at + 8] = struct.pack("<q", NULL)
            elif isinstance(value, ctypes.Structure):
                self._note_pointers(value, at)
            elif isinstance(value, ctypes.Array) and issubclass(value._type_, ctypes.Structure):
                for number, own in enumerate(value):
                    self._note_pointers(own, at + number * ctypes.sizeof(own))

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


def compile_kernels(words: Sequence[str], define: str, directory: Path, optimize: str = "-O0") -> list[str]:
    """The object files of the kernels, for which optimising takes far longer than a small image gains by it.

    Raises CalledProcessError.
    """
    made = []
    for unit in compiler.UNITS:
        made.append(str(directory / f"{unit}.o"))
        _run([*words, *compiler.FLAGS, optimize, f"-D{define}", "-c", str(compiler.SOURCES / unit), "-o", made[-1]])
    return made


def link(words: Sequence[str], images: Sequence[Image], kernels: Sequence[str], program: Path) -> Path:
    """The driver with the kernels of images, in object files or in a library. Raises CalledProcessError."""
    needed = set[str]().union(*(image.names for image in images)) - OF_DRIVER
    names = " ".join(f"KERNEL({name})" for name in sorted(needed))
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
