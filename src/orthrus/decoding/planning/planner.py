"""The planner: before every pass it chooses how many drafts to verify, and how many blocks to draft beside them.

It maximises the long-run rate of tokens per second. `policy` solves decoding as a semi-Markov decision process, from
the cost model and the acceptance estimates. Its solution gives the rate g and the value, in tokens, of the drafts that
a pass leaves for the next one. The planner then improves on it by one step: with the confidence of the drafts at hand,
it chooses the numbers of drafts and blocks that maximise

    1 + E[accepted drafts] + E[value of the next drafts] - g * seconds of the pass

A plan is a pure function of cost model and history; no clock is read.

Under the rule `rejection` each sequence is planned as if it were alone, with blocks of full width, so that the random
values it uses do not depend on its neighbours. The number of drafts it verifies depends on history and distributions,
never on the drafted tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Seq

from orthrus.config import DiffusionConfig
from orthrus.decoding.drafts import Draft, Verdict
from orthrus.decoding.plan import PassPlan
from orthrus.decoding.planning.acceptance import AcceptanceHistory
from orthrus.decoding.planning.account import Account, Candidate
from orthrus.decoding.planning.cost_model import Array, CostModel
from orthrus.decoding.planning.policy import Policy, States
from orthrus.decoding.sequence import Sequence

WIDTHS = (2, 3, 4, 6, 8, 12, 16, 24, 32)
"""Block widths to choose from, in rows, besides the maximum width."""
RESOLVE_EVERY = 16
"""Verdicts on blocks after which the policy of a sequence is solved again."""
ADVANCE_TOKENS = 40
"""Tokens whose probing budget may be spent before they are generated. The total budget stays the same."""
UNPLANNED_PASSES = 7
"""Passes without planning after one in which nothing was drafted: planning takes time. They stay plain but for the
drafts of prompt lookup."""
PLANNING_SECONDS = 2e-4
"""Seconds that planning one cycle takes."""


class Planner:
    """Plans for the sequences of one decoding run.

    Args:
        diffusion: the config of the diffusion view.
        width: maximum rows of a block.
        costs: the cost model.
        alone: plan each sequence as if it were the only one (rule `rejection`).
        budget: how far a sequence may fall behind plain decoding, as a fraction of the time of plain decoding. In a
            batch of B it is divided by the square root of B: what one sequence learns, all know.
    """

    def __init__(
        self, diffusion: DiffusionConfig, width: int, costs: CostModel, *, alone: bool = False, budget: float = 0.03
    ) -> None:
        self.costs, self._width, self._alone, self._budget = costs, width, alone, budget
        self._trained = min(width, diffusion.trained_rows)
        self._accounts: dict[int, Account] = {}
        self._previous: AcceptanceHistory | None = None
        self._first_policies: dict[tuple[int, int], Policy] = {}
        self._unplanned_passes, self._looks_up_only, self._lookup_value = 0, False, 1.0

    def first_width(self, context: int, sharers: int = 1) -> int:
        """Rows of the block in the last pass of a prefill beside sharers - 1 sequences; 0 if drafting does not pay."""
        policy = self._first_policy(sharers, context)
        sharers = 1 if self._alone else sharers
        extra = self.costs.ragged(sharers, sharers, 1, policy.width, context) - self.costs.ar(sharers, 1, context)
        return policy.width if policy.block_values[1] > policy.rate * extra else 0

    def begin_pass(self, batch: Seq[Sequence]) -> None:
        """Update the accounts from the new tokens and the drafts at hand, and solve the policies that are due."""
        sharers = self._sharers(batch)
        self._looks_up_only = sharers > 1 and self._unplanned_passes > 0 and not any(s.ahead.tokens for s in batch)
        self._unplanned_passes -= self._looks_up_only
        for sequence in batch:
            account = self._accounts.get(sequence.index)
            if account is None:
                account = self._accounts[sequence.index] = Account(self._new_history())
                account.lookup.extend(list(sequence.request.prompt))
            account.read(sequence)
            drafts_at_hand = bool(sequence.ahead.tokens) or account.lookup.matched
            account.skips_planning = sharers == 1 and account.unplanned_passes > 0 and not drafts_at_hand
            account.unplanned_passes -= account.skips_planning
            if not account.skips_planning and not self._looks_up_only:
                self._update_policy(sequence, account, sharers)
        if sharers > 1 and not self._looks_up_only:
            rates = [policy.rate for s in batch if (policy := self._accounts[s.index].policy) is not None]
            self._lookup_value = self._row_value(sum(rates) / sharers, sharers, batch[0].length)

    def _update_policy(self, sequence: Sequence, account: Account, sharers: int) -> None:
        if sequence.ahead.start == 1:
            account.history.observe_agreement(agreed=sequence.ahead.kind == "agrees")
        history, (solved_sharers, due), sharers = account.history, account.solved_for, _rounded(sharers)
        if account.policy is None or solved_sharers != sharers or history.verdicts >= due:
            known = history.verdicts or sharers == 1
            solved = self._solve(history, sharers, sequence.length) if known else None
            account.policy = solved or self._first_policy(sharers, sequence.length)
            account.solved_for = sharers, history.verdicts + RESOLVE_EVERY

    def plan(self, batch: Seq[Sequence]) -> list[PassPlan]:
        """The plan of the next pass for each sequence. A query: it changes nothing."""
        if self._looks_up_only:
            return [self._plan_lookup(self._accounts[sequence.index]) for sequence in batch]
        candidates = [self._candidate(sequence, sequence.ahead) for sequence in batch]
        if self._sharers(batch) > 1:
            return self._plan_jointly(candidates, refreshed=False)
        return [
            PassPlan(width=self._width) if c.account.skips_planning else self._plan_jointly([c], refreshed=False)[0]
            for c in candidates
        ]

    def _plan_lookup(self, account: Account) -> PassPlan:
        """Verify what prompt lookup drafts, as far as it is worth its rows; draft nothing."""
        if not account.lookup.matched:
            return PassPlan(width=self._width)
        draft = account.best_draft(Draft())
        offered = int((account.history.acceptance(draft).cumprod() > self._lookup_value).sum())
        return PassPlan(draft, offered, 0, self._width, "lookup" if offered else "ar")

    def replan(self, batch: Seq[Sequence], plans: Seq[PassPlan], drafts: Seq[Draft]) -> list[PassPlan]:
        """The plan after a refresh: `drafts` holds the new drafts of the sequences whose plan asked for one. A query.

        Plans of the other sequences may change too, unless each sequence is planned alone: its plan must then not
        depend on its neighbours.
        """
        width = max(plan.width for plan in plans)
        candidates = [
            self._candidate(sequence, draft if plan.refresh else sequence.ahead, width if plan.refresh else 0)
            for sequence, plan, draft in zip(batch, plans, drafts, strict=True)
        ]
        if self._sharers(batch) > 1:
            return self._plan_jointly(candidates, refreshed=True)
        return [
            self._plan_jointly([candidate], refreshed=True)[0] if plan.refresh else plan
            for candidate, plan in zip(candidates, plans, strict=True)
        ]

    def learn(self, batch: Seq[Sequence], plans: Seq[PassPlan], kept: Seq[Verdict]) -> None:
        """Record the verdicts on the drafts, and the cost of the pass for each sequence."""
        sharers = self._sharers(batch)
        context = sum(sequence.length for sequence in batch) / len(batch)
        together = self._seconds(plans, sharers, context) if sharers > 1 else (0.0, 0.0)
        drafts = any(plan.blocks or (plan.draft.tokens and plan.draft.kind != "lookup") for plan in plans)
        for sequence, plan, verdict in zip(batch, plans, kept, strict=True):
            account, offered = self._accounts[sequence.index], plan.offered
            stopped = sequence.finish_reason is not None
            if offered:
                account.history.observe(plan.draft, verdict.accepted if stopped else offered, verdict.accepted)
            plain, seconds = together if sharers > 1 else self._seconds([plan], 1, sequence.length)
            account.spent_seconds += seconds + (0.0 if self._looks_up_only else PLANNING_SECONDS)
            account.plain_seconds += len(verdict.tokens) * plain
            account.undrafted_seconds = 0.0 if plan.blocks or plan.drafting_rows else account.undrafted_seconds + plain
            if sharers == 1 and not account.skips_planning:
                account.unplanned_passes = 0 if plan.draft.tokens or plan.blocks else UNPLANNED_PASSES
            if stopped and not self._alone and account.history.observed:
                self._previous = account.history
                if account.history.verdicts:  # policies do not depend on what prompt lookup has shown
                    self._first_policies = {}
        if sharers > 1 and not self._looks_up_only:
            self._unplanned_passes = 0 if drafts else UNPLANNED_PASSES

    def use_costs(self, costs: CostModel) -> None:
        """Plan by another cost model from the next pass on."""
        self.costs, self._first_policies = costs, {}
        for account in self._accounts.values():
            account.policy = None

    def forget(self, sequence: Sequence) -> None:
        """Drop the account of a sequence that has ended."""
        self._accounts.pop(sequence.index, None)

    def _sharers(self, batch: Seq[Sequence]) -> int:
        """The number of sequences that share the cost of a pass."""
        return 1 if self._alone else len(batch)

    def _candidate(self, sequence: Sequence, draft: Draft, drafting_rows: int = 0) -> Candidate:
        account = self._accounts[sequence.index]
        return Candidate(sequence, account, account.best_draft(draft), drafting_rows)

    def _plan_jointly(self, candidates: Seq[Candidate], *, refreshed: bool) -> list[PassPlan]:
        """Plan one pass for all these sequences: the drafts and blocks of each, against the cost of the common pass."""
        B, costs = len(candidates), self.costs
        context = sum(c.sequence.length for c in candidates) / B
        policies = [c.account.policy for c in candidates if c.account.policy is not None]
        rate, width = sum(policy.rate for policy in policies) / B, max(policy.width for policy in policies)
        row_value = self._row_value(rate, B, context)
        survival = [c.account.history.acceptance(c.draft).cumprod() for c in candidates]
        survival = [reached[reached > row_value] for reached in survival]
        rows = B + sum(len(reached) for reached in survival)

        def cost(blocks: int) -> float:
            return costs.ragged(B, rows, blocks, width, context)

        next_values = [policy.next_values(reached) for policy, reached in zip(policies, survival, strict=True)]
        blocks = _best_blocks(next_values, rate, cost)
        budget = self._budget / B**0.5
        advance, accounts = ADVANCE_TOKENS * costs.ar(B, 1, context) / B, [c.account for c in candidates]
        allowance = sum(
            a.plain_seconds + max(budget * a.plain_seconds, self._budget * advance) - a.spent_seconds for a in accounts
        )
        for slot, account in enumerate(accounts):  # a probe: drafting may pay by now
            if not blocks[slot] and account.undrafted_seconds * budget > cost(sum(blocks) + 1) - cost(sum(blocks)):
                blocks[slot] = 1
        if cost(sum(blocks)) - cost(0) > allowance:
            blocks = [0] * B
        refresh = [False] * B
        if not refreshed:
            cost_share = rate * cost(sum(blocks)) / B
            gains = [
                policy.refresh_value - (1 + float(reached.sum()) + values[n] - cost_share)
                for policy, reached, values, n in zip(policies, survival, next_values, blocks, strict=True)
            ]
            refresh = _choose_refreshed(gains, rate, lambda count: costs.diffuse(count, width, context), allowance)
        return [
            PassPlan(c.draft, len(reached), own, width, _kind(c, len(reached), own), refresh_own, c.drafting_rows)
            for c, reached, own, refresh_own in zip(candidates, survival, blocks, refresh, strict=True)
        ]

    def _row_value(self, rate: float, sharers: int, context: float) -> float:
        """The tokens that plain decoding gains in the time of one more row: the least that a draft must promise."""
        return rate * (self.costs.ar(sharers, 8, context) - self.costs.ar(sharers, 1, context)) / 7 / sharers

    def _seconds(self, plans: Seq[PassPlan], sharers: int, context: float) -> tuple[float, float]:
        """A sequence's share of the seconds of a plain pass, and of a pass with these plans."""
        drafting = sum(plan.drafting_rows > 0 for plan in plans)
        rows, blocks = sum(1 + plan.offered for plan in plans), sum(plan.blocks for plan in plans)
        width = max(plan.width for plan in plans)
        cost = self.costs.ragged(len(plans), rows, blocks, width, context)
        cost += self.costs.diffuse(drafting, width, context) if drafting else 0.0
        return self.costs.ar(sharers, 1, context) / sharers, cost / len(plans)

    def _first_policy(self, sharers: int, context: float) -> Policy:
        """The policy of a sequence about which nothing is known but what earlier ones have taught."""
        if self._alone:  # for the exact context, so that earlier sequences have no influence; else a bucket is enough
            return self._solve(self._new_history(), 1, context)
        place = _rounded(sharers), 1 << int(context).bit_length()
        if place not in self._first_policies:
            self._first_policies[place] = self._solve(self._new_history(), *place)
        return self._first_policies[place]

    def _new_history(self) -> AcceptanceHistory:
        return AcceptanceHistory(self._trained, self._previous)

    def _solve(self, history: AcceptanceHistory, sharers: int, context: float) -> Policy:
        """The policy with the highest rate over all widths."""
        widths = [self._width] if self._alone else sorted({*[w for w in WIDTHS if w < self._width], self._width})
        states = [States(history.by_row(), width, self.costs, sharers, context) for width in widths]
        policies = [problem.best() for problem in states]
        return max(policies, key=lambda policy: policy.rate)


