"""The planner: before every pass it chooses how many drafts to verify, and how many blocks draft beside them.

It maximises tokens per second in the long run. Decoding is a chain of passes whose state is the drafts at hand: from
which row of their block on, and whether that block foresaw the bonus. What each state is worth follows from the cost
table and from how often drafts were right so far, by policy iteration for a semi-Markov decision process (Howard,
Dynamic Probabilistic Systems, 1971, chapter 15). With these values each pass is weighed by the confidence of the very
drafts in it. A pure function of cost table and history: it never looks at a clock.

Under the rule `rejection` each sequence plans as if it were alone, with blocks of full width, so that its draws do not
depend on its neighbours; what it offers depends on history and distributions, never on the draft itself.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from orthrus.config import DiffusionConfig
from orthrus.decoding.costs import Costs
from orthrus.decoding.history import History
from orthrus.decoding.lookup import LONGEST, Lookup
from orthrus.decoding.sequence import Draft, Sequence, Verdict

Array = NDArray[np.float64]
WIDTHS = (2, 3, 4, 6, 8, 12, 16, 24, 32)
MOST_LOOKED_UP = 8
RESOLVE_EVERY = 16
"""Verdicts between two solutions for the values of the states."""
RESTART = 0.01
"""The chance, per pass, that a sequence ends and another begins without drafts."""
AHEAD = 40
"""The probing budget of this many tokens may be spent before they are written."""
PLANNING = 2e-4
"""Seconds that planning a cycle takes by itself."""


@dataclass(frozen=True)
class Shape:
    """The next pass. Per sequence: drafts offered; blocks, for 0 .. blocks-1 accepted drafts; what its cycle is called.

    `redraft`: which sequences first take fresh drafts from a diffusion pass at their anchors; nobody where empty.
    """

    width: int
    offered: list[int]
    blocks: list[int]
    kinds: list[str]
    redraft: list[bool] = field(default_factory=list)


@dataclass(frozen=True)
class Policy:
    """Tokens per second in the long run, blocks of `width` rows, and what drafts are worth in tokens.

    after: [usable + 1], by the row from which a block's drafts start, the last entry for none; fresh: drafts of a
    diffusion pass from the anchor.
    """

    rate: float
    width: int
    after: Array
    fresh: float


@dataclass
class Account:
    """What the planner keeps of one sequence; seconds by the cost table."""

    history: History
    lookup: Lookup = field(default_factory=Lookup)
    policy: Policy | None = None
    planned: tuple[int, int] = (0, 0)
    spent: float = 0.0
    earned: float = 0.0
    quiet: float = 0.0


class Planner:
    """Plans for the sequences of one decoding run.

    Args:
        diffusion: the view.
        width: rows of a block at most.
        costs: the cost table.
        alone: plan each sequence as if it were the only one (rule `rejection`).
        budget: the share of plain decoding's time by which a sequence may fall behind it while probing.
    """

    def __init__(
        self, diffusion: DiffusionConfig, width: int, costs: Costs, *, alone: bool = False, budget: float = 0.03
    ) -> None:
        self.costs, self._width, self._alone, self._budget = costs, width, alone, budget
        self._trained = min(width, diffusion.trained_rows)
        self._accounts: dict[int, Account] = {}
        self._before: History | None = None
        self._beginning: tuple[History | None, Policy] | None = None

    def first_width(self, context: int) -> int:
        """Rows of the block that a prefill drafts with; 0 where drafting does not pay."""
        if self._beginning is None or self._beginning[0] is not self._before:
            self._beginning = self._before, self._solve(self._new_history(), 1, context)
        policy = self._beginning[1]
        extra = self.costs.ar_and_diffuse(1, 1, 1, policy.width, context) - self.costs.ar(1, 1, context)
        return policy.width if policy.after[1] > policy.rate * extra else 0

    def choose(self, batch: list[Sequence], *, fresh: list[bool] | None = None) -> Shape:
        """The next pass; may replace a sequence's drafts by looked-up ones. `fresh`: who has just drafted anew."""
        again = fresh is not None
        wanted = fresh or [False] * len(batch)
        pairs = [(sequence, self._account(sequence, self._share(batch), again=again)) for sequence in batch]
        if not self._alone:
            return self._joint(pairs, wanted, again=again)
        shapes = [self._joint([pair], [drew], again=again) for pair, drew in zip(pairs, wanted, strict=True)]
        return Shape(
            self._width,
            [shape.offered[0] for shape in shapes],
            [shape.blocks[0] for shape in shapes],
            [shape.kinds[0] for shape in shapes],
            [shape.redraft[0] for shape in shapes],
        )

    def learn(self, batch: list[Sequence], drafts: list[Draft], shape: Shape, kept: list[Verdict]) -> None:
        """Enter the verdicts on the drafts, and what the pass cost each sequence by the table."""
        share = self._share(batch)
        for slot, (sequence, verdict) in enumerate(zip(batch, kept, strict=True)):
            account, offered, blocks = self._accounts[sequence.index], shape.offered[slot], shape.blocks[slot]
            stopped = sequence.finish_reason is not None
            if offered:
                account.history.observe(drafts[slot], verdict.accepted if stopped else offered, verdict.accepted)
            rows = 1 + (offered if self._alone else max(shape.offered))
            price = self.costs.ar_and_diffuse(share, rows, blocks, shape.width, sequence.length) / share
            if shape.kinds[slot] == "two-pass":
                price += self.costs.diffuse(share, shape.width, sequence.length) / share
            plain = self.costs.ar(share, 1, sequence.length) / share
            account.spent += price + PLANNING
            account.earned += len(verdict.tokens) * plain
            account.quiet = 0.0 if blocks or shape.kinds[slot] == "two-pass" else account.quiet + plain
            if stopped:
                if not self._alone:
                    self._before = account.history
                del self._accounts[sequence.index]

    def _share(self, batch: list[Sequence]) -> int:
        """Over how many sequences the price of a pass is shared out."""
        return 1 if self._alone else len(batch)

    def _account(self, sequence: Sequence, share: int, *, again: bool) -> Account:
        """A sequence's account, brought up to date with its tokens and the drafts at hand."""
        account = self._accounts.get(sequence.index)
        if account is None:
            account = self._accounts[sequence.index] = Account(self._new_history())
            account.lookup.extend(list(sequence.request.prompt))
        account.lookup.extend(sequence.tokens[len(account.lookup) - len(sequence.request.prompt) :])
        if not again:
            if sequence.ahead.start == 1:
                account.history.observe_agreement(met=sequence.ahead.kind == "agrees")
            history, (sharers, due) = account.history, account.planned
            if account.policy is None or sharers != share or history.verdicts >= due:
                account.policy = self._solve(history, share, sequence.length)
                account.planned = share, history.verdicts + RESOLVE_EVERY
        tokens, length = account.lookup.propose(MOST_LOOKED_UP)
        if tokens:
            found = Draft(tokens, None, "lookup", 0, [length / LONGEST] * len(tokens))
            history = account.history
            if history.chances(found).cumprod().sum() > history.chances(sequence.ahead).cumprod().sum():
                sequence.ahead = found
        return account

    def _joint(self, pairs: list[tuple[Sequence, Account]], fresh: list[bool], *, again: bool) -> Shape:
        """One shape for all these sequences: what their drafts are worth together against what the pass costs."""
        B, costs = len(pairs), self.costs
        context = sum(sequence.length for sequence, _ in pairs) / B
        policies = [account.policy for _, account in pairs if account.policy is not None]
        rate, width = sum(policy.rate for policy in policies) / B, max(policy.width for policy in policies)
        row = (costs.ar(B, 8, context) - costs.ar(B, 1, context)) / 7 / B
        survival = [account.history.chances(sequence.ahead).cumprod() for sequence, account in pairs]
        survival = [chances[chances > rate * row] for chances in survival]
        rows = 1 + max(len(chances) for chances in survival)
        plain = costs.ar(B, rows, context)
        extra = [costs.ar_and_diffuse(B, rows, n, width, context) - plain for n in range(rows + 1)]
        worths = [
            sum(_after(policy, chances, n) for policy, chances in zip(policies, survival, strict=True))
            - rate * extra[n]
            for n in range(rows + 1)
        ]
        blocks = int(np.argmax(worths))
        behind = sum(a.spent - a.earned - self._budget * (a.earned + AHEAD * plain / B) for _, a in pairs)
        redraft = False
        if not again:
            price = costs.diffuse(B, width, context)
            now = sum(1 + float(chances.sum()) for chances in survival) - rate * plain + worths[blocks]
            redraft = sum(policy.fresh for policy in policies) - rate * price > now and behind + price <= 0
        if blocks == 0 and min(account.quiet for _, account in pairs) * B * self._budget > extra[1]:
            blocks = 1  # a probe: has the text become one that can be drafted?
        if behind + extra[blocks] > 0:
            blocks = 0
        kinds = [
            _kind(sequence.ahead, len(chances), blocks, drew=drew)
            for (sequence, _), chances, drew in zip(pairs, survival, fresh, strict=True)
        ]
        return Shape(width, [len(chances) for chances in survival], [blocks] * B, kinds, [redraft] * B)

    def _new_history(self) -> History:
        return History(self._trained, self._before)

    def _solve(self, history: History, share: int, context: float) -> Policy:
        """The best policy over all widths."""
        widths = [self._width] if self._alone else sorted({*[w for w in WIDTHS if w < self._width], self._width})
        found = [self._solve_width(history.by_row(), width, share, context) for width in widths]
        return max(found, key=lambda policy: policy.rate)

    def _solve_width(self, chances: Array, width: int, share: int, context: float) -> Policy:
        """Policy iteration. States: no drafts; drafts from row s on of a block that foresaw the bonus, or did not."""
        usable, costs = min(width, self._trained), self.costs
        states = 1 + 2 * usable
        hits, held = np.zeros((states, usable)), np.zeros(states, dtype=int)
        for start in range(usable):
            for fell in (0, 1):
                hits[1 + 2 * start + fell, : usable - start] = chances[fell, start:usable]
                held[1 + 2 * start + fell] = usable - start
        survival = hits.cumprod(axis=1)
        ends = np.pad(survival, ((0, 0), (1, 0)), constant_values=1.0) - np.pad(survival, ((0, 0), (0, 1)))
        lands = np.zeros((usable + 1, states))  # from a block whose drafts start at this row
        foresaw = np.concatenate([[1.0], chances[0, :usable].cumprod()])
        lands[usable, 0] = 1.0
        for start in range(usable):
            lands[start, 1 + 2 * start], lands[start, 2 + 2 * start] = foresaw[start], 1 - foresaw[start]
        moves = np.stack([ends @ lands[_starts(usable, blocks, usable)] for blocks in range(usable + 2)])
        anew = np.zeros((1, states, states))
        anew[0, :, min(1, states - 1)] = 1.0
        moves = (1 - RESTART) * np.concatenate([moves, anew])
        moves[:, :, 0] += RESTART
        gains = np.tile(1 + survival.sum(axis=1), (usable + 3, 1))
        gains[-1] = 0.0
        times = np.array([
            [costs.ar_and_diffuse(share, 1 + int(m), blocks, width, context) / share for m in held]
            for blocks in range(usable + 2)
        ] + [[costs.diffuse(share, width, context) / share] * states])  # fmt: skip
        gains[-1, 1:3] = -1e3  # a diffusion pass after a diffusion pass is of no use
        rate, values = _iterate(moves, gains, times)
        return Policy(rate, width, lands @ values, float(values[1]))


