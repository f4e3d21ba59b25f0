"""The planner: before every pass it chooses how many drafts to verify, and how many blocks draft beside them.

It maximises tokens per second in the long run: what drafts at hand are worth follows from the cost table and from how
often drafts were right so far (`values`), and with that each pass is weighed by the confidence of the very drafts in
it. A pure function of cost table and history: it never looks at a clock.

Under the rule `rejection` each sequence plans as if it were alone, with blocks of full width, so that its draws do not
depend on its neighbours; what it offers depends on history and distributions, never on the draft itself.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field

from orthrus.config import DiffusionConfig
from orthrus.decoding.drafts import Draft, Verdict
from orthrus.decoding.plan import PassPlan
from orthrus.decoding.planning.acceptance import History
from orthrus.decoding.planning.cost_model import Array, CostModel
from orthrus.decoding.planning.policy import Policy, States
from orthrus.decoding.planning.prompt_lookup import LONGEST, Lookup
from orthrus.decoding.sequence import Sequence

WIDTHS = (2, 3, 4, 6, 8, 12, 16, 24, 32)
MOST_LOOKED_UP = 8
RESOLVE_EVERY = 16
"""Verdicts between two solutions for the values of the states."""
AHEAD = 40
"""The probing budget of this many tokens may be spent before they are written; it is no more budget, only earlier."""
RESTING = 7
"""Passes after a plain one, while there are no drafts, that are plain without being weighed: weighing costs too."""
PLANNING = 2e-4
"""Seconds that planning a cycle takes by itself."""


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
    resting: int = 0
    rests: bool = False

    def read(self, sequence: Sequence) -> None:
        """Index what was appended since."""
        self.lookup.extend(sequence.tokens[len(self.lookup) - len(sequence.request.prompt) :])

    def best_draft(self, draft: Draft) -> Draft:
        """The given draft, or the looked-up continuation where more of it is expected to be accepted."""
        tokens, length = self.lookup.propose(MOST_LOOKED_UP)
        if not tokens:
            return draft
        looked_up = Draft(tokens, None, "lookup", 0, [length / LONGEST] * len(tokens))
        chances = self.history.chances
        return looked_up if chances(looked_up).cumprod().sum() > chances(draft).cumprod().sum() else draft


@dataclass(frozen=True)
class Candidate:
    """One sequence while a pass is planned: its draft at hand, and the rows of the diffusion pass that has just made it
    (0 where none has)."""

    sequence: Sequence
    account: Account
    draft: Draft
    drafting_rows: int = 0


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
        self, diffusion: DiffusionConfig, width: int, costs: CostModel, *, alone: bool = False, budget: float = 0.03
    ) -> None:
        self.costs, self._width, self._alone, self._budget = costs, width, alone, budget
        self._trained = min(width, diffusion.trained_rows)
        self._accounts: dict[int, Account] = {}
        self._before: History | None = None
        self._beginning: tuple[History | None, int, Policy] | None = None

    def first_width(self, context: int) -> int:
        """Rows of the block that a prefill drafts with; 0 where drafting does not pay."""
        # alone: for this very context, as a sequence must not draft by its predecessors'; else for one near it
        near = context if self._alone else 1 << context.bit_length()
        if self._beginning is None or self._beginning[0] is not self._before or self._beginning[1] != near:
            self._beginning = self._before, near, self._solve(self._new_history(), 1, near)
        policy = self._beginning[2]
        extra = self.costs.ar_and_diffuse(1, 1, 1, policy.width, context) - self.costs.ar(1, 1, context)
        return policy.width if policy.after[1] > policy.rate * extra else 0

    def begin_pass(self, batch: Seq[Sequence]) -> None:
        """Bring the accounts up to date with the sequences' tokens and the drafts at hand, and re-solve policies."""
        share = self._share(batch)
        for sequence in batch:
            account = self._accounts.get(sequence.index)
            if account is None:
                account = self._accounts[sequence.index] = Account(self._new_history())
                account.lookup.extend(list(sequence.request.prompt))
            account.read(sequence)
            drafts_at_hand = bool(sequence.ahead.tokens) or account.lookup.matched
            account.rests = share == 1 and account.resting > 0 and not drafts_at_hand
            if account.rests:
                account.resting -= 1
                continue
            if sequence.ahead.start == 1:
                account.history.observe_agreement(met=sequence.ahead.kind == "agrees")
            history, (sharers, due) = account.history, account.planned
            if account.policy is None or sharers != share or history.verdicts >= due:
                account.policy = self._solve(history, share, sequence.length)
                account.planned = share, history.verdicts + RESOLVE_EVERY

    def plan(self, batch: Seq[Sequence]) -> list[PassPlan]:
        """The next pass. A query: it changes nothing."""
        candidates = [self._candidate(sequence, sequence.ahead) for sequence in batch]
        if self._share(batch) > 1:
            return self._joint(candidates, again=False)
        return [
            PassPlan(width=self._width) if c.account.rests else self._joint([c], again=False)[0] for c in candidates
        ]

    def replan(self, batch: Seq[Sequence], plans: Seq[PassPlan], drafts: Seq[Draft]) -> list[PassPlan]:
        """The next pass, given fresh `drafts` for the sequences whose plan asked for a refresh. A query.

        Those plan again. Each of the others too where all share one pass, but not where each plans alone: who its
        neighbours are must not reach it.
        """
        width = max(plan.width for plan in plans)
        candidates = [
            self._candidate(sequence, draft if plan.refresh else sequence.ahead, width if plan.refresh else 0)
            for sequence, plan, draft in zip(batch, plans, drafts, strict=True)
        ]
        if self._share(batch) > 1:
            return self._joint(candidates, again=True)
        return [
            self._joint([candidate], again=True)[0] if plan.refresh else plan
            for candidate, plan in zip(candidates, plans, strict=True)
        ]

    def learn(self, batch: Seq[Sequence], plans: Seq[PassPlan], kept: Seq[Verdict]) -> None:
        """Enter the verdicts on the drafts, and what the pass cost each sequence by the cost model."""
        share = self._share(batch)
        for sequence, plan, verdict in zip(batch, plans, kept, strict=True):
            account, offered = self._accounts[sequence.index], plan.offered
            stopped = sequence.finish_reason is not None
            if offered:
                account.history.observe(plan.draft, verdict.accepted if stopped else offered, verdict.accepted)
            plain = self.costs.ar(share, 1, sequence.length) / share
            price = self._price([plan] if self._alone else plans, sequence.length)
            account.spent += PLANNING + price
            account.earned += len(verdict.tokens) * plain
            account.quiet = 0.0 if plan.blocks or plan.drafting_rows else account.quiet + plain
            if share == 1 and not account.rests:
                account.resting = 0 if plan.draft.tokens or plan.blocks else RESTING
            if stopped:
                if not self._alone:
                    self._before = account.history
                del self._accounts[sequence.index]

    def _share(self, batch: Seq[Sequence]) -> int:
        """Over how many sequences the price of a pass is shared out."""
        return 1 if self._alone else len(batch)

    def _candidate(self, sequence: Sequence, draft: Draft, drafting_rows: int = 0) -> Candidate:
        account = self._accounts[sequence.index]
        return Candidate(sequence, account, account.best_draft(draft), drafting_rows)

    def _joint(self, candidates: Seq[Candidate], *, again: bool) -> list[PassPlan]:
        """One pass for all these sequences, each with drafts and blocks of its own: their worth against its price."""
        B, costs = len(candidates), self.costs
        context = sum(c.sequence.length for c in candidates) / B
        policies = [c.account.policy for c in candidates if c.account.policy is not None]
        rate, width = sum(policy.rate for policy in policies) / B, max(policy.width for policy in policies)
        row = (costs.ar(B, 8, context) - costs.ar(B, 1, context)) / 7 / B
        survival = [c.account.history.chances(c.draft).cumprod() for c in candidates]
        survival = [chances[chances > rate * row] for chances in survival]
        rows = B + sum(len(chances) for chances in survival)

        def price(blocks: int) -> float:
            return costs.ragged(B, rows, blocks, width, context)

        worths = [policy.left(chances) for policy, chances in zip(policies, survival, strict=True)]
        blocks = _best_blocks(worths, rate, price)
        early, accounts = AHEAD * costs.ar(B, 1, context) / B, [c.account for c in candidates]
        allowed = sum(a.earned + self._budget * max(a.earned, early) - a.spent for a in accounts)
        for slot, account in enumerate(accounts):  # a probe: has the text become one that can be drafted?
            if not blocks[slot] and account.quiet * self._budget > price(sum(blocks) + 1) - price(sum(blocks)):
                blocks[slot] = 1
        if price(sum(blocks)) - price(0) > allowed:
            blocks = [0] * B
        refresh = [False] * B
        if not again:
            share = rate * price(sum(blocks)) / B
            gains = [
                policy.fresh - (1 + float(chances.sum()) + worth[n] - share)
                for policy, chances, worth, n in zip(policies, survival, worths, blocks, strict=True)
            ]
            refresh = _refreshed(gains, rate, lambda count: costs.diffuse(count, width, context), allowed)
        return [
            PassPlan(c.draft, len(chances), own, width, _kind(c, len(chances), own), fresh, c.drafting_rows)
            for c, chances, own, fresh in zip(candidates, survival, blocks, refresh, strict=True)
        ]

    def _price(self, plans: Seq[PassPlan], context: float) -> float:
        """What a pass of these plans costs each of its sequences: an equal share."""
        drew = sum(plan.drafting_rows > 0 for plan in plans)
        rows, blocks = sum(1 + plan.offered for plan in plans), sum(plan.blocks for plan in plans)
        width = max(plan.width for plan in plans)
        price = self.costs.ragged(len(plans), rows, blocks, width, context)
        return (price + (self.costs.diffuse(drew, width, context) if drew else 0.0)) / len(plans)

    def _new_history(self) -> History:
        return History(self._trained, self._before)

    def _solve(self, history: History, share: int, context: float) -> Policy:
        """The best policy over all widths."""
        widths = [self._width] if self._alone else sorted({*[w for w in WIDTHS if w < self._width], self._width})
        states = [States(history.by_row(), width, self.costs, share, context) for width in widths]
        found = [problem.best() for problem in states]
        return max(found, key=lambda policy: policy.rate)


