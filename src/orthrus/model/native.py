"""Fused kernels in C for the work between matrix products, compiled once on the user's machine.

Between two products a pass runs dozens of tiny operations, each of which finds its code and data pushed out of the
caches by the weights that streamed through. Fusing them is worth a quarter of a pass at batch 1. Where there is no C
compiler the twins in `kernels.py` run instead.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from orthrus.model.kernels import Kernels, Places

SOURCE = Path(__file__).with_name("native.c")
FLAGS = ("-O3", "-march=native", "-ffp-contract=off", "-fno-math-errno", "-shared", "-fPIC")
"""No contraction into fused multiply-adds: vector loop and scalar tail must round alike."""
DEFINES = {torch.float32: "FLOAT32", torch.bfloat16: "BFLOAT16"}

_POINTER, _INTEGER, _FLOAT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float


class NativeKernels(Kernels):
    """The C kernels for one dtype on the CPU; attention stays with torch."""

    name = "native C"

    def __init__(self, library: ctypes.CDLL) -> None:
        self._rms_norm, self._place, self._gate = library.rms_norm, library.place, library.gate
        self._rms_norm.argtypes = (_POINTER, _POINTER, _POINTER, _POINTER, _INTEGER, _INTEGER, _FLOAT)
        self._place.argtypes = (*(_POINTER,) * 10, _FLOAT)
        self._gate.argtypes = (_POINTER, _POINTER, _INTEGER, _INTEGER)
        for function in (self._rms_norm, self._place, self._gate):
            function.restype = None

    def norm(self, x_ND: Tensor, weight_D: Tensor, eps: float) -> Tensor:
        """See `Kernels`, as for all below."""
        return self._norm(x_ND, None, weight_D, eps)

    def add_norm(self, hidden_ND: Tensor, delta_ND: Tensor, weight_D: Tensor, eps: float) -> Tensor:
        """See `Kernels`."""
        assert delta_ND.is_contiguous() and delta_ND.shape == hidden_ND.shape
        return self._norm(hidden_ND, delta_ND.data_ptr(), weight_D, eps)

    def _norm(self, x_ND: Tensor, delta: int | None, weight_D: Tensor, eps: float) -> Tensor:
        assert x_ND.is_contiguous()
        out = torch.empty_like(x_ND)
        self._rms_norm(x_ND.data_ptr(), delta, weight_D.data_ptr(), out.data_ptr(), *x_ND.shape, eps)
        return out

    def place(
        self,
        qkv_NF: Tensor,
        norms: tuple[Tensor, Tensor] | None,
        places: Places,
        keys_BGTE: Tensor,
        values_BGTE: Tensor,
    ) -> Tensor:
        """See `Kernels`."""
        assert qkv_NF.is_contiguous()
        B, R = places.positions_BR.shape
        _, G, _, E = keys_BGTE.shape
        H = qkv_NF.shape[1] // E - 2 * G
        q = qkv_NF.new_empty(B, R, H, E)
        sizes = (_INTEGER * 7)(B, R, H, G, E, keys_BGTE.stride(0), keys_BGTE.stride(1))
        q_norm, k_norm = (n.data_ptr() for n in norms) if norms else (None, None)
        self._place(
            qkv_NF.data_ptr(), q_norm, k_norm, places.cos.data_ptr(), places.sin.data_ptr(),
            places.positions_BR.data_ptr(), q.data_ptr(), keys_BGTE.data_ptr(), values_BGTE.data_ptr(),
            sizes, places.norm_eps,
        )  # fmt: skip
        return q

    def gate(self, gate_up_NF: Tensor) -> Tensor:
        """See `Kernels`."""
        assert gate_up_NF.is_contiguous()
        rows, size = len(gate_up_NF), gate_up_NF.shape[1] // 2
        out = gate_up_NF.new_empty(rows, size)
        self._gate(gate_up_NF.data_ptr(), out.data_ptr(), rows, size)
        return out


def load(dtype: torch.dtype, cache_directory: Path) -> NativeKernels | None:
    """The kernels for `dtype`, compiled into `cache_directory` on first use; None where they cannot be had."""
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if dtype not in DEFINES or compiler is None or platform.system() not in ("Linux", "Darwin"):
        return None
    key = hashlib.sha256(repr((SOURCE.read_bytes(), FLAGS, compiler, _processor())).encode()).hexdigest()[:16]
    target = cache_directory / f"native-{DEFINES[dtype].lower()}-{key}.so"
    try:
        if not target.exists():
            _compile(compiler, DEFINES[dtype], target)
        return NativeKernels(ctypes.CDLL(str(target)))
    except (OSError, subprocess.SubprocessError):
        return None


def _compile(compiler: str, define: str, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as directory:
        built = Path(directory) / target.name
        command = [compiler, *FLAGS, f"-D{define}", str(SOURCE), "-o", str(built), "-lm"]
        subprocess.run(command, check=True, capture_output=True, timeout=120)
        built.replace(target)


def _processor() -> str:
    """What `-march=native` depends on: a home directory may be shared by machines that differ."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line for line in lines if line.startswith(("flags", "Features")))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
