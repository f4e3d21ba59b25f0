"""Conversations to train toy models on, and their files."""

from __future__ import annotations

import json
import random


def conversations(count=24, seed=0):
    rng = random.Random(seed)
    for n in range(count):
        answer = "".join(rng.choices("abcdef ", k=rng.randrange(6, 40))).strip() + "."
        yield {
            "id": f"r{n}",
            "messages": [{"role": "user", "content": f"say {n}"}, {"role": "assistant", "content": answer}],
        }


def write(path, records):
    path.write_text("\n".join(json.dumps(record) for record in records))
    return path
