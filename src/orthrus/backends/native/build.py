"""Compiles the C kernels once on the user's machine and caches the library.

The library is cached with a checksum, because loading a truncated one ends the process.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from orthrus.backends.native import structs

if TYPE_CHECKING:
    import torch

SOURCES = Path(__file__).with_name("c")
UNITS = ("native.c", "linear_dequant.c")
"""The translation units of a library, which are compiled side by side. They take about as long as each other."""
MARCH = "ORTHRUS_MARCH"
"""Environment variable: the value of the compiler's -march option, `native` by default."""
FLAGS = ("-O3", "-ffp-contract=off", "-fno-math-errno", "-fPIC")
"""No contraction into fused multiply-adds: a vector loop and its scalar tail must round alike."""
THREADING = "-fopenmp"
"""The loader finds the OpenMP runtime by its name, and torch has already loaded one: both share its pool of threads."""
DEFINES = {"float32": "FLOAT32", "bfloat16": "BFLOAT16"}
SECONDS_TO_COMPILE = 120

log = logging.getLogger(__name__)


class UnavailableError(RuntimeError):
    """The C kernels cannot be used: the message states why in one line, `output` is what the compiler printed."""

    def __init__(self, reason: str, output: str = "") -> None:
        super().__init__(reason)
        self.output = output


def library(dtype: torch.dtype, cache_directory: Path) -> ctypes.CDLL:
    """The kernels of `c/` for `dtype`, compiled into `cache_directory` on first use. Raises UnavailableError."""
    try:
        loaded = ctypes.CDLL(str(_compiled(str(dtype).removeprefix("torch."), cache_directory)))
    except OSError as error:
        raise UnavailableError(f"the compiled kernels cannot be kept or loaded: {error}") from error
    wrong = structs.mismatch(loaded)
    if wrong:
        raise UnavailableError(f"the C structs do not match this version of the package: {wrong}")
    return loaded


def compile_ahead(dtype: str, cache_directory: Path) -> None:
    """Compile the library if need be, for a thread that runs while others import torch and read files."""
    with suppress(UnavailableError, OSError):  # `library` finds the same error and reports it
        _compiled(dtype, cache_directory)


def _compiled(dtype: str, cache_directory: Path) -> Path:
    """The compiled library. Raises UnavailableError and OSError."""
    if dtype not in DEFINES:
        raise UnavailableError(f"there are no C kernels for {dtype}")
    if platform.system() not in ("Linux", "Darwin"):
        raise UnavailableError(f"the C kernels are not compiled on {platform.system()}")
    compiler = _compiler()
    flags = (*FLAGS, f"-march={os.environ.get(MARCH) or 'native'}")
    sources = [path.read_bytes() for path in sorted(SOURCES.iterdir())]
    key = hashlib.sha256(repr((sources, flags, compiler, _processor())).encode()).hexdigest()[:16]
    target = cache_directory / f"native-{dtype}-{key}.so"
    if _intact(target):
        return target
    with _one_at_a_time(target):
        if not _intact(target, warn=True):
            _compile([*compiler, *flags, f"-D{DEFINES[dtype]}"], target)
    return target


@contextmanager
def _one_at_a_time(target: Path) -> Iterator[None]:
    """Let one thread of one process compile; the others wait for it and find the library."""
    import fcntl

    target.parent.mkdir(parents=True, exist_ok=True)
    with target.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _compiler() -> list[str]:
    """The command of the C compiler: $CC if set, else the first of cc, gcc and clang that exists."""
    asked = shlex.split(os.environ.get("CC", ""))
    for command in [asked] if asked else [["cc"], ["gcc"], ["clang"]]:
        if shutil.which(command[0]):
            return command
    named = f"$CC names {asked[0]!r}, which is not there" if asked else "no cc, gcc or clang was found"
    raise UnavailableError(f"no C compiler: {named}")


def _intact(target: Path, *, warn: bool = False) -> bool:
    """Whether the cached library exists and has its checksum; `warn` of a damaged one."""
    try:
        expected = _checksum_of(target).read_text(encoding="ascii").strip()
        if hashlib.sha256(target.read_bytes()).hexdigest() == expected:
            return True
    except (FileNotFoundError, UnicodeDecodeError):
        if not target.exists():
            return False
    if warn:
        log.warning("%s is damaged: its checksum differs; it is compiled again", target)
    return False


def _checksum_of(target: Path) -> Path:
    return target.with_suffix(".sha256")


def _compile(command: list[str], target: Path) -> None:
    """Compile the library and its checksum, and move both to their names only when they are complete."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as directory:
        built = Path(directory) / target.name
        without_threads = _failed_build([*command, THREADING], built)
        if without_threads:  # a compiler without OpenMP compiles the same kernels for one thread
            failed = _failed_build(command, built)
            if failed:
                used, output = failed
                message = f"the C compiler failed: {_first_error(output)}"
                raise UnavailableError(message, f"{shlex.join(used)}\n{output}")
            log.warning("the C kernels run on one thread, without OpenMP: %s", _first_error(without_threads[1]))
        checksum = _checksum_of(built)
        checksum.write_text(hashlib.sha256(built.read_bytes()).hexdigest(), encoding="ascii")
        built.replace(target)
        checksum.replace(_checksum_of(target))


def _failed_build(command: list[str], library: Path) -> tuple[list[str], str] | None:
    """Compile the units and link them to `library`. Returns the command that failed and its output, if one did."""
    objects = {unit: str(library.with_name(unit).with_suffix(".o")) for unit in UNITS}
    compiling = [[*command, "-c", str(SOURCES / unit), "-o", made] for unit, made in objects.items()]
    linking = [*command, "-shared", *objects.values(), "-o", str(library), "-lm"]
    for together in (compiling, [linking]):
        running = [subprocess.Popen(own, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for own in together]
        outputs = [_failure(process) for process in running]
        for own, output in zip(together, outputs, strict=True):
            if output:
                return own, output
    return None


def _failure(compiler: subprocess.Popen[bytes]) -> str:
    """The output of a compiler that fails; empty if it succeeds."""
    try:
        out, errors = compiler.communicate(timeout=SECONDS_TO_COMPILE)
    except subprocess.TimeoutExpired:
        compiler.kill()
        compiler.communicate()
        return f"error: no result within {SECONDS_TO_COMPILE} seconds"
    output = (errors + out).decode(errors="replace").strip()
    return (output or f"error: exit status {compiler.returncode}, no output") if compiler.returncode else ""


def _first_error(output: str) -> str:
    """The first line with an error, else the first line."""
    lines = output.splitlines()
    return next((line for line in lines if "error" in line), lines[0]).strip()


def _processor() -> str:
    """The features that `-march=native` depends on: machines that differ may share a home directory."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line for line in lines if line.startswith(("flags", "Features")))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