def _kind(draft: Draft, offered: int, blocks: int, *, drew: bool) -> str:
    if drew:
        return "two-pass"
    if blocks:
        return "one-pass"
    return {"lookup": "lookup"}.get(draft.kind, "one-pass") if offered else "ar"


def _iterate(moves: Array, gains: Array, times: Array) -> tuple[float, Array]:
    """Howard's policy iteration: rate of gain, and relative values of the states, that of state 0 being 0."""
    every = np.arange(moves.shape[1])
    policy = np.zeros_like(every)
    while True:
        system = np.eye(len(every)) - moves[policy, every]
        system[:, 0] = times[policy, every]
        solution = np.linalg.solve(system, gains[policy, every])
        rate, values = float(solution[0]), np.concatenate([[0.0], solution[1:]])
        worth = gains - rate * times + moves @ values
        better = worth.max(axis=0) > worth[policy, every] + 1e-9
        if not better.any():
            return rate, values
        policy = np.where(better, worth.argmax(axis=0), policy)


def _starts(accepted: int, blocks: int, usable: int) -> NDArray[np.int64]:
    """[accepted + 1]: the row from which the next drafts start after 0, 1, ... accepted ones; `usable`: none do."""
    if not blocks:
        return np.full(accepted + 1, usable)
    return np.minimum(np.maximum(np.arange(accepted + 1) - (blocks - 1), 0) + 1, usable)


def _after(policy: Policy, survival: Array, blocks: int) -> float:
    """The expected worth of the drafts that `blocks` blocks leave behind these drafts."""
    usable = len(policy.after) - 1
    ends = np.concatenate([[1.0], survival]) - np.concatenate([survival, [0.0]])
    return float(ends @ policy.after[_starts(len(survival), blocks, usable)])
