"""The planner: before every pass it chooses which drafts to verify, and which blocks to draft beside them.

It maximises the long-run rate of tokens per second. `policy` solves decoding as a semi-Markov decision process, from
the cost model and the average yield of blocks. Its solution gives the rate g and the value, in tokens, of a block that
a pass leaves for the next one. The planner improves on it by one step, with the drafts at hand, by one rule: whatever
is computed must be worth its seconds at the rate g.

- A node of the tree of drafts is worth its path probability. Drafts of blocks and of prompt lookup are branches of the
  same tree.
- A block rooted at a node is worth the probability that the accepted path ends there, times the value of a block.
- A diffusion pass is worth the value of its drafts, less that of the best pass without it.

A plan is a pure function of cost model and history; no clock is read.

Under the rule `rejection` each sequence is planned as if it were alone, with blocks of full width, so that the random
values it uses do not depend on its neighbours. Whether a node is verified depends on history and distributions, never
on its token or on later ones.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from math import inf

from orthrus.config import DiffusionConfig
from orthrus.decoding.drafts import Draft, Verdict
from orthrus.decoding.plan import PassPlan
from orthrus.decoding.planning.acceptance import AcceptanceHistory
from orthrus.decoding.planning.account import Account, Candidate
from orthrus.decoding.planning.choice import choose_refreshed, choose_roots, count_offered
from orthrus.decoding.planning.cost_model import CostModel
from orthrus.decoding.planning.policy import MAX_BLOCKS, NODES, Policy, solve
from orthrus.decoding.sequence import Sequence

WIDTHS = (3, 4, 6, 8, 16, 32)
"""Block widths to choose from, in rows, besides the maximum width."""
RESOLVE_EVERY = 16
"""Verdicts on blocks after which the policy of a sequence is solved again; at first, after a quarter of them."""
ADVANCE_TOKENS = 40
"""Tokens whose probing budget may be spent before they are generated. The total budget stays the same."""
UNPLANNED_PASSES = 7
"""Passes without planning after one in which nothing was drafted: planning takes time. They stay plain but for the
drafts of prompt lookup."""
PLANNING_SECONDS = 2e-4
"""Seconds that planning one cycle takes."""
LIKELY_ACCEPTED = 3.0
"""Accepted drafts by which the size of trees is bounded: the path probability of the n-th node is at most this / n."""


class Planner:
    """Plans for the sequences of one decoding run.

    nodes: the most nodes of a tree of drafts that may pay.

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
        self.costs, self._alone, self._budget = costs, alone, budget
        self.nodes = tree_size(costs)
        self._width, self._trained = width, diffusion.trained_rows
        self._widths = (width,) if alone else tuple(sorted({*(w for w in WIDTHS if w < width), width}))
        self._accounts: dict[int, Account] = {}
        self._previous: AcceptanceHistory | None = None
        self._first_policies: dict[tuple[int, int], Policy] = {}
        self._unplanned_passes, self._looks_up_only, self._lookup_value = 0, False, 1.0

    def first_width(self, context: int, sharers: int = 1) -> int:
        """Rows of the block in the last pass of a prefill beside sharers - 1 sequences; 0 if drafting does not pay."""
        policy = self._first_policy(sharers, context)
        sharers = 1 if self._alone else sharers
        extra = self.costs.ragged(sharers, sharers, 1, policy.width, context) - self.costs.ar(sharers, 1, context)
        return policy.width if policy.block_value > policy.rate * extra else 0

    def begin_pass(self, batch: Seq[Sequence]) -> None:
        """Update the accounts from the new tokens and the drafts at hand, and solve the policies that are due."""
        sharers = self._sharers(batch)
        self._looks_up_only = sharers > 1 and self._unplanned_passes > 0 and not any(s.ahead.tokens for s in batch)
        self._unplanned_passes -= self._looks_up_only
        for sequence in batch:
            account = self._accounts.get(sequence.index)
            if account is None:
                first = self._first_policy(sharers, sequence.length)
                account = self._accounts[sequence.index] = Account(self._new_history(), first)
                account.lookup.extend(list(sequence.request.prompt))
            account.read(sequence)
            drafts_at_hand = bool(sequence.ahead.tokens) or account.lookup.matched
            account.skips_planning = sharers == 1 and account.unplanned_passes > 0 and not drafts_at_hand
            account.unplanned_passes -= account.skips_planning
            if not account.skips_planning and not self._looks_up_only:
                self._update_policy(sequence, account, sharers)
        if sharers > 1 and not self._looks_up_only:
            rates = [self._accounts[s.index].policy.rate for s in batch]
            self._lookup_value = sum(rates) / sharers * self.costs.row(sharers, batch[0].length)

    def _update_policy(self, sequence: Sequence, account: Account, sharers: int) -> None:
        history, (solved_sharers, due), sharers = account.history, account.solved_for, _rounded(sharers)
        if solved_sharers != sharers or history.verdicts >= due:
            known = history.verdicts or sharers == 1
            solved = self._solve(history, sharers, sequence.length) if known else None
            account.policy = solved or self._first_policy(sharers, sequence.length)
            account.solved_for = (
                sharers,
                history.verdicts + max(RESOLVE_EVERY // 4, min(history.verdicts, RESOLVE_EVERY)),
            )

    def plan(self, batch: Seq[Sequence]) -> list[PassPlan]:
        """The plan of the next pass for each sequence. A query: it changes nothing."""
        accounts = [self._accounts[sequence.index] for sequence in batch]
        if self._looks_up_only:
            return [self._plan_lookup(*pair) for pair in zip(accounts, batch, strict=True)]
        skipped = [account.skips_planning for account in accounts]
        candidates = [
            account.candidate(sequence, sequence.ahead)
            for account, sequence in zip(accounts, batch, strict=True)
            if not account.skips_planning
        ]
        if self._sharers(batch) > 1:
            return self._plan_jointly(candidates, refreshed=False)
        planned = iter([self._plan_jointly([one], refreshed=False)[0] for one in candidates])
        return [PassPlan(width=self._width) if skips else next(planned) for skips in skipped]

    def _plan_lookup(self, account: Account, sequence: Sequence) -> PassPlan:
        """Verify what prompt lookup drafts, as far as it is worth its rows; draft nothing."""
        if not account.lookup.matched:
            return PassPlan(width=self._width)
        candidate = account.candidate(sequence, Draft())
        offered = sum(reached > self._lookup_value for reached in candidate.probabilities)
        return PassPlan(candidate.draft, offered, (), self._width, "lookup" if offered else "ar")

    def replan(self, batch: Seq[Sequence], plans: Seq[PassPlan], drafts: Seq[Draft]) -> list[PassPlan]:
        """The plan after a refresh: `drafts` holds the new drafts of the sequences whose plan asked for one. A query.

        Plans of the other sequences may change too, unless each sequence is planned alone: its plan must then not
        depend on its neighbours.
        """
        width = max(plan.width for plan in plans)
        candidates = [
            self._accounts[sequence.index].candidate(
                sequence, draft if plan.refresh else sequence.ahead, width if plan.refresh else 0
            )
            for sequence, plan, draft in zip(batch, plans, drafts, strict=True)
        ]
        if self._sharers(batch) > 1:
            return self._plan_jointly(candidates, refreshed=True)
        return [
            self._plan_jointly([candidate], refreshed=True)[0] if plan.refresh else plan
            for candidate, plan in zip(candidates, plans, strict=True)
        ]

    def learn(self, batch: Seq[Sequence], plans: Seq[PassPlan], kept: Seq[Verdict]) -> None:
        """Record the verdicts on the drafts, what the blocks have yielded, and the cost of the pass."""
        sharers = self._sharers(batch)
        context = sum(sequence.length for sequence in batch) / len(batch)
        together = self._seconds(plans, sharers, context) if sharers > 1 else (0.0, 0.0)
        for sequence, plan, verdict in zip(batch, plans, kept, strict=True):
            account, stopped = self._accounts[sequence.index], sequence.finish_reason is not None
            account.observe(plan, verdict, stopped=stopped)
            plain, seconds = together if sharers > 1 else self._seconds([plan], 1, sequence.length)
            account.spent_seconds += seconds + (0.0 if self._looks_up_only else PLANNING_SECONDS)
            account.plain_seconds += len(verdict.tokens) * plain
            account.undrafted_seconds = 0.0 if plan.roots or plan.drafting_rows else account.undrafted_seconds + plain
            if sharers == 1 and not account.skips_planning:
                account.unplanned_passes = 0 if plan.draft.tokens or plan.roots else UNPLANNED_PASSES
            if stopped and not self._alone and account.history.observed:
                self._previous = account.history
                if account.history.verdicts:  # policies do not depend on what prompt lookup has shown
                    self._first_policies = {}
        if sharers > 1 and not self._looks_up_only:
            drafts = any(plan.roots or plan.draft.from_block for plan in plans)
            self._unplanned_passes = 0 if drafts else UNPLANNED_PASSES

    def use_costs(self, costs: CostModel) -> None:
        """Plan by another cost model from the next pass on."""
        self.costs, self._first_policies = costs, {}
        for account in self._accounts.values():
            account.solved_for = 0, 0

    def forget(self, sequence: Sequence) -> None:
        """Drop the account of a sequence that has ended."""
        self._accounts.pop(sequence.index, None)

    def _sharers(self, batch: Seq[Sequence]) -> int:
        """The number of sequences that share the cost of a pass."""
        return 1 if self._alone else len(batch)

    def _plan_jointly(self, candidates: Seq[Candidate], *, refreshed: bool) -> list[PassPlan]:
        """Plan one pass for all these sequences: the drafts and blocks of each, against the cost of the common pass."""
        B, costs = len(candidates), self.costs
        context = sum(c.sequence.length for c in candidates) / B
        accounts, policies = [c.account for c in candidates], [c.account.policy for c in candidates]
        rate, width = sum(policy.rate for policy in policies) / B, max(policy.width for policy in policies)
        offered = count_offered([c.probabilities for c in candidates], lambda rows: rate * costs.row(rows, context))
        rows = B + sum(offered)

        def cost(blocks: int) -> float:
            return costs.ragged(B, rows, blocks, width, context)

        ends = [c.ends(count)[:MAX_BLOCKS] for c, count in zip(candidates, offered, strict=True)]
        roots = choose_roots(ends, [policy.block_value for policy in policies], lambda blocks: rate * cost(blocks))
        budget = self._budget / B**0.5
        advance = ADVANCE_TOKENS * costs.ar(B, 1, context) / B
        allowance = sum(
            a.plain_seconds + max(budget * a.plain_seconds, self._budget * advance) - a.spent_seconds for a in accounts
        )
        for own, account, (likeliest, *_) in zip(roots, accounts, ends, strict=True):
            blocks = sum(map(len, roots))  # a probe: drafting may pay by now
            if not own and account.undrafted_seconds * budget > cost(blocks + 1) - cost(blocks):
                own.append(likeliest)
        if cost(sum(map(len, roots))) - cost(0) > allowance:
            roots = [[] for _ in roots]
        refresh = [False] * B
        if not refreshed:
            cost_share = rate * cost(sum(map(len, roots))) / B
            gains = [
                c.account.policy.refresh_value - (c.value(count, own) - cost_share) if c.discards else -inf
                for c, count, own in zip(candidates, offered, roots, strict=True)
            ]
            refresh = choose_refreshed(gains, rate, lambda count: costs.diffuse(count, width, context), allowance)
        return [
            c.plan(count, own, width, refresh=refresh_own)
            for c, count, own, refresh_own in zip(candidates, offered, roots, refresh, strict=True)
        ]

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
        return AcceptanceHistory(self._widths, self._trained, self._previous)

    def _solve(self, history: AcceptanceHistory, sharers: int, context: float) -> Policy:
        """The policy with the highest rate over all widths."""
        yields = [(history.yield_of("pass", width), history.yield_of("beside", width), width) for width in self._widths]
        return max((solve(*own, self.costs, sharers, context) for own in yields), key=lambda policy: policy.rate)


def tree_size(costs: CostModel) -> int:
    """The most nodes of a tree that may be worth their rows in a batch of one."""
    worth = costs.ar(1, 1, 0) / max(costs.row(1, 0), 1e-9)
    return int(min(max(LIKELY_ACCEPTED * worth, 4), max(NODES)))


def _rounded(sharers: int) -> int:
    """Rounded down to two significant bits: a request that joins or leaves need not change the policies."""
    step = max(1 << sharers.bit_length() - 2, 1) if sharers > 1 else 1
    return sharers // step * step
