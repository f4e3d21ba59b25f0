"""A reader of GGUF headers that checks every count, length and offset against the size of the file.

Other libraries trust these numbers: an array that claims 2**60 elements keeps them in a loop. So this reader runs
before them, and the rest of the package reads only what it returns.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from orthrus.checkpoint.validation import short_repr

VERSIONS = (2, 3)
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
TEXT, ARRAY = 8, 9
FIELD_BYTES, TENSOR_BYTES = 13, 32
"""The minimum sizes of a field and of a tensor in the header."""

MAX_NAME_BYTES, MAX_ITEM_BYTES, MAX_DIMENSIONS = 1024, 2**13, 4
ALIGNMENTS = [2**n for n in range(17)]


@dataclass(frozen=True)
class ArrayLength:
    """An array of the metadata; only its length is kept."""

    length: int


@dataclass(frozen=True)
class TensorInfo:
    """One tensor as described in the header: the number of its GGML type, its shape (rows first), its byte offset."""

    name: str
    type: int
    shape: tuple[int, ...]
    offset: int


@dataclass(frozen=True)
class Header:
    """A parsed header: metadata by name, tensors, the size of the file in bytes, and the arrays that were asked for."""

    fields: dict[str, Any]
    tensors: tuple[TensorInfo, ...]
    file_bytes: int
    arrays: dict[str, list[Any]] = field(default_factory=dict)


def read_header(path: Path, keep: Collection[str] = ()) -> Header:
    """Read the header of a GGUF file, with the elements of the arrays named in `keep`.

    Raises ValueError naming the file and the invalid field.
    """
    if path.stat().st_size == 0:
        raise ValueError(f"{path}: cannot be read as GGUF (it is empty); fetch the file again")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return _HeaderReader(path, data, keep).header()


class _HeaderReader:
    """A cursor into the file that checks bounds at every step."""

    def __init__(self, path: Path, data: mmap.mmap, keep: Collection[str]) -> None:
        self.path, self.data, self.position = path, data, 0
        self.keep, self.arrays = keep, dict[str, list[Any]]()

    def header(self) -> Header:
        """Read the whole header."""
        if self.data[self.skip(4, "the magic number") : self.position] != b"GGUF":
            raise self.invalid("it does not begin with GGUF")
        version = self.number("I", "the version")
        if version not in VERSIONS:
            raise self.invalid(f"version {version}; little-endian files of versions 2 and 3 are read")
        tensor_count, field_count = (self.number("Q", f"the number of {what}") for what in ("tensors", "fields"))
        self.check_count(field_count, FIELD_BYTES, "fields")
        fields: dict[str, Any] = {}
        for _ in range(field_count):
            name = self.text("the name of a field", MAX_NAME_BYTES)
            if name in fields:
                raise self.invalid(f"{short_repr(name)} occurs twice")
            kept = self.arrays.setdefault(name, []) if name in self.keep else None
            fields[name] = self.value(short_repr(name), kept)
        self.check_count(tensor_count, TENSOR_BYTES, "tensors")
        infos = [self.tensor() for _ in range(tensor_count)]
        alignment = fields.get("general.alignment", 32)
        if type(alignment) is not int or alignment not in ALIGNMENTS:
            raise self.invalid(
                f"general.alignment is {short_repr(alignment)}; expected a power of two up to {ALIGNMENTS[-1]}"
            )
        start = -(-self.position // alignment) * alignment
        for info in infos:
            if info.offset % alignment or start + info.offset > len(self.data):
                expected = f"expected a multiple of {alignment} within the file"
                raise self.invalid(f"tensor {short_repr(info.name)} has offset {info.offset}; {expected}")
        return Header(fields, tuple(replace(i, offset=start + i.offset) for i in infos), len(self.data), self.arrays)

    def invalid(self, what: str) -> ValueError:
        """The error of an invalid header."""
        return ValueError(f"{self.path}: cannot be read as GGUF ({what}); fetch the file again")

    def check_count(self, count: int, min_bytes: int, what: str) -> None:
        """Raise where the rest of the file is shorter than `count` items of at least `min_bytes` bytes each."""
        if count > (len(self.data) - self.position) // min_bytes:
            raise self.invalid(f"it claims {count} {what}, more than fit into the file")

    def skip(self, count: int, what: str) -> int:
        """Advance by `count` bytes and return the position before them."""
        start = self.position
        if count > len(self.data) - start:
            raise self.invalid(f"{what} needs {count} bytes from offset {start}, but the file ends at {len(self.data)}")
        self.position += count
        return start

    def number(self, code: str, what: str) -> Any:
        """One number; `code` is its format character in `struct`."""
        return struct.unpack_from(f"<{code}", self.data, self.skip(struct.calcsize(f"<{code}"), what))[0]

    def text(self, what: str, max_bytes: int) -> str:
        """One string."""
        start = self.skip(self.text_bytes(what, max_bytes), what)
        try:
            return self.data[start : self.position].decode("utf-8")
        except UnicodeDecodeError as error:
            raise self.invalid(f"{what} is not UTF-8") from error

    def text_bytes(self, what: str, max_bytes: int) -> int:
        """The length of a string in bytes."""
        length: int = self.number("Q", f"the length of {what}")
        if length > max_bytes:
            raise self.invalid(f"{what} has {length} bytes; expected at most {max_bytes}")
        return length

    def value(self, name: str, kept: list[Any] | None = None) -> Any:
        """The value of a field; for an array only its length, and its elements in `kept` where that is given."""
        kind = self.number("I", f"the type of {name}")
        if kind == TEXT:
            return self.text(name, len(self.data))
        if kind in SCALARS:
            return self.number(SCALARS[kind], name)
        element = self.number("I", f"the element type of {name}") if kind == ARRAY else kind
        if element != TEXT and element not in SCALARS:
            raise self.invalid(f"{name} has the unknown type {kind} with elements of type {element}")
        length = self.number("Q", f"the number of elements of {name}")
        width = 8 if element == TEXT else struct.calcsize(f"<{SCALARS[element]}")
        self.check_count(length, width, f"elements of {name}")
        if element == TEXT:
            self.texts(length, f"an element of {name}", kept)
            return ArrayLength(length)
        start = self.skip(length * width, name)
        if kept is not None:
            kept += struct.unpack_from(f"<{length}{SCALARS[element]}", self.data, start)
        return ArrayLength(length)

    def texts(self, count: int, what: str, kept: list[str] | None) -> None:
        """The strings of an array, as `text` reads each, in `kept` where that is given.

        The loop is written out, because a vocabulary has a hundred thousand strings and every start reads it.
        """
        read, data, position, end = struct.Struct("<Q").unpack_from, self.data, self.position, len(self.data)
        for _ in range(count):
            start = position + 8
            length = read(data, position)[0] if start <= end else end
            if length > min(MAX_ITEM_BYTES, end - start):
                self.position = position
                self.text(what, MAX_ITEM_BYTES)  # raises
            position = start + length
            if kept is not None:
                try:
                    kept.append(data[start:position].decode("utf-8"))
                except UnicodeDecodeError as error:
                    raise self.invalid(f"{what} is not UTF-8") from error
        self.position = position

    def tensor(self) -> TensorInfo:
        """The next tensor, with its offset relative to the tensor data."""
        name = self.text("the name of a tensor", MAX_NAME_BYTES)
        what = f"tensor {short_repr(name)}"
        dimensions = self.number("I", f"the number of dimensions of {what}")
        if not 1 <= dimensions <= MAX_DIMENSIONS:
            raise self.invalid(f"{what} has {dimensions} dimensions; expected 1 to {MAX_DIMENSIONS}")
        shape = tuple(self.number("Q", f"the shape of {what}") for _ in range(dimensions))[::-1]
        if not all(shape):
            raise self.invalid(f"{what} has shape {list(shape)}; expected no zero dimension")
        kind, offset = self.number("I", f"the type of {what}"), self.number("Q", f"the offset of {what}")
        return TensorInfo(name, kind, shape, offset)
