"""Replay: the cycles that decoding a known text takes, computed from which rows of the block at every root are right.

Two-pass goes from root s to s + 1 + run_0(s), with a chain as with a tree of drafts. One-pass uses the block rooted at
the last accepted draft that has a block. The replay is greedy, at full width, without re-drafting and prompt lookup; a
run with these settings takes exactly the replayed cycles.
"""

from __future__ import annotations

from dataclasses import dataclass

from orthrus.api import Model
from orthrus.bench import exactness
from orthrus.bench.tasks import TaskPrompt
from orthrus.decoding.drafts import Draft
from orthrus.decoding.sampling import best
from orthrus.runner.draft_tree import draft_tree
from orthrus.runner.layout import chunks

CANDIDATES = (1, 2, 3, 4)
TREES = (4, 8, 16, 32)
"""The sizes of the trees that are replayed, in nodes."""


@dataclass(frozen=True)
class Text:
    """A greedy answer: number of prompt tokens, number of answer tokens, the right rows of the block per root, and per
    root how many drafts of a tree are accepted, by its number of nodes."""

    prompt: int
    tokens: int
    right: list[list[bool]]
    trees: list[dict[int, int]]

    def run(self, root: int, start: int) -> int:
        """Number of consecutive right rows of the block at `root`, starting with row `start`."""
        rows = self.right[root - self.prompt + 1][start:]
        return rows.index(False) if False in rows else len(rows)

    def two_pass(self, nodes: int | None = None) -> list[int]:
        """Accepted drafts of every two-pass cycle, with trees of `nodes` nodes or (None) chains."""
        length, accepted = self.prompt + 1, []
        while length < self.prompt + self.tokens:
            root = length - 1
            accepted.append(self.run(root, 0) if nodes is None else self.trees[root - self.prompt + 1][nodes])
            length += accepted[-1] + 1
        return accepted

    def one_pass(self, candidates: int | None = None) -> list[int]:
        """Accepted drafts of every one-pass cycle with blocks for `candidates` accept counts (None: for all)."""
        length, root, accepted = self.prompt + 1, self.prompt - 1, []
        while length < self.prompt + self.tokens:
            count = self.run(root, length - 1 - root)
            accepted.append(count)
            root = length - 1 + (count if candidates is None else min(count, candidates - 1))
            length += count + 1
        return accepted


def texts(model: Model, prompt: TaskPrompt, max_new_tokens: int) -> Text:
    """Decode a prompt by plain decoding, then draft from every root of its answer, the last root first."""
    runner = model.runner
    assert runner.diffusion is not None
    (request,) = exactness.requests(model, [prompt.prompt], {"max_new_tokens": max_new_tokens, "seed": 0})
    (done,) = [
        step.sequence
        for step in model.run([request], model.decoding_config({"cycle": "ar"}))
        if step.sequence.finish_reason is not None
    ]
    whole, length = [*request.prompt, *done.tokens], len(request.prompt)
    (table,) = runner.new_tables(1, len(whole))
    for chunk in chunks(whole, runner.max_rows):
        runner.ar([chunk], [table], logit_rows=[])
        table.commit(table.length + len(chunk))
    width, rows = runner.diffusion.block_size, runner.diffusion.trained_rows
    right, trees = [], []
    temperatures = runner.decoder.draft_temperatures()[:rows]
    for root in reversed(range(length - 1, len(whole) - 1)):
        table.commit(root)
        (logits_RV,), (hidden_RD,) = runner.diffuse_rows([whole[root]], width, [table], rows=rows)
        drafts, truth = best(logits_RV), whole[root + 1 :]
        right.append([drafted == token for drafted, token in zip(drafts, truth, strict=False)])
        tree = Draft.tree(*draft_tree(runner, logits_RV, hidden_RD, temperatures, max(TREES)))
        trees.append({nodes: _accepted(tree.first(nodes), truth) for nodes in TREES})
    return Text(length, len(done.tokens), right[::-1], trees[::-1])


def _accepted(tree: Draft, truth: list[int]) -> int:
    """How many drafts of a tree are accepted where `truth` follows the root."""
    return max(len(path) for path in tree.paths if path == truth[: len(path)])


def tpf(replayed: list[Text], accepted: list[list[int]], passes_per_cycle: int) -> float:
    """Tokens per pass over all texts, with the prefill counted as one pass."""
    return sum(text.tokens for text in replayed) / sum(1 + passes_per_cycle * len(cycles) for cycles in accepted)
