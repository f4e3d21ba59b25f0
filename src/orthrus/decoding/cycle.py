"""One pass over a batch: verify, commit, draft ahead. It decodes some sequences and prefills others.

A sequence of n tokens decodes once the cache holds its first n - 1: the rows of its pass are the anchor, which is the
newest token, and its drafts. Before that it is prefilled in chunks. The last chunk of a new sequence ends with the
anchor, whose logits give the first token; a draft block in the same pass gives the first drafts.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass, field, replace
from functools import cached_property

from torch import Tensor

from orthrus.decoding.cycles import Cycle, Drafting
from orthrus.decoding.drafts import Draft, TokenLogprobs, Verdict
from orthrus.decoding.plan import PassPlan
from orthrus.decoding.propose import EAGER_LOGITS, Block, drafts_from_blocks
from orthrus.decoding.rules import Check, Rule
from orthrus.decoding.sequence import FinishReason, Sequence
from orthrus.decoding.text import Piece
from orthrus.runner.runner import Runner

SCORED_ROWS = 128
"""Rows of a prompt per pass while it is scored, since the logits of every row are kept until the pass ends."""


@dataclass(frozen=True)
class Job:
    """The rows of one sequence in a pass: `chunk`, tokens that the cache lacks; then, if it `verifies`, the anchor and
    the drafts of the plan, whose blocks are rooted in the anchor's row and the rows after it."""

    sequence: Sequence
    plan: PassPlan = field(default_factory=PassPlan)
    chunk: Seq[int] = ()
    verifies: bool = True

    @cached_property
    def rows(self) -> list[int]:
        """The tokens of the AR rows."""
        return [*self.chunk, self.sequence.anchor, *self.plan.tokens] if self.verifies else [*self.chunk]

    @property
    def logit_rows(self) -> range:
        """The rows whose logits are needed: the anchor and the drafts, and the prompt where it is scored."""
        return range(0 if self.sequence.scores_prompt else len(self.chunk), len(self.rows))

    @property
    def block_roots(self) -> range:
        """The rows in which the blocks are rooted."""
        return range(len(self.chunk), len(self.chunk) + self.plan.blocks)


@dataclass(frozen=True)
class Step:
    """What one sequence gained in a pass. It does not change, so any thread may read it, while the sequence may be a
    pass further; that of a finished sequence no longer changes either.

    kept: its tokens, and how many of them are accepted drafts. plan: what the pass verified. pieces: the text that has
    become certain; none without a tokenizer. passes: those of the sequence so far. logprobs: one per kept token where
    asked for. prompt_logprobs: one per token of the prompt where asked for, in the first step with tokens; None for the
    first token, before which nothing stands.
    """

    sequence: Sequence
    kept: Verdict
    plan: PassPlan = field(default_factory=PassPlan)
    pieces: tuple[Piece, ...] = ()
    finish_reason: FinishReason | None = None
    passes: int = 0
    logprobs: tuple[TokenLogprobs, ...] = ()
    prompt_logprobs: tuple[TokenLogprobs | None, ...] = ()

    @staticmethod
    def of(
        sequence: Sequence, kept: Verdict, plan: PassPlan | None = None, logprobs: tuple[TokenLogprobs, ...] = ()
    ) -> Step:
        """The step of a sequence that has just appended its tokens, or ended without any."""
        pieces = sequence.text.take() if sequence.text is not None else ()
        prompt_logprobs = tuple(sequence.prompt_logprobs) if len(sequence.tokens) == len(kept.tokens) else ()
        return Step(
            sequence, kept, plan or PassPlan(), pieces, sequence.finish_reason, sequence.statistics.passes,
            logprobs, prompt_logprobs,
        )  # fmt: skip


def decoding_jobs(cycle: Cycle, runner: Runner, batch: Seq[Sequence], drafting: Drafting, rule: Rule) -> list[Job]:
    """Propose: what each decoding sequence verifies in the next pass, by the cycle. Some want no drafts."""
    drafted = [sequence for sequence in batch if sequence.request.drafts]
    plans = iter(cycle.propose(runner, drafted, drafting, rule) if drafted else ())
    return [Job(s, next(plans) if s.request.drafts else PassPlan(width=drafting.width)) for s in batch]


