"""Compiles the C kernels to a library with a checksum, because loading a truncated one ends the process.

This module and those that it imports need the standard library alone, so the build of a wheel uses them too.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

SOURCES = Path(__file__).with_name("c")
UNITS = ("native.c", "linear_dequant.c", "linear_codes.c", "team.c")
"""The translation units of a library, which are compiled side by side."""
FLAGS = ("-O3", "-ffp-contract=off", "-fno-math-errno", "-fPIC", "-pthread")
"""No contraction into fused multiply-adds: a vector loop and its scalar tail must round alike."""
DEFINES = {"float32": "FLOAT32", "bfloat16": "BFLOAT16"}
USUAL = ("cc", "gcc", "clang")
"""The compilers that are looked for, in this order, where $CC is not set."""
SECONDS_TO_COMPILE = 300

log = logging.getLogger(__name__)


class UnavailableError(RuntimeError):
    """The C kernels cannot be used: the message states why in one line, `output` is what the compiler printed."""

    def __init__(self, reason: str, output: str = "") -> None:
        super().__init__(reason)
        self.output = output


def command() -> list[str]:
    """The command of the C compiler: $CC if set, else the first of `USUAL` that exists. Raises UnavailableError."""
    asked = shlex.split(os.environ.get("CC", ""))
    for words in [asked] if asked else [[name] for name in USUAL]:
        if shutil.which(words[0]):
            return words
    named = f"$CC names {asked[0]!r}, which is not there" if asked else "no cc, gcc or clang was found"
    raise UnavailableError(f"no C compiler: {named}")


def key(*parts: object) -> str:
    """A digest of the sources and of what else decides how a library comes out."""
    digest = hashlib.sha256(repr(parts).encode())
    for path in sorted(SOURCES.iterdir()):
        text = path.read_bytes()
        digest.update(f"\n{path.name} {len(text)}\n".encode() + text)
    return digest.hexdigest()[:16]


def is_intact(library: Path) -> bool:
    """Whether a library can be read and has its checksum."""
    try:
        return hashlib.sha256(library.read_bytes()).hexdigest() == checksum(library)
    except (OSError, UnicodeDecodeError):
        return False


def checksum(library: Path) -> str:
    """The sha256 that stands beside a library. Raises OSError and UnicodeDecodeError."""
    return _checksum_file(library).read_text(encoding="ascii").strip()


def _checksum_file(library: Path) -> Path:
    return library.with_suffix(".sha256")


def compile_library(compiler: Sequence[str], dtype: str, target: Path) -> None:
    """Compile the library and its checksum, and move both to their names only when they are complete.

    Raises UnavailableError and OSError.
    """
    words = [*compiler, f"-D{DEFINES[dtype]}"]
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as directory:
        built = Path(directory) / target.name
        failed = _failed_build(words, built)
        if failed:
            used, output = failed
            message = f"the C compiler failed: {_first_error(output)}"
            raise UnavailableError(message, f"{shlex.join(used)}\n{output}")
        _checksum_file(built).write_text(hashlib.sha256(built.read_bytes()).hexdigest(), encoding="ascii")
        built.replace(target)
        _checksum_file(built).replace(_checksum_file(target))


def _failed_build(words: list[str], library: Path) -> tuple[list[str], str] | None:
    """Compile the units and link them to `library`. Returns the command that failed and its output, if one did."""
    objects = {unit: str(library.with_name(unit).with_suffix(".o")) for unit in UNITS}
    compiling = [[*words, "-c", str(SOURCES / unit), "-o", made] for unit, made in objects.items()]
    linking = [*words, "-shared", *objects.values(), "-o", str(library), "-lm"]
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