def _best_blocks(next_values: list[Array], rate: float, cost: Callable[[int], float]) -> list[int]:
    """How many blocks each sequence gets: the best common number, then the best number for each sequence.

    next_values: per sequence, the expected value of its next drafts with 0, 1, ... blocks, in tokens. cost: seconds of
    a pass by its total number of blocks.
    """

    def gain(blocks: list[int]) -> float:
        return sum(float(values[n]) for values, n in zip(next_values, blocks, strict=True)) - rate * cost(sum(blocks))

    alike = [
        [min(n, len(values) - 1) for values in next_values] for n in range(max(len(values) for values in next_values))
    ]
    best = max(alike, key=gain)
    if len(next_values) > 1:
        for slot, values in enumerate(next_values):
            best = max(([*best[:slot], n, *best[slot + 1 :]] for n in range(len(values))), key=gain)
    return best


def _choose_refreshed(gains: list[float], rate: float, cost: Callable[[int], float], allowance: float) -> list[bool]:
    """Which sequences take part in a diffusion pass first: those with the largest gains, as many as maximise the total
    gain within the budget. gains: in tokens."""
    order = sorted(range(len(gains)), key=lambda slot: -gains[slot])
    total, best, chosen = 0.0, 0.0, 0
    for count, slot in enumerate(order, start=1):
        total += gains[slot]
        if total - rate * cost(count) > best and cost(count) <= allowance:
            best, chosen = total - rate * cost(count), count
    return [slot in order[:chosen] for slot in range(len(gains))]


def _kind(candidate: Candidate, offered: int, blocks: int) -> str:
    if candidate.drafting_rows:
        return "two-pass"
    if blocks:
        return "one-pass"
    return {"lookup": "lookup"}.get(candidate.draft.kind, "one-pass") if offered else "ar"


def _rounded(sharers: int) -> int:
    """Rounded down to two significant bits: a request that joins or leaves need not change the policies."""
    step = max(1 << sharers.bit_length() - 2, 1) if sharers > 1 else 1
    return sharers // step * step