def prefill_job(sequence: Sequence, room: int, width: int = 0) -> Job:
    """The next chunk of a sequence that does not decode yet, of at most `room` rows.

    With a `width`, the pass that computes the first token also computes a draft block of that many rows.
    """
    room = min(room, SCORED_ROWS) if sequence.scores_prompt else room
    missing, first = sequence.uncached, not sequence.tokens
    verifies = first and len(missing) < room
    plan = PassPlan(blocks=1, width=width) if width and verifies else PassPlan()
    return Job(sequence, plan, missing[:room], verifies)


def run(runner: Runner, jobs: Seq[Job], rule: Rule) -> list[Step]:
    """Run one pass. Returns what each verifying sequence gained, cut where it stopped, in the order of the jobs."""
    eager_logits = 0 < sum(job.plan.blocks * job.plan.width for job in jobs) <= EAGER_LOGITS
    verified, verdicts = _verify(runner, jobs, rule, eager_logits=eager_logits)
    for job in jobs:
        if not job.verifies:
            job.sequence.table.commit(job.sequence.table.length + len(job.chunk))
    steps = [_commit(job, verdict, logits_RV) for (job, logits_RV, _), verdict in zip(verified, verdicts, strict=True)]
    verifying, blocks = [job for job, _, _ in verified], [rows for _, _, rows in verified]
    _draft_ahead(runner, verifying, steps, blocks, rule, eager_logits=eager_logits)
    return steps


def _verify(
    runner: Runner, jobs: Seq[Job], rule: Rule, *, eager_logits: bool
) -> tuple[list[tuple[Job, Tensor, Tensor]], list[Verdict]]:
    """Run the pass, and score prompts. Returns the verifying jobs, each with the logits after its anchor and drafts and
    the rows of its blocks, and their verdicts."""
    result = runner.ar_and_diffuse(
        [job.rows for job in jobs],
        [job.block_roots for job in jobs],
        max(job.plan.width for job in jobs),
        [job.sequence.table for job in jobs],
        logit_rows=[job.logit_rows for job in jobs],
        eager_logits=eager_logits,
    )
    for job, logits_RV in zip(jobs, result.logits, strict=True):
        if job.sequence.scores_prompt:
            job.sequence.score_prompt(job.sequence.table.length, logits_RV)
    verified = [
        (job, logits_RV[-1 - len(job.plan.tokens) :], rows)
        for job, logits_RV, rows in zip(jobs, result.logits, result.blocks, strict=True)
        if job.verifies
    ]
    checks = [
        Check(job.sequence.sampler, logits_RV, replace(job.plan.draft, tokens=job.plan.tokens), job.sequence.length)
        for job, logits_RV, _ in verified
    ]
    return verified, rule.verify(checks) if checks else []


def _commit(job: Job, verdict: Verdict, logits_RV: Tensor) -> Step:
    """Append the kept tokens, and set the length of the cache, which counts all tokens but the newest."""
    sequence = job.sequence
    kept = sequence.append(verdict, job.plan) if sequence.tokens else sequence.start(verdict.tokens[0])
    sequence.table.commit(sequence.length - 1)
    return Step.of(sequence, kept, job.plan, sequence.score(logits_RV, kept.tokens))


def _draft_ahead(
    runner: Runner, jobs: Seq[Job], steps: Seq[Step], blocks: Seq[Tensor], rule: Rule, *, eager_logits: bool
) -> None:
    """Set the drafts of the next cycle (`Sequence.ahead`).

    They come from the block rooted at the last accepted draft or, where that draft has no block, from the last block
    before it. A sequence without blocks gets no drafts.
    """
    drafting: list[Sequence] = []
    chosen: list[Block] = []
    for job, step, own in zip(jobs, steps, blocks, strict=True):
        sequence, kept = step.sequence, step.kept
        sequence.ahead = Draft()
        if job.plan.blocks and sequence.finish_reason is None:
            block = min(kept.accepted, job.plan.blocks - 1)
            anchor = sequence.length - 1 - len(kept.tokens)
            drafting.append(sequence)
            chosen.append(Block(own[block], anchor + block))
    if drafting:
        drafts = drafts_from_blocks(runner, drafting, chosen, rule, eager_logits=eager_logits)
        for sequence, draft in zip(drafting, drafts, strict=True):
            sequence.ahead = draft
