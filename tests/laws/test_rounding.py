"""bf16 arithmetic in fp32, for processors that have none, rounds every value as bf16 does."""

from __future__ import annotations

import platform
import subprocess
from pathlib import Path

import pytest
import torch

from orthrus.backends import native
from orthrus.backends.native import compiler

SOURCE = r"""
#include <stdio.h>
#define BFLOAT16
#include "simd.h"

int main(void) {
    const uint32_t exponents[] = {2, 60, 127, 200, 236};
    long wrong = 0;
    for (int e = 0; e < 5; e++)
        for (uint32_t sign = 0; sign < 2; sign++)
            for (uint32_t significand = 0; significand < 1u << 23; significand += LANES) {
                float values[LANES], found[LANES];
                for (uint32_t l = 0; l < LANES; l++) {
                    uint32_t bits = sign << 31 | exponents[e] << 23 | (significand + l);
                    memcpy(values + l, &bits, 4);
                }
                f32_store(found, nearest_bf16(f32_load(values)));
                for (int l = 0; l < LANES; l++) wrong += found[l] != to_float(from_float(values[l]));
            }
    printf("%ld wrong\n", wrong);
    return wrong != 0;
}
"""


@pytest.mark.parametrize("flags", ["-march=x86-64-v3", "-DORTHRUS_PLAIN_C"])
def test_the_nearest_bf16_of_every_significand(flags, tmp_path):
    if "march" in flags and (platform.machine() != "x86_64" or not torch.cpu._is_avx2_supported()):
        pytest.skip("this processor does not run AVX2; the case of plain C covers the arithmetic")
    headers = Path(native.__file__).with_name("c")
    source, program = tmp_path / "rounding.c", tmp_path / "rounding"
    source.write_text(SOURCE)
    try:
        words = [*compiler.command(), *compiler.FLAGS, flags, f"-I{headers}", str(source), "-lm", "-o", str(program)]
    except compiler.UnavailableError as error:
        pytest.skip(f"the program under test cannot be compiled: {error}")
    subprocess.run(words, check=True)
    process = subprocess.run([str(program)], capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stdout
