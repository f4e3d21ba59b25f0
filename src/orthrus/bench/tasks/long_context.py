"""Long context: a synthetic ledger of 2K to 40K tokens from fixed seeds, and a question about one line of it."""

from __future__ import annotations

import random
from collections.abc import Iterator

from orthrus.bench.tasks import TaskPrompt

SOURCE, LICENCE = "orthrus", "Apache-2.0"
SIZES = (2, 4, 8, 16, 32, 40)
"""Approximate thousands of tokens: a line of the ledger has about 24."""
TOKENS_PER_LINE = 24
PROMPTS_PER_SIZE = 10
GOODS = ("barrels of oil", "crates of tea", "bales of cotton", "sacks of flour", "rolls of silk", "casks of wine")
TOWNS = ("Arden", "Bristow", "Calder", "Dunmore", "Elswick", "Farnham", "Glenby", "Harwick")
NAMES = ("Abbot", "Baker", "Cole", "Drake", "Ellis", "Finch", "Grant", "Hale", "Irwin", "Jarvis")


def prompts() -> Iterator[TaskPrompt]:
    """Ten prompts of every size, shortest first."""
    for size in SIZES:
        for number in range(PROMPTS_PER_SIZE):
            chance = random.Random(1000 * size + number)
            count = size * 1000 // TOKENS_PER_LINE
            orders = [(chance.choice(NAMES), chance.choice(GOODS), chance.choice(TOWNS)) for _ in range(count)]
            amounts = [chance.randrange(2, 90) for _ in range(count)]
            lines = [
                f"Entry {n}: {name} sent {amount} {goods} to {town}."
                for n, ((name, goods, town), amount) in enumerate(zip(orders, amounts, strict=True), 1)
            ]
            asked = chance.randrange(count)
            question = f"What does entry {asked + 1} say? Repeat it, then list the five entries after it word for word."
            text = "\n".join(lines)
            yield TaskPrompt(f"long_context/{size}k/{number}", f"{size}k", f"Read this ledger.\n\n{text}\n\n{question}")
