"""Atomic file writes, and a cache of small derived files (digests, converted configs, compiled kernels, timings)."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
import shutil
import tempfile
from collections.abc import Callable
from contextlib import suppress
from math import inf
from pathlib import Path
from time import time
from typing import Any

log = logging.getLogger(__name__)


def write_atomically(directory: Path, files: dict[str, Callable[[Path], None]]) -> None:
    """Write several files of a directory to temporary names, and rename them once all are complete.

    Raises OSError (disk full, no permission) naming the file; old files stay intact, temporary files are removed.
    """
    directory.mkdir(parents=True, exist_ok=True)
    staged: dict[Path, Path] = {}
    try:
        for name, write in files.items():
            handle, temporary = tempfile.mkstemp(prefix=f".{name}.", dir=directory)
            os.close(handle)
            staged[Path(temporary)] = directory / name
            try:
                write(Path(temporary))
                with Path(temporary).open("rb+") as written:
                    os.fsync(written.fileno())
            except OSError as error:  # the error of a failed write does not name the file
                reason = error.strerror or str(error)
                raise OSError(error.errno, f"{directory / name} could not be written: {reason}") from error
        for temporary_path, final in staged.items():
            temporary_path.chmod(0o644)
            temporary_path.replace(final)
    finally:
        for temporary_path in staged:
            temporary_path.unlink(missing_ok=True)


def save_json(path: Path, content: object) -> None:
    """Write one indented JSON file."""
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def save_bytes(path: Path, data: bytes) -> None:
    """Write bytes, for use in `write_atomically`."""
    path.write_bytes(data)


CHECKSUMS = "sums.json"
"""The checksums of the files of a cached directory."""


def save_directory(directory: Path, write: Callable[[Path], None]) -> None:
    """Replace a cached directory that is not intact by what `write` puts into an empty one, with checksums. One that
    another process has completed meanwhile stays, since it may be read already. Raises OSError."""
    directory.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory.parent) as staged:
        made = Path(staged) / "made"
        made.mkdir()
        write(made)
        save_json(made / CHECKSUMS, _checksums(made))
        if not is_intact(directory):
            shutil.rmtree(directory, ignore_errors=True)
            try:
                made.rename(directory)
            except OSError:
                if not is_intact(directory):
                    raise


def is_intact(directory: Path) -> bool:
    """Whether a cached directory is complete: a full disk or a killed process may leave a part of it."""
    try:
        sums = json.loads((directory / CHECKSUMS).read_text(encoding="utf-8"))
        return bool(sums == _checksums(directory))
    except (ValueError, OSError, RecursionError):
        return False


def _checksums(directory: Path) -> dict[str, str]:
    """The sha256 of each file in a directory, except of the file of checksums."""
    files = sorted(path for path in directory.iterdir() if path.name != CHECKSUMS)
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def cache_directory() -> Path:
    """The directory of cached files: $ORTHRUS_CACHE, else $XDG_CACHE_HOME/orthrus, else ~/.cache/orthrus."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("ORTHRUS_CACHE") or Path(base) / "orthrus")


def processor_name() -> str:
    """The model name of the CPU."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


WINDOWS, WINDOW = 32, 4096
"""How many parts of a file are sampled, and the bytes of each: few enough to be read from a cold disk at each start."""


def stamp(*files: Path) -> str:
    """A digest of the path, size, times, inode and a sample of the content of files.

    Archives and disk images preserve size and modification time, and read-only images the other two as well. A file of
    up to `WINDOWS * WINDOW` bytes is read whole.
    """
    return hashlib.sha256(repr([_state(file) for file in files]).encode()).hexdigest()[:16]


def _state(file: Path) -> tuple[str, int, int, int, int, str]:
    """What changes when a file is replaced or written: path, size, times of modification and of change, inode, and the
    sha256 over windows that are spread from its first byte to its last."""
    state, digest = file.stat(), hashlib.sha256()
    last, steps = max(state.st_size - WINDOW, 0), WINDOWS - 1
    with file.open("rb", buffering=0) as opened:
        for offset in sorted({last * n // steps for n in range(WINDOWS)}):
            digest.update(os.pread(opened.fileno(), WINDOW, offset))
    return str(file.resolve()), state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino, digest.hexdigest()


def cached_json(
    name: str, compute: Callable[[], Any], *, read: Callable[[Any], Any] | None = None, refresh: bool = False
) -> Any:
    """A JSON value cached under `name` and parsed by `read`; `refresh` computes it again.

    Failures to write the cache are ignored. A cached value that is damaged, or for which `read` raises ValueError,
    KeyError, TypeError or AttributeError, is logged as a warning and computed again.
    """
    path = cache_directory() / f"{name}.json"
    read = read or (lambda value: value)
    try:
        if not refresh:
            return read(json.loads(path.read_text(encoding="utf-8")))
    except OSError:
        pass
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        log.warning("%s is damaged (%s: %s) and will be computed again", path, type(error).__name__, error)
    value = compute()
    with suppress(OSError):
        write_atomically(path.parent, {path.name: lambda staged: save_json(staged, value)})
    return read(value)


def cached_digest(files: list[Path], compute: Callable[[], str], kind: str = "digest") -> str:
    """A digest of files, computed once per `kind` and per state of the files."""
    return str(cached_json(f"{kind}-{stamp(*files)}", compute, read=_hex_digest))


def _hex_digest(value: Any) -> str:
    if not isinstance(value, str) or len(value) != len(hashlib.sha256().hexdigest()):
        raise ValueError("not a sha256")
    int(value, 16)
    return value


def age_of(name: str) -> float:
    """Seconds since a value was cached under `name`; infinite if there is none."""
    try:
        return time() - (cache_directory() / f"{name}.json").stat().st_mtime
    except OSError:
        return inf
