"""How long idle threads of torch wait for more work before they sleep. OpenMP reads it when torch is imported.

By default they spin for milliseconds, on the processors that the threads of the C kernels then have to share with them.
"""

from __future__ import annotations

import os
import sys

POLICY = "OMP_WAIT_POLICY"
"""Environment variable: `active` or `passive`, for OpenMP of any maker."""
SETTINGS = {"GOMP_SPINCOUNT": "1000", "KMP_BLOCKTIME": "0"}
"""For GNU's OpenMP, less than 0.1 ms; for LLVM's, in milliseconds."""


def wait_briefly() -> None:
    """Let idle threads of torch sleep soon, unless the user set how long, or torch is imported already."""
    if "torch" not in sys.modules and POLICY not in os.environ:
        for name, value in SETTINGS.items():
            os.environ.setdefault(name, value)
