"""Random trees of rows, and what must hold for them: every row has the bits of plain decoding of its path."""

from __future__ import annotations

import random

import tiny
import torch

TOLERANCES = {torch.float32: {"atol": 1e-4, "rtol": 1e-4}, torch.bfloat16: {"atol": 0.1, "rtol": 0.1}}
"""Of blocks on kernels that take a mask: there the place of their own keys may change a bit."""


def random_parents(rng, rows):
    """A tree of any shape: bushy, deep, or in between, with one or several rows after the cache."""
    reach, roots = rng.choice([1, 2, 4, rows]), rng.choice([0.0, 0.0, 0.2])
    return [-1 if row == 0 or rng.random() < roots else rng.randrange(max(0, row - reach), row) for row in range(rows)]


def path_to(parents, row):
    path = []
    while row >= 0:
        path.append(row)
        row = parents[row]
    return path[::-1]


def prefilled(runner, lengths, seed=0):
    """Tables of sequences whose first tokens are cached."""
    tables = runner.new_tables(len(lengths))
    for n, (table, length) in enumerate(zip(tables, lengths, strict=True)):
        rest = list(tiny.request(length, seed=seed + n).prompt)
        while rest:
            chunk, rest = rest[: runner.max_rows], rest[runner.max_rows :]
            runner.ar([chunk], [table], logit_rows=[])
            table.commit(table.length + len(chunk))
    return tables


def decoded_plainly(runner, table, tokens, parents):
    """Per row of a tree: its logits by plain decoding of its path, token by token, and the keys and values of that
    path. The table is left as it was."""
    start, truths = table.length, {}

    def decode(row):
        """The row, and all that follow it, after its ancestors."""
        length = table.length
        (logits,) = runner.ar([[tokens[row]]], [table])[0]
        table.commit(length + 1)
        slots = table.slots(start, length + 1)
        truths[row] = logits, [kept[:, :, slots] for kept in (table.cache.keys, table.cache.values)]
        for child in (n for n, parent in enumerate(parents) if parent == row):
            decode(child)
        table.commit(length)

    for root in (n for n, parent in enumerate(parents) if parent < 0):
        decode(root)
    return [truths[row] for row in range(len(tokens))]


def check_rows(runner, lengths, shapes, seed=0):
    """Trees of several sequences in one pass: every row equals plain decoding of its path, also in the cache."""
    rng = random.Random(seed)
    tables = prefilled(runner, lengths, seed)
    tokens = [[rng.randrange(tiny.VOCAB) for _ in shape] for shape in shapes]
    truths = [decoded_plainly(runner, *each) for each in zip(tables, tokens, shapes, strict=True)]
    found = runner.ar(tokens, tables, parents=shapes)
    for table, logits, parents, truth in zip(tables, found, shapes, truths, strict=True):
        wrong = [row for row, (expected, _) in enumerate(truth) if not torch.equal(logits[row], expected)]
        assert wrong == [], (parents, table.length)
        leaf = rng.randrange(len(parents))
        start, path = table.length, path_to(parents, leaf)
        table.commit_path(path)
        slots = table.slots(start, table.length)
        for stored, expected in zip((table.cache.keys, table.cache.values), truth[leaf][1], strict=True):
            assert torch.equal(stored[:, :, slots], expected)


def check_blocks(runner, lengths, shapes, width=4, seed=0):
    """Blocks rooted in rows of trees equal those rooted in chains of the paths; AR rows do not notice them."""
    rng = random.Random(seed)
    tables = prefilled(runner, lengths, seed)
    tokens = [[rng.randrange(tiny.VOCAB) for _ in shape] for shape in shapes]
    roots = [sorted(rng.sample(range(len(shape)), min(3, len(shape)))) for shape in shapes]
    alone = runner.ar(tokens, tables, parents=shapes)
    found = runner.ar_and_diffuse(tokens, roots, width, tables, parents=shapes)
    assert all(torch.equal(*pair) for pair in zip(found.logits, alone, strict=True))
    for n, (table, own, parents) in enumerate(zip(tables, tokens, shapes, strict=True)):
        for block, root in zip(found.blocks[n], roots[n], strict=True):
            path = path_to(parents, root)
            chain = runner.ar_and_diffuse([[own[row] for row in path]], [[len(path) - 1]], width, [table])
            if runner.ragged:
                assert torch.equal(block, chain.blocks[0][0]), (parents, root)
            torch.testing.assert_close(block, chain.blocks[0][0], **TOLERANCES[block.dtype])
