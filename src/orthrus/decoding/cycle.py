"""One pass over a batch: verify, commit, draft ahead. It decodes some sequences and prefills others.

A sequence of n tokens decodes once the cache holds its first n - 1: the rows of its pass are the anchor, which is the
newest token, and its drafts. Before that it is prefilled in chunks. The last chunk of a new sequence ends with the
anchor, whose logits give the first token; a draft block in the same pass gives the first drafts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from functools import cached_property

from torch import Tensor

from orthrus.decoding.cycles import Cycle, Drafting
from orthrus.decoding.logprobs import TokenLogprobs
from orthrus.decoding.plan import PassPlan
from orthrus.decoding.propose import Block, computes_eagerly, drafts_from_blocks
from orthrus.decoding.rules import Check, Rule
from orthrus.decoding.sequence import FinishReason, Sequence
from orthrus.decoding.text import Piece
from orthrus.decoding.verdict import Verdict
from orthrus.drafters.tree import DraftTree
from orthrus.runner.runner import Runner

SCORED_ROWS = 128
"""Rows of a prompt per pass while it is scored, since the logits of every row are kept until the pass ends."""


@dataclass(frozen=True)
class Job:
    """The rows of one sequence in a pass: `chunk`, tokens that the cache lacks; then, if it `verifies`, the anchor and
    the tree of drafts of the plan, whose blocks are rooted in these rows."""

    sequence: Sequence
    plan: PassPlan = field(default_factory=PassPlan)
    chunk: Seq[int] = ()
    verifies: bool = True

    @cached_property
    def rows(self) -> list[int]:
        """The tokens of the AR rows."""
        return [*self.chunk, self.sequence.anchor, *self.plan.tree.tokens] if self.verifies else [*self.chunk]

    @property
    def parents(self) -> list[int] | None:
        """The row that each row follows, -1 for the newest cached position; None if the rows are a chain."""
        if self.plan.tree.is_chain:
            return None
        anchor = len(self.chunk)
        return [*range(-1, anchor), *(anchor + 1 + parent for parent in self.plan.tree.parents)]

    @property
    def logit_rows(self) -> range:
        """The rows whose logits are needed: the anchor and the drafts, and the prompt where it is scored."""
        return range(0 if self.sequence.scores_prompt else len(self.chunk), len(self.rows))

    @property
    def block_roots(self) -> list[int]:
        """The rows in which the blocks are rooted."""
        return [len(self.chunk) + 1 + node for node in self.plan.roots]

    def cached_rows(self, kept: Verdict) -> list[int]:
        """The rows that become cache: those of all tokens but the newest."""
        anchor = len(self.chunk)
        rows = [*range(anchor + 1), *(anchor + 1 + node for node in kept.path)]
        return rows[: anchor + len(kept.tokens)]


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


def prefill_job(sequence: Sequence, room: int, width: Callable[[], int] = int) -> Job:
    """The next chunk of a sequence that does not decode yet, of at most `room` rows.

    The pass that computes the first token also computes a draft block of `width()` rows, if these are not 0.
    """
    room = min(room, SCORED_ROWS) if sequence.scores_prompt else room
    missing, first = sequence.uncached, not sequence.tokens
    verifies = first and len(missing) < room
    rows = width() if verifies else 0
    plan = PassPlan(roots=(-1,), width=rows) if rows else PassPlan()
    return Job(sequence, plan, missing[:room], verifies)


def block_width(jobs: Iterable[Job]) -> int:
    """The rows of each block of a pass, 0 if it has none. A plan without blocks has no say in it."""
    return max((job.plan.width for job in jobs if job.plan.roots), default=0)


def run(runner: Runner, jobs: Seq[Job], rule: Rule, nodes: int | None = None) -> list[Step]:
    """Run one pass. Returns what each verifying sequence gained, cut where it stopped, in the order of the jobs.

    nodes: the most nodes of the trees that are drafted ahead; None for chains.
    """
    eager_logits = _eager_logits(runner, jobs, rule)
    verified, verdicts = _verify(runner, jobs, rule, eager_logits=eager_logits)
    for job in jobs:
        if not job.verifies:
            job.sequence.table.commit(job.sequence.table.length + len(job.chunk))
    steps = [_commit(own.job, verdict, own.logits_RV) for own, verdict in zip(verified, verdicts, strict=True)]
    ahead = _blocks_ahead(verified, steps)
    if ahead:
        drafting, chosen = zip(*ahead, strict=True)
        drafts = drafts_from_blocks(runner, drafting, chosen, rule, nodes, eager_logits=eager_logits)
        for sequence, draft in zip(drafting, drafts, strict=True):
            sequence.ahead = draft
    return steps


def _eager_logits(runner: Runner, jobs: Seq[Job], rule: Rule) -> bool:
    """Whether the pass computes the logits of its blocks too. A low-precision head gives others, and how many blocks
    the neighbours of a sequence have may not change what is drawn for it."""
    if rule.DRAWS and runner.draft_weights.head is not None:
        return False
    return computes_eagerly(runner, sum(job.plan.blocks * job.plan.width for job in jobs))


@dataclass(frozen=True)
class _Verified:
    """A job whose drafts a pass verified: the logits after its anchor and drafts, and the rows of its blocks [J, width]
    with their hidden states."""

    job: Job
    logits_RV: Tensor
    rows: Tensor
    hidden: Tensor


def _verify(runner: Runner, jobs: Seq[Job], rule: Rule, *, eager_logits: bool) -> tuple[list[_Verified], list[Verdict]]:
    """Run the pass, and score prompts. Returns what the verifying jobs computed, and their verdicts."""
    result = runner.ar_and_diffuse(
        [job.rows for job in jobs],
        [job.block_roots for job in jobs],
        block_width(jobs),
        [job.sequence.table for job in jobs],
        logit_rows=[job.logit_rows for job in jobs],
        eager_logits=eager_logits,
        parents=[job.parents for job in jobs],
    )
    for job, logits_RV in zip(jobs, result.logits, strict=True):
        if job.sequence.scores_prompt:
            job.sequence.score_prompt(job.sequence.table.length, logits_RV)
    verified = [
        _Verified(job, logits_RV if len(logits_RV) == wanted else logits_RV[-wanted:], rows, hidden)
        for job, logits_RV, rows, hidden in zip(jobs, result.logits, result.blocks, result.hidden, strict=True)
        for wanted in [1 + job.plan.offered]
        if job.verifies
    ]
    checks = [
        Check(s.sampler, own.logits_RV, own.job.plan.tree, s.length, runner.kernels)
        for own in verified
        for s in [own.job.sequence]
    ]
    return verified, rule.verify(checks) if checks else []


def _commit(job: Job, verdict: Verdict, logits_RV: Tensor) -> Step:
    """Append the kept tokens, and commit the rows of all tokens but the newest."""
    sequence = job.sequence
    kept = sequence.append(verdict, job.plan) if sequence.tokens else sequence.start(verdict.tokens[0])
    sequence.table.commit_path(job.cached_rows(kept))
    return Step.of(sequence, kept, job.plan.without_distributions(), sequence.score(logits_RV, kept))


def _blocks_ahead(verified: Seq[_Verified], steps: Seq[Step]) -> list[tuple[Sequence, Block]]:
    """The sequences that draft for the next cycle, each with its block: that of the last accepted node or, where that
    has none, of its nearest ancestor. Clears the drafts at hand (`Sequence.ahead`) of all."""
    found = []
    for own, step in zip(verified, steps, strict=True):
        sequence, kept = step.sequence, step.kept
        sequence.ahead = DraftTree()
        chosen = own.job.plan.block_for(kept.path)
        if chosen is not None and sequence.finish_reason is None:
            block, depth = chosen
            root = sequence.length - 1 - len(kept.tokens) + depth
            found.append((sequence, Block(own.rows[block], own.hidden[block], root)))
    return found
