"""The planner: before every pass it chooses which drafts to verify, and which blocks to draft beside them.

It maximises the long-run rate of tokens per second. `policy` solves decoding as a semi-Markov decision process, from
the cost model and the average yield of blocks. Its solution gives the rate g and the value, in tokens, of a block that
a pass leaves for the next one. The planner improves on it by one step, with the drafts at hand, by one rule: whatever
is computed must be worth its seconds at the rate g.

- A node of the tree of drafts is worth its path probability, by the block and by what followed the path in the text
  before.
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
from statistics import median_high
from typing import TypeVar

from orthrus.config import DiffusionConfig
from orthrus.decoding.plan import PassPlan
from orthrus.decoding.planning.acceptance import SOURCES, AcceptanceHistory
from orthrus.decoding.planning.account import Account, Candidate
from orthrus.decoding.planning.choice import (
    End,
    blocks_may_pay,
    choose_refreshed,
    choose_roots,
    count_causally,
    count_offered,
)
from orthrus.decoding.planning.cost_model import CostModel
from orthrus.decoding.planning.policy import MAX_BLOCKS, NODES, Policy, solve
from orthrus.decoding.sequence import Sequence
from orthrus.decoding.verdict import Verdict
from orthrus.drafters.tree import DraftTree

T = TypeVar("T")
WIDTHS = (3, 4, 6, 8, 16, 32)
"""Block widths to choose from, in rows, besides the maximum width."""
RESOLVE_EVERY = 16
"""Verdicts on blocks after which the policy of a sequence is solved again; at first, after a quarter of them."""
ADVANCE_TOKENS = 128
"""Tokens whose probing budget may be spent before they are generated. The total budget stays the same."""
REST = 7
"""Plain passes without planning after one that drafted nothing, since planning takes time; drafts at hand end them."""
PLANNING_SECONDS = 5e-4
"""Seconds that planning takes in a pass that drafts nothing in the end. In others the cost model holds them."""
NOISE_SECONDS, FLAT = 1.4e-8, 1.6
"""Host seconds, per token of the vocabulary, of the noise for the drafts of a block and for their verification, where
tokens are sampled. Times the third power of a temperature above 1, since more tokens may then win, up to `FLAT`, where
nearly all may. Measured with 49,152 tokens: 0.7 ms at T = 0.8 on answers, 2.6 ms at T = 1.5 on flat distributions."""
EASY = 2.0
"""Trees have the size that suits a text on which the path probability of the n-th node is this / n, or 1."""


class Planner:
    """Plans for the sequences of one decoding run.

    nodes: the most nodes of a tree of drafts.

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
        self.nodes = tree_size(costs, width)
        self._width, self._trained = width, diffusion.trained_rows
        self._widths = (width,) if alone else tuple(sorted({*(w for w in WIDTHS if w < width), width}))
        self._with_noise: dict[float, CostModel] = {}
        self._accounts: dict[int, Account] = {}
        self._previous: AcceptanceHistory | None = None

    def first_width(self, context: int, sharers: int = 1) -> int:
        """Rows of the block in the last pass of a prefill beside sharers - 1 sequences; 0 if drafting does not pay."""
        sharers = 1 if self._alone else _rounded(sharers)
        policy = self._solve(self._new_history(), self.costs, sharers, context)
        extra = self.costs.ragged(sharers, sharers, 1, policy.width, context) - self.costs.ar(sharers, 1, context)
        return policy.width if policy.block_value > policy.rate * extra else 0

    def begin_pass(self, batch: Seq[Sequence]) -> None:
        """Update the accounts from the new tokens, and solve the policies that are due."""
        sharers = 1 if self._alone else _rounded(len(batch))
        for group in self._groups(batch):
            accounts, costs = [self._account(sequence) for sequence in group], self._costs_of(group)
            drafts_at_hand = any(s.ahead.tokens or a.looked_up.tokens for s, a in zip(group, accounts, strict=True))
            rests = not drafts_at_hand and all(account.passes_to_rest for account in accounts)
            for sequence, account in zip(group, accounts, strict=True):
                account.rests, verdicts = rests, account.history.verdicts
                account.passes_to_rest -= rests
                if not rests and (_is_outdated(account.solved_for, len(group)) or verdicts >= account.solve_at):
                    account.policy = self._solve(account.history, costs, sharers, sequence.length)
                    account.solved_for = sharers
                    account.solve_at = verdicts + max(RESOLVE_EVERY // 4, min(verdicts, RESOLVE_EVERY))

    def _costs_of(self, sequences: Seq[Sequence]) -> CostModel:
        """The cost model of passes for these sequences: where one of them samples, drafts need noise."""
        hottest = max(sequences, key=lambda sequence: sequence.sampler.params.temperature)
        temperature = round(hottest.sampler.params.temperature, 1)  # few models, for whose passes times are kept
        if temperature == 0:
            return self.costs
        if temperature not in self._with_noise:
            noise = NOISE_SECONDS * hottest.sampler.vocab_size * min(max(1.0, temperature), FLAT) ** 3
            self._with_noise[temperature] = self.costs.with_draft_overhead(noise)
        return self._with_noise[temperature]

    def _account(self, sequence: Sequence) -> Account:
        """The account of a sequence, up to its newest token."""
        account = self._accounts.get(sequence.index)
        if account is None:
            account = self._accounts[sequence.index] = Account(self._new_history(), block_width=self._width)
        account.read(sequence)
        return account

    def plan(self, batch: Seq[Sequence]) -> list[PassPlan]:
        """The plan of the next pass for each sequence. A query: it changes nothing."""
        plans = []
        for group in self._groups(batch):
            accounts = [self._accounts[sequence.index] for sequence in group]
            if accounts[0].rests:
                plans += [PassPlan(width=self._width) for _ in group]
                continue
            candidates = [a.candidate(s, s.ahead) for a, s in zip(accounts, group, strict=True)]
            plans += self._plan_jointly(candidates, refreshed=False)
        return plans

    def replan(self, batch: Seq[Sequence], plans: Seq[PassPlan], drafts: Seq[DraftTree]) -> list[PassPlan]:
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
        again = [plan for group in self._groups(candidates) for plan in self._plan_jointly(group, refreshed=True)]
        kept = [self._alone and not plan.refresh for plan in plans]
        return [plan if keep else new for plan, keep, new in zip(plans, kept, again, strict=True)]

    def learn(self, batch: Seq[Sequence], plans: Seq[PassPlan], kept: Seq[Verdict]) -> None:
        """Record the verdicts on the drafts, what the blocks have yielded, and the cost of the pass."""
        for group in self._groups([*zip(batch, plans, kept, strict=True)]):
            context = sum(sequence.length for sequence, *_ in group) / len(group)
            costs = self._costs_of([sequence for sequence, *_ in group])
            plain, seconds = _seconds([plan for _, plan, _ in group], costs, context)
            for sequence, plan, verdict in group:
                account, stopped = self._accounts[sequence.index], sequence.finish_reason is not None
                account.observe(plan, verdict, stopped=stopped)
                drafted = plan.roots or plan.drafting_rows
                account.spent_seconds += seconds + (0.0 if account.rests or drafted else PLANNING_SECONDS / len(group))
                account.plain_seconds += len(verdict.tokens) * plain
                account.undrafted_seconds = 0.0 if drafted else account.undrafted_seconds + plain
                if not account.rests:
                    account.passes_to_rest = 0 if drafted or plan.draft.tokens else REST
                if stopped and not self._alone and account.history.observed:
                    self._previous = account.history

    def use_costs(self, costs: CostModel) -> None:
        """Plan by another cost model from the next pass on."""
        self.costs, self.nodes = costs, tree_size(costs, self._width)
        self._with_noise.clear()
        for account in self._accounts.values():
            account.solved_for = 0

    def forget(self, sequence: Sequence) -> None:
        """Drop the account of a sequence that has ended."""
        self._accounts.pop(sequence.index, None)

    def _groups(self, batch: Seq[T]) -> Seq[Seq[T]]:
        """What is planned together."""
        return [[one] for one in batch] if self._alone else [batch]

    def _plan_jointly(self, candidates: Seq[Candidate], *, refreshed: bool) -> list[PassPlan]:
        """Plan one pass for all these sequences: the drafts and blocks of each, against the cost of the common pass."""
        B, costs = len(candidates), self._costs_of([c.sequence for c in candidates])
        context = sum([c.sequence.length for c in candidates]) / B
        accounts, policies = [c.account for c in candidates], [c.account.policy for c in candidates]
        rate, width = sum([policy.rate for policy in policies]) / B, median_high([policy.width for policy in policies])
        trees, values = [c.probabilities for c in candidates], [policy.block_value for policy in policies]

        def choose(others: int) -> tuple[float, list[int], list[list[End]]]:
            """The gain in tokens, the nodes and the roots, if nodes are chosen beside so many other rows."""
            if self._alone:
                offered = [count_causally(tree, lambda rows: rate * costs.row(rows, context)) for tree in trees]
            else:
                offered = count_offered(trees, lambda n: [rate * s for s in costs.ar_up_to(B, n, others, context)])
            rows = B + sum(offered)

            def spent(blocks: int) -> float:
                return rate * costs.ragged(B, rows, blocks, width, context)

            roots: list[list[End]] = [[] for _ in candidates]
            if blocks_may_pay(values, spent):
                ends = [c.ends(count, MAX_BLOCKS) for c, count in zip(candidates, offered, strict=True)]
                roots = choose_roots(ends, values, spent)
            gained = sum([c.value(count, own) for c, count, own in zip(candidates, offered, roots, strict=True)])
            return gained - spent(sum(map(len, roots))), offered, roots

        choices = [choose(0)]
        if any(trees) and max(values) > 0 and not self._alone:
            choices.append(choose(B * width))
        _, offered, roots = max(choices, key=lambda choice: choice[0])
        rows = B + sum(offered)

        def cost(blocks: int) -> float:
            return costs.ragged(B, rows, blocks, width, context)

        budget = self._budget / B**0.5
        advance = self._budget * ADVANCE_TOKENS * costs.ar(B, 1, context) / B
        allowance = sum([a.plain_seconds + max(budget * a.plain_seconds, advance) - a.spent_seconds for a in accounts])
        for own, candidate, count in zip(roots, candidates, offered, strict=True):
            blocks = sum(map(len, roots))  # a probe: drafting may pay by now
            undrafted = candidate.account.undrafted_seconds
            if undrafted and not own and undrafted * budget > cost(blocks + 1) - cost(blocks):
                own.extend(candidate.ends(count, 1))
        if any(roots) and cost(sum(map(len, roots))) - cost(0) > allowance:
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

    def _new_history(self) -> AcceptanceHistory:
        return AcceptanceHistory(self._widths, self._trained, self._previous)

    def _solve(self, history: AcceptanceHistory, costs: CostModel, sharers: int, context: float) -> Policy:
        """The policy with the highest rate over all widths."""
        fresh, beside = (history.yields_of(source).split() for source in SOURCES)
        found = [
            solve(of_pass, of_block, width, costs, sharers, context)
            for of_pass, of_block, width in zip(fresh, beside, self._widths, strict=True)
        ]
        return max(found, key=lambda policy: policy.rate)


def _seconds(plans: Seq[PassPlan], costs: CostModel, context: float) -> tuple[float, float]:
    """A sequence's share of the seconds of a plain pass, and of a pass with these plans."""
    drafting = sum(plan.drafting_rows > 0 for plan in plans)
    rows, blocks = sum(1 + plan.offered for plan in plans), sum(plan.blocks for plan in plans)
    cost = costs.ragged(len(plans), rows, blocks, max(plan.width for plan in plans), context)
    cost += costs.diffuse(drafting, max(plan.drafting_rows for plan in plans), context) if drafting else 0.0
    return costs.ar(len(plans), 1, context) / len(plans), cost / len(plans)


def tree_size(costs: CostModel, width: int) -> int:
    """The nodes of the trees with which two-pass cycles of one sequence are fastest where drafting is easy. By replays,
    `auto` gains nothing from larger ones, and they take longer to grow."""

    def rate(nodes: int) -> float:
        accepted = sum(min(1.0, EASY / node) for node in range(1, nodes + 1))
        return (1 + accepted) / (costs.diffuse(1, width, 0) + costs.ar(1, 1 + nodes, 0))

    return max((nodes for nodes in NODES if nodes >= 4), key=rate)


def _is_outdated(solved_for: int, sharers: int) -> bool:
    """Whether a policy was solved for a batch of another size: half as large again, or smaller by a third. So requests
    that join and leave change policies seldom."""
    return not 2 * solved_for < 3 * sharers < 4.5 * solved_for


def _rounded(sharers: int) -> int:
    """Rounded down to two significant bits, so that the times of passes are computed for few sizes of a batch."""
    step = max(1 << sharers.bit_length() - 2, 1) if sharers > 1 else 1
    return sharers // step * step
