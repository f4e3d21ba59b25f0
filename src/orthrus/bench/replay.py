"""Replay: the cycles that decoding a known text takes, computed from which rows of the block at every root are right.

Two-pass goes from root s to s + 1 + run_0(s). One-pass uses the block rooted at the last accepted draft that has a
block. The replay is greedy, at full width, without re-drafting and prompt lookup; a run with these settings takes
exactly the replayed cycles.
"""

from __future__ import annotations

from dataclasses import dataclass

from orthrus.api import Model
from orthrus.bench import exactness
from orthrus.bench.tasks import TaskPrompt
from orthrus.runner.layout import chunks

CANDIDATES = (1, 2, 3, 4)


@dataclass(frozen=True)
class Text:
    """A greedy answer: number of prompt tokens, number of answer tokens, and the right rows of the block per root."""

    prompt: int
    tokens: int
    right: list[list[bool]]

    def run(self, root: int, start: int) -> int:
        """Number of consecutive right rows of the block at `root`, starting with row `start`."""
        rows = self.right[root - self.prompt + 1][start:]
        return rows.index(False) if False in rows else len(rows)

    def two_pass(self) -> list[int]:
        """Accepted drafts of every two-pass cycle."""
        length, accepted = self.prompt + 1, []
        while length < self.prompt + self.tokens:
            accepted.append(self.run(length - 1, 0))
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
    right = []
    for root in reversed(range(length - 1, len(whole) - 1)):
        table.commit(root)
        drafts = runner.diffuse([whole[root]], width, [table], rows=rows)[0].argmax(dim=-1).tolist()
        right.append([drafted == token for drafted, token in zip(drafts, whole[root + 1 :], strict=False)])
    return Text(length, len(done.tokens), right[::-1])


def tpf(replayed: list[Text], accepted: list[list[int]], passes_per_cycle: int) -> float:
    """Tokens per pass over all texts, with the prefill counted as one pass."""
    return sum(text.tokens for text in replayed) / sum(1 + passes_per_cycle * len(cycles) for cycles in accepted)
