"""Replay: what cycles would take on a text that is known, from which rows of the block at every root are right.

Two-pass walks from root s to s + 1 + run_0(s); one-pass from the block rooted at the last accepted draft that has one.
Greedy, full width, no re-draft and no looked-up drafts; a run so configured takes exactly these cycles.
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
    """A greedy answer: how many tokens precede it, and for every root position which rows of its block are right."""

    prompt: int
    tokens: int
    right: list[list[bool]]

    def run(self, root: int, start: int) -> int:
        """Rows of the block at `root` that are right in a row, from row `start` on."""
        rows = self.right[root - self.prompt + 1][start:]
        return rows.index(False) if False in rows else len(rows)

    def two_pass(self) -> list[int]:
        """Accepted drafts of every cycle."""
        length, accepted = self.prompt + 1, []
        while length < self.prompt + self.tokens:
            accepted.append(self.run(length - 1, 0))
            length += accepted[-1] + 1
        return accepted

    def one_pass(self, candidates: int | None = None) -> list[int]:
        """Accepted drafts of every cycle, with blocks for that many accept counts, or for all."""
        length, root, accepted = self.prompt + 1, self.prompt - 1, []
        while length < self.prompt + self.tokens:
            found = self.run(root, length - 1 - root)
            accepted.append(found)
            root = length - 1 + (found if candidates is None else min(found, candidates - 1))
            length += found + 1
        return accepted


def texts(model: Model, prompt: TaskPrompt, max_new_tokens: int) -> Text:
    """Decode a prompt plainly, then draft from every root of its answer, last one first."""
    runner = model.runner
    assert runner.diffusion is not None
    (request,) = exactness.requests(model, [prompt.prompt], {"max_new_tokens": max_new_tokens, "seed": 0})
    (done,) = [
        step.sequence
        for step in model.run([request], model.decoding_config({"cycle": "ar"}))
        if step.sequence.finish_reason is not None
    ]
    whole, length = [*request.prompt, *done.tokens], len(request.prompt)
    cache = runner.new_cache(1)
    for chunk in chunks(whole, runner.max_rows):
        runner.ar([chunk], cache.window(0, 1), logit_rows=[])
        cache.commit(0, cache.lengths[0] + len(chunk))
    width, rows = runner.diffusion.block_size, runner.diffusion.trained_rows
    right = []
    for root in reversed(range(length - 1, len(whole) - 1)):
        cache.commit(0, root)
        drafts = runner.diffuse([whole[root]], width, cache.window(0, 1), rows=rows)[0].argmax(dim=-1).tolist()
        right.append([drafted == token for drafted, token in zip(drafts, whole[root + 1 :], strict=False)])
    return Text(length, len(done.tokens), right[::-1])


def tpf(found: list[Text], accepted: list[list[int]], passes_a_cycle: int) -> float:
    """Tokens per pass over all texts, the prefill counted as one pass."""
    return sum(text.tokens for text in found) / sum(1 + passes_a_cycle * len(cycles) for cycles in accepted)
