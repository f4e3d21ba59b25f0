"""A cache of tensors on disk: one file per entry, mapped into memory, checksummed, bounded.

An entry is read by mapping its file, so its tensors are the pages of the page cache: nothing is copied, and processes
that load the same entry share them. The mapping is private and ends with the last tensor. Every load compares the
CRC-32 of the data, so that a truncated or damaged file is never computed with.

Layout: a line of JSON after its own CRC-32, padded with spaces to `ALIGNMENT`, then the tensors, each at a multiple of
`ALIGNMENT`.
"""

from __future__ import annotations

import json
import logging
import mmap
import os
import shutil
import tempfile
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from time import time
from typing import Any

import torch
from torch import Tensor

from orthrus.file_cache import cache_directory

ALIGNMENT = 4096
CHUNK = 2**24
"""Bytes per checksum: chunks are checked by several threads."""
LIMIT = "ORTHRUS_CACHE_GIB"
"""Environment variable: the maximum size of all entries in GiB; 0 keeps none."""
MAX_BYTES, MAX_SHARE = 2**33, 0.25
"""The default maximum: 8 GiB, or a quarter of the free disk where that is less."""
SUFFIX, STALE_AFTER = ".tensors", 3600.0
_POPULATE_READ = 22  # MADV_POPULATE_READ of Linux 5.14, which maps all pages without copying any
DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in (
    torch.bfloat16, torch.float16, torch.float32, torch.float64, torch.int8, torch.uint8, torch.int16, torch.int32,
    torch.int64,
)}  # fmt: skip
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Entry:
    """What was stored: plain values, and tensors by name."""

    values: dict[str, Any]
    tensors: dict[str, Tensor]


def directory() -> Path:
    """The directory of the entries."""
    return cache_directory() / "packed"


def load(name: str) -> Entry | None:
    """The entry of a name; None where there is none, or where it is damaged, which is logged as a warning."""
    path = directory() / f"{name}{SUFFIX}"
    try:
        entry = _mapped(path)
        with suppress(OSError):  # a cache may be read-only
            os.utime(path)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        log.warning("%s is damaged (%s) and will be made again", path, error)
        return None
    return entry


def _mapped(path: Path) -> Entry:
    """The entry in a file. Raises ValueError where it is damaged."""
    with path.open("rb") as file:
        header = _header(file.readline())
        size, start = os.fstat(file.fileno()).st_size, header["start"]
        if size != header["size"]:
            raise ValueError(f"it has {size} bytes instead of {header['size']}")
        data = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_COPY)
    with suppress(OSError, AttributeError):
        data.madvise(_POPULATE_READ)
    if list(_checksums(memoryview(data)[start:])) != header["checksums"]:
        raise ValueError("its checksum differs")
    tensors = {key: _tensor(data, start, *stored) for key, stored in header["tensors"].items()}
    return Entry(header["values"], tensors)