def _best_blocks(worths: list[Array], rate: float, price: Callable[[int], float]) -> list[int]:
    """How many blocks each sequence gets: the best number for all alike, then the best for each beside the others.

    worths: per sequence, what 0, 1, ... blocks leave it, in tokens; price: seconds of a pass by all blocks in it.
    """

    def gain(blocks: list[int]) -> float:
        return sum(float(worth[n]) for worth, n in zip(worths, blocks, strict=True)) - rate * price(sum(blocks))

    alike = [[min(n, len(worth) - 1) for worth in worths] for n in range(max(len(worth) for worth in worths))]
    best = max(alike, key=gain)
    if len(worths) > 1:
        for slot, worth in enumerate(worths):
            best = max(([*best[:slot], n, *best[slot + 1 :]] for n in range(len(worth))), key=gain)
    return best


def _refreshed(gains: list[float], rate: float, price: Callable[[int], float], allowed: float) -> list[bool]:
    """Which sequences take part in a diffusion pass first: those that gain most, as many as it pays for and the budget
    allows."""
    order = sorted(range(len(gains)), key=lambda slot: -gains[slot])
    total, best, chosen = 0.0, 0.0, 0
    for count, slot in enumerate(order, start=1):
        total += gains[slot]
        if total - rate * price(count) > best and price(count) <= allowed:
            best, chosen = total - rate * price(count), count
    return [slot in order[:chosen] for slot in range(len(gains))]


def _kind(candidate: Candidate, offered: int, blocks: int) -> str:
    if candidate.drafting_rows:
        return "two-pass"
    if blocks:
        return "one-pass"
    return {"lookup": "lookup"}.get(candidate.draft.kind, "one-pass") if offered else "ar"
