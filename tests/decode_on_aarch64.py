"""Decodes a greedy answer of the demo model on aarch64, in an emulator: plainly, and in trees of drafts and blocks.

`python tests/decode_on_aarch64.py [LEVEL [NEW_TOKENS]]`, with `armv8.2-a-dotprod` and 8 by default, on x86-64 with
AVX2, aarch64-linux-gnu-gcc and qemu-aarch64. Compares the bits of logits, and the tokens, and takes minutes.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from time import perf_counter

import native_image
import native_recording
import torch

import orthrus
from orthrus.backends.native import compiler, levels

CROSS, EMULATOR = "aarch64-linux-gnu-gcc", "qemu-aarch64"
PROMPT = "What is 7 + 5?"


def main(name: str = "armv8.2-a-dotprod", new_tokens: str = "8") -> None:
    os.environ[levels.MARCH] = "x86-64-v3"
    level = next(level for level in levels.LEVELS if level.name == name)
    model = orthrus.load("smollm2-demo", cache=False)
    prompt = model.request(PROMPT, {}).prompt
    recording = native_recording.record(model.runner, prompt, int(new_tokens), threads=1)
    answer = recording.text[len(prompt) :]
    print(f"{len(prompt)} tokens of prompt, answer {model.decode(answer)!r}", flush=True)
    with tempfile.TemporaryDirectory() as directory:
        words = [CROSS, level.flags, "-static"]
        kernels = native_image.compile_kernels(words, compiler.DEFINES["bfloat16"], Path(directory), "-O2")
        program = native_image.link(words, [recording.image], kernels, Path(directory) / "program")
        start = perf_counter()
        found = native_image.run(recording.image, [EMULATOR, str(program)], Path(directory))
        print(f"{len(found)} passes in {perf_counter() - start:.0f} s", flush=True)
    other = [label for label, logits in recording.logits.items() if not torch.equal(found[label], logits)]
    print(f"rows that differ from plain decoding there: {len(recording.different(found))} of {len(recording.same)}")
    print(f"passes that differ from AVX2: {len(other)} of {len(recording.logits)}")
    print(f"answer there {model.decode(recording.answer(found))!r}")
    if recording.different(found) or ("bf16" not in level.features and (other or recording.answer(found) != answer)):
        sys.exit(1)


if __name__ == "__main__":
    main(*sys.argv[1:])
