"""The header of a GGUF file, walked once with every count, length and offset held against the bytes that are there.

The readers of other libraries trust these numbers: an array that claims 2**60 elements keeps them busy for ever. So
this walk comes first, and what it returns is all that is read of a header here.
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from orthrus.checkpoint.validation import shown

VERSIONS = (2, 3)
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
TEXT, ARRAY = 8, 9
FIELD_BYTES, TENSOR_BYTES = 13, 32
"""The least that a field and a tensor take in the header."""

MAX_NAME_BYTES, MAX_ITEM_BYTES, MAX_DIMENSIONS = 1024, 2**13, 4
ALIGNMENTS = [2**n for n in range(17)]


@dataclass(frozen=True)
class ArrayOf:
    """An array of the metadata, of which only the length is kept."""

    length: int


@dataclass(frozen=True)
class TensorInfo:
    """One tensor as the header has it: the number of its type, its shape (rows first), where its bytes begin."""

    name: str
    type: int
    shape: tuple[int, ...]
    offset: int


@dataclass(frozen=True)
class Header:
    """What a header says: numbers, texts and arrays by name, and the tensors; and the size of the file."""

    fields: dict[str, Any]
    tensors: tuple[TensorInfo, ...]
    file_bytes: int


def read_header(path: Path) -> Header:
    """Walk the header of a GGUF file. Raises ValueError naming the file and the field that lies."""
    if path.stat().st_size == 0:
        raise ValueError(f"{path}: cannot be read as GGUF (it is empty); fetch the file again")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return _Walk(path, data).header()


class _Walk:
    """A position in the file; every step forward is checked."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self.path, self.data, self.position = path, data, 0

    def header(self) -> Header:
        """All of it."""
        if self.data[self.skip(4, "the magic number") : self.position] != b"GGUF":
            raise self.lie("it does not begin with GGUF")
        version = self.number("I", "the version")
        if version not in VERSIONS:
            raise self.lie(f"version {version}; little-endian files of versions 2 and 3 are read")
        tensors, fields = self.number("Q", "the number of tensors"), self.number("Q", "the number of fields")
        self.expect_room(fields, FIELD_BYTES, "fields")
        found: dict[str, Any] = {}
        for _ in range(fields):
            name = self.text("the name of a field", MAX_NAME_BYTES)
            if name in found:
                raise self.lie(f"{shown(name)} is there twice")
            found[name] = self.value(shown(name))
        self.expect_room(tensors, TENSOR_BYTES, "tensors")
        infos = [self.tensor() for _ in range(tensors)]
        alignment = found.get("general.alignment", 32)
        if type(alignment) is not int or alignment not in ALIGNMENTS:
            raise self.lie(f"general.alignment is {shown(alignment)}; expected a power of two up to {ALIGNMENTS[-1]}")
        start = -(-self.position // alignment) * alignment
        for info in infos:
            if info.offset % alignment or start + info.offset > len(self.data):
                place = f"{info.offset}; expected a multiple of {alignment} within the file"
                raise self.lie(f"tensor {shown(info.name)} begins at {place}")
        return Header(found, tuple(replace(i, offset=start + i.offset) for i in infos), len(self.data))

    def lie(self, what: str) -> ValueError:
        """The error of a header that lies."""
        return ValueError(f"{self.path}: cannot be read as GGUF ({what}); fetch the file again")

    def expect_room(self, count: int, least: int, what: str) -> None:
        """Raise where the rest of the file has no room for `count` things of `least` bytes."""
        if count > (len(self.data) - self.position) // least:
            raise self.lie(f"it claims {count} {what}, more than the file has room for")

    def skip(self, count: int, what: str) -> int:
        """Step over `count` bytes and return where they began."""
        start = self.position
        if count > len(self.data) - start:
            raise self.lie(f"{what} takes {count} bytes from byte {start} on, but the file ends at {len(self.data)}")
        self.position += count
        return start

    def number(self, form: str, what: str) -> Any:
        """One number."""
        return struct.unpack_from(f"<{form}", self.data, self.skip(struct.calcsize(f"<{form}"), what))[0]

    def text(self, what: str, most: int) -> str:
        """One string."""
        start = self.skip(self.text_bytes(what, most), what)
        try:
            return self.data[start : self.position].decode("utf-8")
        except UnicodeDecodeError as error:
            raise self.lie(f"{what} is not UTF-8") from error

    def text_bytes(self, what: str, most: int) -> int:
        """The length of a string."""
        length: int = self.number("Q", f"the length of {what}")
        if length > most:
            raise self.lie(f"{what} has {length} bytes; expected {most} at most")
        return length

    def value(self, name: str) -> Any:
        """The value of a field; of an array only the length."""
        kind = self.number("I", f"the type of {name}")
        if kind == TEXT:
            return self.text(name, len(self.data))
        if kind in SCALARS:
            return self.number(SCALARS[kind], name)
        element = self.number("I", f"the element type of {name}") if kind == ARRAY else kind
        if element != TEXT and element not in SCALARS:
            raise self.lie(f"{name} is of type {kind}, with elements of type {element}; no such type is known")
        length = self.number("Q", f"the number of elements of {name}")
        width = 8 if element == TEXT else struct.calcsize(f"<{SCALARS[element]}")
        self.expect_room(length, width, f"elements of {name}")
        item = f"an element of {name}"
        for _ in range(length if element == TEXT else 0):
            self.skip(self.text_bytes(item, MAX_ITEM_BYTES), item)
        self.skip(0 if element == TEXT else length * width, name)
        return ArrayOf(length)

    def tensor(self) -> TensorInfo:
        """The next tensor, its offset still relative."""
        name = self.text("the name of a tensor", MAX_NAME_BYTES)
        what = f"tensor {shown(name)}"
        dimensions = self.number("I", f"the number of dimensions of {what}")
        if not 1 <= dimensions <= MAX_DIMENSIONS:
            raise self.lie(f"{what} has {dimensions} dimensions; expected 1 to {MAX_DIMENSIONS}")
        shape = tuple(self.number("Q", f"the shape of {what}") for _ in range(dimensions))[::-1]
        if not all(shape):
            raise self.lie(f"{what} has shape {list(shape)}; expected no zero")
        kind, offset = self.number("I", f"the type of {what}"), self.number("Q", f"the offset of {what}")
        return TensorInfo(name, kind, shape, offset)