def save(name: str, entry: Entry) -> bool:
    """Store an entry and evict others beyond the limit, least recently used first.

    Returns whether it was stored: a full disk, a read-only directory or an entry beyond the limit is no error.
    """
    tensors, offset = {}, 0
    views = {key: tensor.detach().contiguous() for key, tensor in entry.tensors.items()}
    for key, tensor in views.items():
        tensors[key] = [str(tensor.dtype).removeprefix("torch."), list(tensor.shape), offset]
        offset += -(-tensor.nbytes // ALIGNMENT) * ALIGNMENT
    try:
        directory().mkdir(parents=True, exist_ok=True)
        if offset > limit():
            log.info("%s of %.1f GiB is beyond the limit of the cache and is not kept", name, offset / 2**30)
            return False
        handle, staged = tempfile.mkstemp(dir=directory(), suffix=".part")
        try:
            with os.fdopen(handle, "rb+") as file:
                _write(file.fileno(), entry.values, tensors, views)
            Path(staged).chmod(0o644)
            Path(staged).replace(directory() / f"{name}{SUFFIX}")
        finally:
            Path(staged).unlink(missing_ok=True)
        _evict(keep=f"{name}{SUFFIX}")
    except OSError as error:
        log.info("%s cannot be kept: %s", name, error)
        return False
    return True


def limit() -> int:
    """The maximum size of all entries in bytes. Raises ValueError where the environment variable is not a number."""
    given = os.environ.get(LIMIT)
    if given is not None:
        try:
            return int(float(given) * 2**30)
        except (ValueError, OverflowError):
            raise ValueError(f"{LIMIT} must be a number of GiB, not {given!r}") from None
    place = next(path for path in (directory(), *directory().parents) if path.exists())
    return int(min(MAX_BYTES, MAX_SHARE * (shutil.disk_usage(place).free + used())))


def used() -> int:
    """The size of all entries in bytes."""
    return sum(size for _, size, _ in _entries())


def _write(file: int, values: dict[str, Any], tensors: dict[str, list[Any]], views: dict[str, Tensor]) -> None:
    """Reserve room for the header, write the data and its checksums chunk by chunk, then the header."""
    blank = {"values": values, "tensors": tensors, "start": 0, "size": 0, "checksums": []}
    size = sum(-(-tensor.nbytes // ALIGNMENT) * ALIGNMENT for tensor in views.values())
    room = len(json.dumps(blank)) + 64 + 12 * (size // CHUNK + 1)
    start = -(-room // ALIGNMENT) * ALIGNMENT
    os.ftruncate(file, start + size)
    for (_, _, offset), tensor in zip(tensors.values(), views.values(), strict=True):
        data, written = tensor.reshape(-1).view(torch.uint8).numpy().data, 0
        while written < len(data):
            written += os.pwrite(file, data[written : written + CHUNK], start + offset + written)
    # read back in chunks, since a mapping of the whole file would double the memory of the process
    sums = [zlib.crc32(os.pread(file, min(CHUNK, size - begin), start + begin)) for begin in range(0, size, CHUNK)]
    header = json.dumps({**blank, "start": start, "size": start + size, "checksums": sums})
    padded = f"{header:<{start - 10}}\n".encode()
    os.pwrite(file, f"{zlib.crc32(padded):08x} ".encode() + padded, 0)


def _header(line: bytes) -> dict[str, Any]:
    """The header of an entry. Raises ValueError where it is damaged."""
    if f"{zlib.crc32(line[9:]):08x} ".encode() != line[:9]:
        raise ValueError("its header is damaged")
    header: dict[str, Any] = json.loads(line[9:])
    return header


def _checksums(data: memoryview) -> Iterator[int]:
    """The CRC-32 of each chunk."""
    chunks = [data[begin : begin + CHUNK] for begin in range(0, len(data), CHUNK)]
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        yield from pool.map(zlib.crc32, chunks)


def _tensor(data: mmap.mmap, start: int, dtype: str, shape: list[int], offset: int) -> Tensor:
    count = torch.Size(shape).numel()
    if count == 0:
        return torch.empty(shape, dtype=DTYPES[dtype])
    return torch.frombuffer(data, dtype=DTYPES[dtype], count=count, offset=start + offset).view(shape)


def _entries() -> list[tuple[float, int, Path]]:
    """Time of last use, size and path of every entry, oldest first."""
    found = []
    for path in directory().glob(f"*{SUFFIX}"):
        with suppress(OSError):
            found.append((path.stat().st_mtime, path.stat().st_size, path))
    return sorted(found)


def _evict(keep: str) -> None:
    """Remove the least recently used entries beyond the limit, and what killed processes left behind."""
    entries, most = _entries(), limit()
    total = sum(size for _, size, _ in entries)
    for _, size, path in entries:
        if total <= most:
            break
        if path.name != keep:
            path.unlink(missing_ok=True)
            total -= size
    for path in directory().glob("*.part"):
        with suppress(OSError):
            if time() - path.stat().st_mtime > STALE_AFTER:
                path.unlink()
